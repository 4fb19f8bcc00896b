"""Blocks of autoencoders and UNets: convolution pairs, down- and upsampling, and levels of them.

All blocks work on images (spatial_dims=2) and volumes (spatial_dims=3). `embedding` is one vector per sample, (B, E).

Source: Mueller-Franzes et al. 2023, "A multimodal comparison of latent denoising diffusion probabilistic models and
generative adversarial networks for medical image synthesis".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medgen.config import Config
from medgen.nn.attention import AttentionKind, attention
from medgen.nn.layers import (
    LayerSpec,
    Size,
    activation,
    average_pool,
    convolution,
    dropout,
    normalisation,
    per_dimension,
    zero_init,
)


@dataclass(frozen=True, kw_only=True)
class BlockStyle(Config):
    """Options shared by all blocks of a network.

    Attributes:
        spatial_dims: 2 for images, 3 for volumes.
        norm: Normalisation after every convolution.
        activation: Activation after the normalisation.
        dropout: Share of channels dropped in training.
        residual: Whether each convolution of a pair adds its input.
        learned_resampling: Whether resampling uses convolutions; if not, average pooling and nearest neighbour.
    """

    spatial_dims: int = 2
    norm: LayerSpec = ("group", {"num_groups": 8})
    activation: LayerSpec = "swish"
    dropout: float = 0.0
    residual: bool = True
    learned_resampling: bool = True

    @property
    def embedding_dim(self) -> int | None:
        """Length of the embedding that conditions every block, or None; configs of some networks override it."""
        return None

    def attention_layer(self, kind: AttentionKind, channels: int) -> nn.Module | None:
        """Build the attention layer of a level in this style; None for kind "none"."""
        return attention(
            kind, self.spatial_dims, channels, norm=self.norm, dropout=self.dropout, embedding_dim=self.embedding_dim
        )


class Level(NamedTuple):
    """Options that differ between the levels of a network."""

    channels: int
    kernel_size: Size
    stride: Size
    attention: AttentionKind


def make_levels(
    hidden: Sequence[int],
    kernel_sizes: int | Sequence[Size],
    strides: Sequence[Size],
    attention: AttentionKind | Sequence[AttentionKind],
) -> list[Level]:
    """Levels of a network, finest first; a single kernel size or kind of attention applies to all of them.

    Raises:
        ValueError: If a sequence is not as long as `hidden`.
    """
    per_level = {
        "kernel_sizes": [kernel_sizes] * len(hidden) if isinstance(kernel_sizes, int) else kernel_sizes,
        "strides": strides,
        "attention": [attention] * len(hidden) if isinstance(attention, str) else attention,
    }
    for name, values in per_level.items():
        if len(values) != len(hidden):
            raise ValueError(
                f"{name} has {len(values)} entries, hidden has {len(hidden)}; give one per level, not {name} {values} "
                f"for hidden {hidden}"
            )
    return [Level(*values) for values in zip(hidden, *per_level.values(), strict=True)]


def shrinkage(levels: Sequence[Level], spatial_dims: int) -> tuple[int, ...]:
    """Product of the strides of levels, along each dimension."""
    strides = [per_dimension(level.stride, spatial_dims) for level in levels]
    return tuple(prod(along) for along in zip(*strides, strict=True))


@dataclass(frozen=True, kw_only=True)
class LevelsConfig(BlockStyle):
    """Shape of a network of several levels, finest first.

    Attributes:
        hidden: Channels of each level.
        kernel_sizes: One for all levels, or one per level.
        strides: Downsampling factor on entering each level.
        attention: One kind for all levels, or one per level.
        extra_heads: Number of outputs at lower resolutions, for deep supervision.

    Raises:
        ValueError: If the levels do not fit each other or the norm.
    """

    hidden: tuple[int, ...]
    kernel_sizes: int | tuple[Size, ...] = 3
    strides: tuple[Size, ...] = (1, 2, 2, 2)
    attention: AttentionKind | tuple[AttentionKind, ...] = "none"
    extra_heads: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.levels:
            raise ValueError("hidden has no entry; give the channels of each level")
        groups = self.norm[1].get("num_groups") if not isinstance(self.norm, str) else None
        if isinstance(groups, int) and (odd := [width for width in self.hidden if width % groups]):
            raise ValueError(
                f"num_groups of norm is {groups}, which does not divide {', '.join(map(str, odd))} of hidden "
                f"{self.hidden}; use a number that divides them all"
            )

    @property
    def levels(self) -> list[Level]:
        """All levels, finest first."""
        return make_levels(self.hidden, self.kernel_sizes, self.strides, self.attention)


class ConvUnit(nn.Module):
    """Convolution, norm, dropout, activation, in this order."""

    def __init__(
        self, in_channels: int, out_channels: int, style: BlockStyle, *, kernel_size: Size = 3, stride: Size = 1
    ) -> None:
        super().__init__()
        self.conv = convolution(style.spatial_dims, in_channels, out_channels, kernel_size, stride)
        self.norm = normalisation(style.norm, style.spatial_dims, out_channels)
        self.dropout = dropout(style.dropout, style.spatial_dims)
        self.activation = activation(style.activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *spatial) to (B, out_channels, *spatial / stride)."""
        out: Tensor = self.activation(self.dropout(self.norm(self.conv(x))))
        return out


