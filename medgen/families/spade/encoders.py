"""Encoders of style: the appearance of an image, apart from its label map."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from medgen.families.spade.config import SPADEConfig
from medgen.families.spade.normalisation import Norm, NormalisedConv

_SMALLEST = 4
"""Pixels along the shorter side at which halving ends."""
_MOST_HALVINGS = 6
_WIDEST = 8
"""Channels of the coarsest layers, times the width."""


class StyleEncoder(nn.Module):
    """Encodes images as normal distributions of style codes; trained beside the generator (``vae``).

    Images are resized to `size` pixels along each side, 256 as published, or to `image_size` if it is None. There are
    `halvings` layers, each of which halves the size; None for as many as leave 4 pixels, but at most 6.

    Raises:
        ValueError: If images are too small for so many layers.

    Source: Park et al. 2019, "Semantic image synthesis with spatially-adaptive normalization", appendix A.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        channels: int,
        width: int,
        style_dim: int,
        *,
        size: int | None = 256,
        norm: Norm = "instance",
        halvings: int | None = None,
    ) -> None:
        super().__init__()
        self.size = image_size if size is None else (size, size)
        if halvings is None:
            halvings = min(_MOST_HALVINGS, (min(self.size) // _SMALLEST).bit_length() - 1)
        height, last_width = (-(-side // (1 << max(halvings, 0))) for side in self.size)  # rounded up
        if halvings < 1 or (norm == "instance" and height * last_width == 1):
            raise ValueError(
                f"images of {self.size[0]} x {self.size[1]} pixels are too small for a style encoder of {halvings} "
                "layers; give at least 8 x 8, see size"
            )
        widths = [width * min(_WIDEST, 1 << i) for i in range(halvings)]
        self.layers = nn.Sequential(
            *(NormalisedConv(a, b, 3, stride=2, norm=norm) for a, b in pairwise([channels, *widths]))
        )
        features = widths[-1] * height * last_width
        self.to_mean = nn.Linear(features, style_dim)
        self.to_log_variance = nn.Linear(features, style_dim)

    def features(self, images: Tensor) -> Tensor:
        """Compute features (B, F, h, w) of images (B, C, any, any) in [-1, 1]."""
        if tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images, size=self.size, mode="bilinear", align_corners=False)
        return cast("Tensor", self.layers(images))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images (B, C, any, any) in [-1, 1] as mean and log-variance, each (B, style_dim)."""
        features = self.features(images).flatten(1)
        return self.to_mean(features), self.to_log_variance(features)

    def mean(self, images: Tensor) -> Tensor:
        """Encode images (B, C, any, any) in [-1, 1] as their most likely codes (B, style_dim)."""
        return cast("Tensor", self.to_mean(self.features(images).flatten(1)))


class InnerStyleEncoder(nn.Module):
    """Encodes images as style codes; part of the generator (``inside``), published for cardiac MR.

    Images are halved to the generator's lowest resolution, where the residual blocks are.

    Raises:
        ValueError: If the lowest resolution is a single pixel wide or high, which cannot be mirrored at its border.

    Source: Amirrajab et al. 2022, "Pathology synthesis of 3D-consistent cardiac MR images using 2D VAEs and GANs"; the
    layers are those of Johnson et al. 2016, "Perceptual losses for real-time style transfer and super-resolution".
    """

    def __init__(self, config: SPADEConfig, *, num_blocks: int = 2, kernel_size: int = 7) -> None:
        super().__init__()
        if min(config.base) < 2:
            raise ValueError(
                f"image_size is {config.image_size}; a style encoder inside needs at least 2 x 2 pixels at the lowest "
                f"resolution, after {config.num_upsamplings} halvings"
            )
        self.size = config.image_size
        norm, widths = config.norm, [config.width << i for i in range(config.num_upsamplings + 1)]
        padding = kernel_size // 2
        self.layers = nn.Sequential(
            NormalisedConv(
                config.channels, widths[0], kernel_size, norm=norm, padding=padding, slope=0, padding_mode="reflect"
            ),
            *(NormalisedConv(a, b, 3, stride=2, norm=norm, slope=0) for a, b in pairwise(widths)),
            *(_ResidualBlock(widths[-1], norm) for _ in range(num_blocks)),
        )
        height, width = config.base
        self.to_code = nn.Linear(widths[-1] * height * width, config.style_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images (B, C, any, any) in [-1, 1] as codes (B, style_dim)."""
        if tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images, size=self.size, mode="bilinear", align_corners=False)
        return cast("Tensor", self.to_code(self.layers(images).flatten(1)))

    def mean(self, images: Tensor) -> Tensor:
        """Encode images as codes, which have no spread."""
        return cast("Tensor", self(images))


class _ResidualBlock(nn.Module):
    """Two convolutions with reflection padding, and a skip connection."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.first = NormalisedConv(channels, channels, 3, norm=norm, slope=0, padding_mode="reflect")
        self.second = NormalisedConv(channels, channels, 3, norm=norm, slope=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x + cast("Tensor", self.second(self.first(x)))
