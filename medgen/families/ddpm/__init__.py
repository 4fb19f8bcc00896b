"""Pixel-space DDPM: images by denoising, without an autoencoder."""

from medgen.families.family import Family

FAMILY = Family(
    name="ddpm",
    title="DDPM",
    model="medgen.families.ddpm.generator:DDPMGenerator",
    stages=("medgen.families.ddpm.modules:DDPMModule",),
)
