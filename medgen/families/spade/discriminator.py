"""Patch discriminators of an image together with its label map, at several scales."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from medgen.families.spade.normalisation import Norm, NormalisedConv
from medgen.nn.patch_discriminator import LeakyConv2d, PatchDiscriminator

_WIDEST = 512


def spectral_discriminator(
    channels_in: int, width: int = 64, layers: int = 4, *, norm: Norm = "instance"
) -> PatchDiscriminator:
    """Build a patch discriminator whose layers between the first and the last are spectrally normalised.

    Inputs are semantic map and image together. Each layer has twice as many channels as the one before, at most 512;
    all halve the size, but the last before the logits, where there are several.

    Raises:
        ValueError: If `layers` is less than 1.
    """
    if layers < 1:
        raise ValueError(f"layers is {layers}; a discriminator has at least 1")
    widths = [min(width << i, _WIDEST) for i in range(layers)]
    return PatchDiscriminator(
        LeakyConv2d(channels_in, widths[0], 4, 2, padding=2),
        [
            NormalisedConv(a, b, 4, norm=norm, stride=2 if i < layers - 1 else 1, padding=2)
            for i, (a, b) in enumerate(pairwise(widths), start=1)
        ],
        nn.Conv2d(widths[-1], 1, 4, padding=2),
    )


class MultiscaleDiscriminator(nn.Module):
    """Patch discriminators of the image at full size, half of it, and so on, see `spectral_discriminator`.

    Source: Wang et al. 2018, "High-resolution image synthesis and semantic manipulation with conditional GANs", section
    3.2.
    """

    def __init__(
        self, channels_in: int, width: int = 64, layers: int = 4, scales: int = 2, *, norm: Norm = "instance"
    ) -> None:
        super().__init__()
        if scales < 1:
            raise ValueError(f"scales is {scales}; use at least 1")
        self.scales = nn.ModuleList(
            spectral_discriminator(channels_in, width, layers, norm=norm) for _ in range(scales)
        )

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        """Compute features of every scale, full size first, from semantic map and image (B, channels_in, H, W).

        Features of a scale are the outputs of its layers in order; the last are the logits (B, 1, H', W').
        """
        found: list[list[Tensor]] = []
        for scale in self.scales:
            if found:
                x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
            found.append(cast("PatchDiscriminator", scale).features(x))
        return found
