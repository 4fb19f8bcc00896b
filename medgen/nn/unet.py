"""UNets for diffusion models.

Source: Mueller-Franzes et al. 2023, "A multimodal comparison of latent denoising diffusion probabilistic models and
generative adversarial networks for medical image synthesis".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from medgen.labels import LabelSpace
from medgen.nn.blocks import (
    BlockStyle,
    ConvBlock,
    DownLevel,
    Downsample,
    Level,
    LevelsConfig,
    UpLevel,
    Upsample,
    shrinkage,
)
from medgen.nn.embedding import NO_LABELS, label_embedding, sinusoidal_embedding
from medgen.nn.layers import LayerSpec, Size, convolution


@dataclass(frozen=True, kw_only=True)
class UNetConfig(LevelsConfig):
    """Shape of a UNet, whose stem is the first level; the defaults are those published.

    Attributes:
        blocks_per_level: Convolution pairs per level on the way down; there is one more on the way up.
        embedding_dim: Length of the embedding of time and label.
        wave_dim: Number of sines and cosines of time; None for a quarter of `embedding_dim`.
        learned_variance: Whether a second set of output channels estimates the variance.
        self_conditioning: Whether the network has input channels for an earlier estimate.

    Raises:
        ValueError: If the levels do not fit each other.
    """

    hidden: tuple[int, ...] = (256, 256, 512, 1024)
    norm: LayerSpec = ("group", {"num_groups": 32})
    blocks_per_level: int = 2
    embedding_dim: int = 1024
    wave_dim: int | None = None
    learned_variance: bool = False
    self_conditioning: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.levels) < 2:
            raise ValueError(f"hidden {self.hidden!r} has one entry; a UNet needs a stem and at least one level")

    @property
    def shrinkage(self) -> tuple[int, ...]:
        """Ratio of the sizes of the input of `UNet` and its coarsest features; the last level shrinks no further."""
        return shrinkage(self.levels[:-1], self.spatial_dims)


class TimeEmbedding(nn.Module):
    """Sines and cosines of time through two linear layers; `wave_dim` of them, by default a quarter of `dim`."""

    def __init__(self, dim: int, wave_dim: int | None = None) -> None:
        super().__init__()
        self.wave_dim = dim // 4 if wave_dim is None else wave_dim
        self.layers = nn.Sequential(nn.Linear(self.wave_dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        """Time steps (B,) to (B, dim)."""
        waves = sinusoidal_embedding(t, self.wave_dim)
        out: Tensor = self.layers(waves.to(next(self.parameters()).dtype))
        return out


class _ConditionedUNet(nn.Module, ABC):
    """Base of both UNets: the embedding of time and label, self-conditioning, output heads.

    Args:
        config: Shape of the network.
        in_channels: Channels of the noisy latent.
        out_channels: Channels of the estimate; None for those of the latent.
        label_space: Labels it is conditioned on.
    """

    shrinkage: tuple[int, ...]
    """Sides of the input must be multiples of these."""

    def __init__(
        self,
        config: UNetConfig,
        in_channels: int,
        out_channels: int | None = None,
        label_space: LabelSpace = NO_LABELS,
    ) -> None:
        super().__init__()
        head_channels = self.head_channels(config.levels)
        if not 0 <= config.extra_heads < len(head_channels):
            raise ValueError(
                f"extra_heads {config.extra_heads} is out of range; these levels allow 0-{len(head_channels) - 1}"
            )
        self.config = config
        self.embed_time = TimeEmbedding(config.embedding_dim, config.wave_dim)
        self.embed_label = label_embedding(label_space, config.embedding_dim)
        out_channels = in_channels if out_channels is None else out_channels
        self.heads = nn.ModuleList(  # fine to coarse
            convolution(
                config.spatial_dims,
                channels,
                2 * out_channels if i == 0 and config.learned_variance else out_channels,
                kernel_size=1,
            )
            for i, channels in enumerate(head_channels[: config.extra_heads + 1])
        )
        self.build(config, in_channels * (2 if config.self_conditioning else 1))

    @abstractmethod
    def head_channels(self, levels: list[Level]) -> list[int]:
        """Channels that each output head may read, fine to coarse."""

    @abstractmethod
    def build(self, config: UNetConfig, channels: int) -> None:
        """Build all layers between the input, of so many channels, and the output heads."""

    @abstractmethod
    def features(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """Inputs of the output heads, full resolution first, from (B, C, *spatial) and an embedding (B, E)."""

    def embedding(self, t: Tensor, label: Tensor | None) -> Tensor:
        """Embedding (B, E) of time steps (B,) and labels; no label adds nothing.

        Raises:
            ValueError: If there is a label but the network was built without.
        """
        embedding: Tensor = self.embed_time(t)
        if label is not None:
            if self.embed_label is None:
                raise ValueError("this network was built without labels; call it with label=None")
            embedding = embedding + self.embed_label(label)
        return embedding

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        """Estimate at full resolution.

        Args:
            x_t: Noisy latents, (B, in_channels, *spatial).
            t: Time steps, (B,).
            label: Classes (B,) int64, -1 for none; or conditions (B, K) float32, NaN where unknown; or None.
            self_cond: Earlier estimate in the shape of x_t, for self-conditioned networks.

        Returns:
            (B, out_channels, *spatial), followed by as many channels of variance if it is learned.

        Raises:
            ValueError: If the network was built without labels or self-conditioning but gets either, or the sides of
                x_t are not multiples of `shrinkage`.
        """
        x, embedding = self._input(x_t, self_cond), self.embedding(t, label)
        out: Tensor = self.heads[0](self.features(x, embedding)[0])
        return out

    def multiscale(
        self, x_t: Tensor, t: Tensor, label: Tensor | None = None, self_cond: Tensor | None = None
    ) -> list[Tensor]:
        """Estimates of all output heads, full resolution first; only the first one has a variance."""
        x, embedding = self._input(x_t, self_cond), self.embedding(t, label)
        return [head(h) for head, h in zip(self.heads, self.features(x, embedding), strict=False)]

    def _input(self, x_t: Tensor, self_cond: Tensor | None) -> Tensor:
        sides = tuple(x_t.shape[2:])
        if len(sides) != len(self.shrinkage) or any(n % by for n, by in zip(sides, self.shrinkage, strict=True)):
            raise ValueError(f"x_t has spatial size {sides}; this UNet needs multiples of {self.shrinkage}")
        if not self.config.self_conditioning:
            if self_cond is not None:
                raise ValueError("this network was built without self_conditioning; call it with self_cond=None")
            return x_t
        # As published: x_t is repeated in place of the earlier estimate, and zeros are used where there is none.
        return torch.cat([x_t, torch.zeros_like(x_t) if self_cond is None else x_t], dim=1)


class UNetBlock(nn.Module):
    """A convolution pair, attention if the level has it, and upsampling if the block ends a level on the way up."""

    def __init__(
        self, in_channels: int, out_channels: int, level: Level, style: BlockStyle, *, up: Size | None = None
    ) -> None:
        super().__init__()
        self.block = ConvBlock(in_channels, out_channels, style, kernel_size=level.kernel_size)
        self.attention = style.attention_layer(level.attention, out_channels)
        self.up = None if up is None else Upsample(out_channels, out_channels, style, stride=up)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, in_channels, *spatial) to (B, out_channels, *spatial * up)."""
        h: Tensor = self.block(x, embedding)
        if self.attention is not None:
            h = self.attention(h, embedding)
        return h if self.up is None else self.up(h)


