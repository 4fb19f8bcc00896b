"""Normalisation with scales and shifts that depend on the label map."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medgen.nn.batch_norm import SynchronisedBatchNorm2d
from medgen.nn.spectral import PaddingMode, SpectralConv2d

Norm = Literal["batch", "instance", "group"]
_MOST_GROUPS, _SMALLEST_GROUP = 32, 4


def norm_layer(kind: Norm, channels: int, *, affine: bool) -> nn.Module:
    """Build a normalisation by its name.

    ``batch`` is over all processes; ``group`` has up to 32 groups of at least four channels; ``instance`` never has a
    learned scale and shift, as published.

    Raises:
        ValueError: If there is no such normalisation.
    """
    if kind == "batch":
        return SynchronisedBatchNorm2d(channels, affine=affine)
    if kind == "instance":
        return nn.InstanceNorm2d(channels)
    if kind == "group":
        groups = max(1, math.gcd(_MOST_GROUPS * _SMALLEST_GROUP, channels) // _SMALLEST_GROUP)
        return nn.GroupNorm(groups, channels, affine=affine)
    raise ValueError(f"norm is {kind!r}; use one of {', '.join(get_args(Norm))}")


class SpatialModulation(nn.Module):
    """Scale and shift of every pixel, from the label map around it (SPADE).

    Source: Park et al. 2019, "Semantic image synthesis with spatially-adaptive normalization", eq. 1 and appendix A.
    """

    def __init__(self, channels: int, num_classes: int, *, hidden: int = 128, kernel_size: int = 3) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.shared = nn.Conv2d(num_classes, hidden, kernel_size, padding=padding)
        self.gamma = nn.Conv2d(hidden, channels, kernel_size, padding=padding)
        self.beta = nn.Conv2d(hidden, channels, kernel_size, padding=padding)

    def forward(self, semantic: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scale and shift, each (B, channels, H, W), from a semantic map (B, num_classes, H, W)."""
        shared = F.relu(self.shared(semantic))
        return 1 + self.gamma(shared), self.beta(shared)


class ClassModulation(nn.Module):
    """Scale and shift of every pixel, from its class alone (CLADE).

    Source: Tan et al. 2021, "Efficient semantic image synthesis via class-adaptive normalization".
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(num_classes, channels))
        self.beta = nn.Parameter(torch.zeros(num_classes, channels))

    def forward(self, semantic: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scale and shift, each (B, channels, H, W), from a semantic map (B, num_classes, H, W)."""
        classes = semantic.argmax(1)
        scale, shift = (F.embedding(classes, table).movedim(-1, 1) for table in (self.gamma, self.beta))
        return scale, shift


class ModulatedNorm(nn.Module):
    """Normalises features, then scales and shifts them by the label map."""

    def __init__(self, norm: nn.Module, modulation: SpatialModulation | ClassModulation) -> None:
        super().__init__()
        self.norm = norm
        self.modulation = modulation

    def forward(self, x: Tensor, semantic: Tensor) -> Tensor:
        """Modulate features (B, C, H, W) by a semantic map (B, num_classes, H, W)."""
        scale, shift = self.modulation(semantic)
        return torch.addcmul(shift, self.norm(x), scale)


class NormalisedConv(nn.Module):
    """A spectrally normalised convolution without bias, a norm and a leaky ReLU: slope 0 is a ReLU, 1 no activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        norm: Norm,
        stride: int = 1,
        padding: int = 1,
        slope: float = 0.2,
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        super().__init__()
        self.conv = SpectralConv2d(
            in_channels, out_channels, kernel_size, stride, padding, bias=False, padding_mode=padding_mode
        )
        self.norm = norm_layer(norm, out_channels, affine=True)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H', W')."""
        x = self.norm(self.conv(x))
        return x if self.slope == 1 else F.leaky_relu(x, self.slope)
