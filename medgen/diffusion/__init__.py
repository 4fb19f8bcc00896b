"""Denoising diffusion: noise schedules, denoisers, samplers and training objectives, for any network and any shape."""