class ConvBlock(nn.Module):
    """Two convolution units, of which the second starts at zero, and a projected embedding.

    The embedding is added after the first unit in residual blocks, otherwise after both.
    """

    def __init__(
        self, in_channels: int, out_channels: int, style: BlockStyle, *, kernel_size: Size = 3, stride: Size = 1
    ) -> None:
        super().__init__()
        self.residual = style.residual
        self.first = ConvUnit(in_channels, out_channels, style, kernel_size=kernel_size, stride=stride)
        self.second = ConvUnit(out_channels, out_channels, style, kernel_size=kernel_size)
        zero_init(self.second.conv)
        keeps_shape = in_channels == out_channels and set(per_dimension(stride, style.spatial_dims)) == {1}
        self.shortcut = (
            convolution(style.spatial_dims, in_channels, out_channels, kernel_size=1, stride=stride)
            if style.residual and not keeps_shape
            else nn.Identity()
        )
        self.project_embedding = (
            nn.Sequential(activation(style.activation), nn.Linear(style.embedding_dim, out_channels))
            if style.embedding_dim
            else None
        )

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """(B, in_channels, *spatial) to (B, out_channels, *spatial / stride)."""
        shift = None
        if self.project_embedding is not None and embedding is not None:
            shift = self.project_embedding(embedding)
            shift = shift.view(*shift.shape, *[1] * (x.ndim - 2))  # (B, out_channels, 1, 1)

        h: Tensor = self.first(x)
        if self.residual:
            h = h + self.shortcut(x)
        if shift is not None:
            h = h + shift
        out: Tensor = self.second(h)
        if self.residual:
            return out + h
        return out if shift is None else out + shift


class Downsample(nn.Module):
    """A strided convolution, or an average pool that keeps the number of channels."""

    def __init__(
        self, in_channels: int, out_channels: int, style: BlockStyle, *, kernel_size: Size = 3, stride: Size = 2
    ) -> None:
        super().__init__()
        self.op = (
            convolution(style.spatial_dims, in_channels, out_channels, kernel_size, stride)
            if style.learned_resampling
            else average_pool(style.spatial_dims, kernel_size, stride)
        )

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """(B, in_channels, *spatial) to (B, out_channels, *spatial / stride); the embedding is unused."""
        out: Tensor = self.op(x)
        return out


