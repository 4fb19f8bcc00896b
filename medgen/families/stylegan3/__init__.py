"""StyleGAN3, without aliasing: generators of the authors' code, for sampling."""
