"""StyleGAN2 with adaptive augmentation."""
