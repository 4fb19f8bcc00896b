"""Tiny VQ-VAE2 models whose random codebooks fit their random encoders."""

from typing import Any

import torch
from torch import Tensor

from medgen.families.vqvae2.generator import VQVAE2Config, VQVAE2Generator
from tests.tiny import NAMES, changed, nudge


def config(kind: Any = "single", **changes: Any) -> VQVAE2Config:
    return changed(VQVAE2Config.tiny(), label_kind=kind, label_names=NAMES[kind], **changes)


def pictures(n: int, config: VQVAE2Config, seed: int = 1) -> Tensor:
    """Noise in [0, 1], (n, C, H, W)."""
    return torch.rand(n, config.channels, *config.image_size, generator=torch.Generator().manual_seed(seed))


def generator(kind: Any = "single", seed: int = 0, **changes: Any) -> VQVAE2Generator:
    """Random weights everywhere, and codebooks that lie on what the encoder makes of noise."""
    torch.manual_seed(seed)
    model = nudge(VQVAE2Generator(config(kind, **changes)))
    images = pictures(32, model.config)
    for level in (model.autoencoder.top_codes, model.autoencoder.bottom_codes):  # the bottom map builds on the top one
        level.restart_below = 1e9  # so that every code is put on a vector of the batch
        model.autoencoder.encode(images)
        level.eval()
    return model.eval()
