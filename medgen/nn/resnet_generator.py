"""Image-to-image network with residual blocks at a quarter of the image size.

Source: Johnson et al. 2016, "Perceptual losses for real-time style transfer and super-resolution"; with the sizes of
Zhu et al. 2017, "Unpaired image-to-image translation using cycle-consistent adversarial networks", section 4.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medgen.nn.layers import normalisation

Norm = Literal["instance", "batch"]

_NUM_DOWNSAMPLINGS = 2
_SPREAD = 0.02  # standard deviation of initial weights


class ResNetGenerator(nn.Module):
    """Image-to-image generator.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        width: Channels at full size; there are four times as many at the quarter size of the blocks.
        blocks: Residual blocks; the authors use 9 for images of 256 pixels and more, 6 for 128.
        norm: Norm of the convolutions: "instance", without weights and running averages, or "batch".

    Raises:
        ValueError: If a size is not positive, or the norm is unknown.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, width: int = 64, blocks: int = 9, norm: Norm = "instance"
    ) -> None:
        super().__init__()
        check_sizes(norm, channels_in=channels_in, channels_out=channels_out, width=width, blocks=blocks)
        widths = [width * 2**level for level in range(_NUM_DOWNSAMPLINGS + 1)]
        self.stem = NormedConv(nn.Conv2d(channels_in, width, 7, bias=has_bias(norm)), norm)
        self.down = nn.ModuleList(
            NormedConv(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=has_bias(norm)), norm) for a, b in pairwise(widths)
        )
        self.blocks = nn.ModuleList(_ResidualBlock(widths[-1], norm) for _ in range(blocks))
        self.up = nn.ModuleList(
            NormedConv(nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=1, bias=has_bias(norm)), norm)
            for a, b in pairwise(reversed(widths))
        )
        self.last = nn.Conv2d(width, channels_out, 7)
        self.apply(initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Translate images (B, channels_in, H, W) in [-1, 1] to (B, channels_out, H, W) in [-1, 1].

        Raises:
            ValueError: If a side is not a multiple of 4, or less than 8.
        """
        factor = 2**_NUM_DOWNSAMPLINGS
        if any(side % factor or side < 2 * factor for side in images.shape[2:]):
            raise ValueError(
                f"images are {images.shape[2]} x {images.shape[3]}; this network needs sides that are multiples of "
                f"{factor} and at least {2 * factor}: crop or pad them"
            )
        x = F.relu(self.stem(F.pad(images, (3, 3, 3, 3), mode="reflect")))
        for layer in self.down:
            x = F.relu(layer(x))  # (B, 4 * width, H / 4, W / 4) at the end
        for block in self.blocks:
            x = block(x)
        for layer in self.up:
            x = F.relu(layer(x))
        return torch.tanh(self.last(F.pad(x, (3, 3, 3, 3), mode="reflect")))


class NormedConv(nn.Module):
    """A convolution and its norm, without an activation."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, norm: Norm) -> None:
        super().__init__()
        self.conv = conv
        self.norm = normalisation(norm, 2, conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H', W')."""
        out: Tensor = self.norm(self.conv(x))
        return out


class _ResidualBlock(nn.Module):
    """Two convolutions and a skip connection, without an activation after the sum."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.first = NormedConv(nn.Conv2d(channels, channels, 3, bias=has_bias(norm)), norm)
        self.second = NormedConv(nn.Conv2d(channels, channels, 3, bias=has_bias(norm)), norm)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first(F.pad(x, (1, 1, 1, 1), mode="reflect")))
        out: Tensor = x + self.second(F.pad(inner, (1, 1, 1, 1), mode="reflect"))
        return out


def has_bias(norm: Norm) -> bool:
    """Whether convolutions before a norm have a bias; official weights have an unneeded one before instance norm."""
    return norm == "instance"


def initialise(module: nn.Module) -> None:
    """Draw the initial weights of a convolution or batch norm in place."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, _SPREAD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, _SPREAD)
        nn.init.zeros_(module.bias)


def check_sizes(norm: str, **sizes: int) -> None:
    """Raise a `ValueError` for sizes below 1 and unknown norms."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; use at least 1")
    if norm not in get_args(Norm):
        raise ValueError(f"norm is {norm!r}; use one of {', '.join(map(repr, get_args(Norm)))}")
