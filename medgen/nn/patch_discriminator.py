"""Patch discriminators: one logit per image patch.

Source: Isola et al. 2017, "Image-to-image translation with conditional adversarial networks", section 3.2.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from medgen.nn.blocks import BlockStyle, ConvUnit, make_levels
from medgen.nn.layers import Size, convolution
from medgen.nn.resnet_generator import Norm, NormedConv, check_sizes, has_bias, initialise

_WIDEST = 8  # times the width of the first layer
_SLOPE = 0.2
_DEFAULT_STYLE = BlockStyle()


class PatchDiscriminator(nn.Module):
    """A chain of layers that ends in one logit per patch.

    Args:
        first: Layer that reads the image, with its activation.
        layers: Layers between, each with its activation.
        last: Layer that computes the logits.
        least: Smallest height and width of images in pixels.
    """

    def __init__(self, first: nn.Module, layers: Iterable[nn.Module], last: nn.Module, *, least: int = 1) -> None:
        super().__init__()
        self.first = first
        self.layers = nn.ModuleList(layers)
        self.last = last
        self.least = least

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in [name for name in state_dict if name.startswith((f"{prefix}units.", f"{prefix}head."))]:
            part, _, rest = name.removeprefix(prefix).partition(
                "."
            )  # of a training run that began with an older medgen
            number, _, inner = rest.partition(".")
            layer = f"last.{rest}" if part == "head" else f"first.{inner}" if number == "0" else ""
            state_dict[prefix + (layer or f"layers.{int(number) - 1}.{inner}")] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def features(self, images: Tensor) -> list[Tensor]:
        """Outputs of all layers for images (B, C, H, W) in [-1, 1]; the last one holds the logits (B, 1, H', W').

        Raises:
            ValueError: If the images are too small for one patch.
        """
        if min(images.shape[2:]) < self.least:
            raise ValueError(
                f"images are {' x '.join(map(str, images.shape[2:]))}; a discriminator of {len(self.layers)} layers "
                f"needs at least {self.least} a side: use fewer layers"
            )
        found = [self.first(images)]
        for layer in self.layers:
            found.append(layer(found[-1]))
        return [*found, self.last(found[-1])]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1, H', W') of images (B, C, H, W) in [-1, 1]: unbounded, high for real."""
        return self.features(images)[-1]


class LeakyConv2d(nn.Conv2d):
    """A convolution with a leaky ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_channels, H', W')."""
        return F.leaky_relu(super().forward(input), _SLOPE)


class _LeakyNormedConv(NormedConv):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(super().forward(x), _SLOPE)


def patch_discriminator(
    channels: int, *, width: int = 64, layers: int = 3, norm: Norm = "instance"
) -> PatchDiscriminator:
    """Build the published discriminator; with 3 layers each logit sees 70 x 70 pixels, and H' is H / 8 - 2.

    Args:
        channels: Channels of the images.
        width: Channels of the first layer; they double in each later one, up to eight times as many.
        layers: Number of layers between the first and the last. The first and all but the last of these halve the size.
        norm: Norm of all layers but the first and the last.

    Raises:
        ValueError: If a size is not positive, or the norm is unknown.
    """
    check_sizes(norm, channels=channels, width=width, layers=layers)
    widths = [width * min(2**i, _WIDEST) for i in range(layers + 1)]
    between = [
        _LeakyNormedConv(nn.Conv2d(a, b, 4, stride=2 if i < layers else 1, padding=1, bias=has_bias(norm)), norm)
        for i, (a, b) in enumerate(pairwise(widths), start=1)
    ]
    network = PatchDiscriminator(
        LeakyConv2d(channels, width, 4, stride=2, padding=1),
        between,
        nn.Conv2d(widths[-1], 1, 4, padding=1),
        least=3 * 2**layers,
    )
    return network.apply(initialise)


def unit_discriminator(
    channels: int = 3,
    *,
    hidden: Sequence[int] = (64, 128, 256, 512),
    kernel_sizes: int | Sequence[Size] = 3,
    strides: Sequence[Size] = (1, 2, 2, 2),
    style: BlockStyle = _DEFAULT_STYLE,
) -> PatchDiscriminator:
    """Build a discriminator of `ConvUnit` layers for images or volumes, one layer per entry of `hidden`.

    Source: Mueller-Franzes et al. 2023, "A multimodal comparison of latent denoising diffusion probabilistic models and
    generative adversarial networks for medical image synthesis"; one for each output head of the autoencoder.
    """
    levels = make_levels(hidden, kernel_sizes, strides, "none")
    first, *between = (
        ConvUnit(width, level.channels, style, kernel_size=level.kernel_size, stride=level.stride)
        for width, level in zip([channels, *hidden[:-1]], levels, strict=True)
    )
    return PatchDiscriminator(first, between, convolution(style.spatial_dims, hidden[-1], 1))