class UNet(_ConditionedUNet):
    """The published UNet: several blocks per level, with concatenated skips from every block on the way down.

    Features shrink once less than there are levels; the last stride is unused.
    """

    def head_channels(self, levels: list[Level]) -> list[int]:
        """Channels of possible output heads; lower ones read the input of the last block of their level."""
        return [levels[0].channels, *(fine.channels + coarse.channels for fine, coarse in pairwise(levels[1:]))]

    def build(self, config: UNetConfig, channels: int) -> None:
        """Build the stem, the ways down and up, and the middle between them."""
        levels, n = config.levels, config.blocks_per_level
        if n < 1:
            raise ValueError(f"blocks_per_level {n} is out of range; use 1 or more")
        stem, last = levels[0], levels[-1]
        self.shrinkage = config.shrinkage
        self.stem = convolution(config.spatial_dims, channels, stem.channels, stem.kernel_size, stem.stride)
        down: list[nn.Module] = []
        up: list[nn.Module] = []  # from fine to coarse, reversed below
        for fine, coarse in pairwise(levels):
            width = coarse.channels
            down.append(UNetBlock(fine.channels, width, coarse, config))
            down += [UNetBlock(width, width, coarse, config) for _ in range(n - 1)]
            if coarse is not last:
                down.append(Downsample(width, width, config, kernel_size=coarse.kernel_size, stride=coarse.stride))
            stride = None if fine is stem else fine.stride
            up.append(UNetBlock(width + fine.channels, fine.channels, coarse, config, up=stride))
            up += [UNetBlock(2 * width, width, coarse, config) for _ in range(n)]
        self.down = nn.ModuleList(down)
        self.middle = nn.ModuleList(
            UNetBlock(last.channels, last.channels, level, config) for level in (last, last._replace(attention="none"))
        )
        self.up = nn.ModuleList(reversed(up))

    def features(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """Inputs of the output heads, full resolution first."""
        h = self.stem(x)
        skips = [h]
        for block in self.down:
            h = block(h, embedding)
            skips.append(h)
        for block in self.middle:
            h = block(h, embedding)
        ends = []
        for block in self.up:
            h = torch.cat([h, skips.pop()], dim=1)
            if block.up is not None:
                ends.append(h)
            h = block(h, embedding)
        return [h, *reversed(ends)]


class AdditiveUNet(_ConditionedUNet):
    """The older UNet: one block per level, whatever `blocks_per_level`, and added skips.

    Without learned resampling the skips are concatenated.
    """

    def head_channels(self, levels: list[Level]) -> list[int]:
        """Channels of each level."""
        return [level.channels for level in levels]

    def build(self, config: UNetConfig, channels: int) -> None:
        """Build the stem and the ways down and up."""
        levels = config.levels
        self.shrinkage = shrinkage(levels, config.spatial_dims)
        stem = levels[0]
        self.stem = ConvBlock(channels, stem.channels, config, kernel_size=stem.kernel_size, stride=stem.stride)
        pairs = list(pairwise(levels))
        self.down = nn.ModuleList(DownLevel(fine.channels, coarse, config) for fine, coarse in pairs)
        self.up = nn.ModuleList(
            UpLevel(coarse, fine, config, skip_channels=fine.channels) for fine, coarse in reversed(pairs)
        )

    def features(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """Inputs of the output heads, full resolution first."""
        skips = [self.stem(x, embedding)]
        for level in self.down:
            skips.append(level(skips[-1], embedding))
        h = skips.pop()
        features = [h]
        for level in self.up:
            h = level(h, skips.pop(), embedding)
            features.append(h)
        return features[::-1]