class Upsample(nn.Module):
    """Nearest-neighbour upsampling, then a 3x3 convolution if resampling is learned."""

    def __init__(self, in_channels: int, out_channels: int, style: BlockStyle, *, stride: Size = 2) -> None:
        super().__init__()
        self.stride = per_dimension(stride, style.spatial_dims)
        self.conv = (
            convolution(style.spatial_dims, in_channels, out_channels) if style.learned_resampling else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *spatial) to (B, out_channels, *spatial * stride)."""
        size = [n * stride for n, stride in zip(x.shape[2:], self.stride, strict=True)]
        out: Tensor = self.conv(nn.functional.interpolate(x, size=size, mode="nearest-exact"))
        return out

    def inference_form(self) -> nn.Module:
        """One transposed convolution, which multiplies each pixel once instead of once per copy.

        Its kernel is the flipped 3x3 kernel, convolved with a box as large as the stride.
        """
        if not isinstance(self.conv, nn.Conv2d):
            return self
        if set(self.stride) == {1}:
            return self.conv
        kernel = self.conv.weight.detach().flip(2, 3).transpose(0, 1)  # (in, out, 3, 3)
        rows, columns = self.stride
        box = kernel.new_ones(1, 1, rows, columns)
        in_channels, out_channels = kernel.shape[:2]
        kernel = nn.functional.conv2d(kernel.reshape(-1, 1, 3, 3), box, padding=(rows - 1, columns - 1))
        transposed = nn.ConvTranspose2d(
            in_channels, out_channels, (rows + 2, columns + 2), (rows, columns), padding=1, device="meta"
        )
        transposed.weight = nn.Parameter(
            kernel.view(in_channels, out_channels, rows + 2, columns + 2), requires_grad=False
        )
        transposed.bias = self.conv.bias
        return transposed


class DownLevel(nn.Module):
    """Downsampling, attention, convolution pair: a level of the autoencoder and the additive UNet."""

    def __init__(self, in_channels: int, level: Level, style: BlockStyle) -> None:
        super().__init__()
        channels = level.channels if style.learned_resampling else in_channels
        self.down = Downsample(in_channels, level.channels, style, kernel_size=level.kernel_size, stride=level.stride)
        self.attention = style.attention_layer(level.attention, channels)
        self.block = ConvBlock(channels, level.channels, style, kernel_size=level.kernel_size)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """(B, in_channels, *spatial) to (B, level.channels, *spatial / stride)."""
        x = self.down(x)
        if self.attention is not None:
            x = self.attention(x, embedding)
        out: Tensor = self.block(x, embedding)
        return out


class UpLevel(nn.Module):
    """Upsampling, skip, attention, convolution pair, from one level to the next finer one.

    With learned resampling the skip has the finer level's channels and is added, otherwise it is concatenated.

    Args:
        coarse: Level of the input, which sets kernel size and stride.
        fine: Level of the output, which sets the attention.
        style: Options of all blocks.
        skip_channels: Channels of the skip, 0 without one.
    """

    def __init__(self, coarse: Level, fine: Level, style: BlockStyle, *, skip_channels: int = 0) -> None:
        super().__init__()
        self.adds_skip = style.learned_resampling
        channels = fine.channels if style.learned_resampling else coarse.channels + skip_channels
        self.up = Upsample(coarse.channels, fine.channels, style, stride=coarse.stride)
        self.attention = style.attention_layer(fine.attention, channels)
        self.block = ConvBlock(channels, fine.channels, style, kernel_size=coarse.kernel_size)

    def forward(self, x: Tensor, skip: Tensor | None = None, embedding: Tensor | None = None) -> Tensor:
        """(B, coarse.channels, *spatial) to (B, fine.channels, *spatial * stride)."""
        x = self.up(x)
        if skip is not None:
            x = x + skip if self.adds_skip else torch.cat([x, skip], dim=1)
        if self.attention is not None:
            x = self.attention(x, embedding)
        out: Tensor = self.block(x, embedding)
        return out
