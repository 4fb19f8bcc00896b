"""CycleGAN, images of one kind translated to another without pairs."""
