"""Feature matching in discriminators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import l1_loss

Features = Sequence[Tensor]
"""Outputs of the layers of one discriminator, first to last; the last one holds its logits."""


def feature_matching(fake: Sequence[Features], real: Sequence[Features]) -> Tensor:
    """Mean absolute difference of the features of all layers but the last, summed over layers, as a scalar.

    Args:
        fake: Features of generated images for each discriminator, over which the loss is averaged.
        real: Features of the matching real images; no gradient flows to them.

    Raises:
        ValueError: If the features are not of the same discriminators.

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
