"""Encoders of style: what an image looks like, apart from what is where."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from medgen.families.spade.networks import SPADEShape
from medgen.families.spade.normalisation import Norm, NormalisedConv

_SMALLEST = 4
"""Pixels along the shorter side at which halving ends."""
_MOST_HALVINGS = 6
_WIDEST = 8
"""Channels of the coarsest layers, times the width."""


class StyleEncoder(nn.Module):
    """A normal distribution of style codes for an image; trained beside the generator (``vae``).

    Args:
        image_size: Height and width of the images.
        channels: Channels of the images.
        width: Channels of the first layer.
        style_dim: Length of the codes.
        size: Height and width that images are brought to; None for `image_size`. 256 is published.
        norm: The norm of its layers.
        halvings: Number of layers, each of which halves the size; None for as many as leave 4 pixels, but at most 6.

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
        """What the layers make of images (B, C, any, any) in [-1, 1]: (B, F, h, w)."""
        if tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images, size=self.size, mode="bilinear", align_corners=False)
        return cast("Tensor", self.layers(images))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each (B, style_dim), of images (B, C, any, any) in [-1, 1]."""
        features = self.features(images).flatten(1)
        return self.to_mean(features), self.to_log_variance(features)

    def mean(self, images: Tensor) -> Tensor:
        """The likeliest code (B, style_dim) of images (B, C, any, any) in [-1, 1]."""
        return cast("Tensor", self.to_mean(self.features(images).flatten(1)))


class InnerStyleEncoder(nn.Module):
    """The style code of an image; part of the generator (``inside``), published for cardiac MR.

    Args:
        shape: Sizes of the generator; images are halved to its lowest resolution.
        num_blocks: Residual blocks at the lowest resolution.
        kernel_size: Of the first convolution.

    Raises:
        ValueError: If the lowest resolution is a single pixel wide or high, which cannot be mirrored at its border.

    Source: Amirrajab et al. 2022, "Pathology synthesis of 3D-consistent cardiac MR images using 2D VAEs and GANs"; the
    layers are those of Johnson et al. 2016, "Perceptual losses for real-time style transfer and super-resolution".
    """

    def __init__(self, shape: SPADEShape, *, num_blocks: int = 2, kernel_size: int = 7) -> None:
        super().__init__()
        if min(shape.base) < 2:
            raise ValueError(
                f"image_size is {shape.image_size}; a style encoder inside needs at least 2 x 2 pixels at the lowest "
                f"resolution, after {shape.doublings} halvings"
            )
        self.size = shape.image_size
        widths = [shape.width << i for i in range(shape.doublings + 1)]
        self.layers = nn.Sequential(
            NormalisedConv(
                shape.channels,
                shape.width,
                kernel_size,
                norm=shape.norm,
                padding=kernel_size // 2,
                slope=0,
                padding_mode="reflect",
            ),
            *(NormalisedConv(a, b, 3, stride=2, norm=shape.norm, slope=0) for a, b in pairwise(widths)),
            *(_ResidualBlock(widths[-1], shape.norm) for _ in range(num_blocks)),
        )
        height, width = shape.base
        self.to_code = nn.Linear(widths[-1] * height * width, shape.style_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Codes (B, style_dim) of images (B, C, any, any) in [-1, 1]."""
        if tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images, size=self.size, mode="bilinear", align_corners=False)
        return cast("Tensor", self.to_code(self.layers(images).flatten(1)))

    def mean(self, images: Tensor) -> Tensor:
        """The code itself: it has no spread."""
        return cast("Tensor", self(images))


class _ResidualBlock(nn.Module):
    """Two convolutions that see the image mirrored at its borders."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.first = NormalisedConv(channels, channels, 3, norm=norm, slope=0, padding_mode="reflect")
        self.second = NormalisedConv(channels, channels, 3, norm=norm, slope=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x + cast("Tensor", self.second(self.first(x)))
