"""Medfusion: latent diffusion with a small autoencoder (Mueller-Franzes et al. 2023)."""
