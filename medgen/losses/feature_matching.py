"""Likeness of two images in the eyes of discriminators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import l1_loss

Features = Sequence[Tensor]
"""What the layers of one discriminator give, first to last; the last one is its logits."""


def feature_matching(fake: Sequence[Features], real: Sequence[Features]) -> Tensor:
    """How far the features of generated images are from those of real ones, as a scalar.

    The mean absolute difference of each layer but the last, added up over layers and averaged over discriminators.

    Args:
        fake: For each discriminator its features of generated images.
        real: The same of the real images they stand for; no gradient flows to them.

    Raises:
        ValueError: If the two are not of the same discriminators.

    Source: Wang et al. 2018, "High-resolution image synthesis and semantic manipulation with conditional GANs", eq. 4.
    """
    shapes = [[[tuple(layer.shape) for layer in layers] for layers in features] for features in (fake, real)]
    if not fake or shapes[0] != shapes[1]:
        raise ValueError(
            f"fake has features of the shapes {shapes[0]}, real of {shapes[1]}; give those of the same discriminators "
            "for equally many images"
        )
    distances = [
        l1_loss(ours, theirs.detach())
        for layers, others in zip(fake, real, strict=True)
        for ours, theirs in zip(layers[:-1], others[:-1], strict=True)
    ]
    return torch.stack(distances).sum() / len(fake)
