"""PixelSNAIL, an autoregressive prior of maps of codes in reading order."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from medgen.config import Config
from medgen.labels import LabelSpace
from medgen.nn.embedding import NO_LABELS, label_embedding

HEADS = 8
"""Heads of every attention."""


@dataclass(frozen=True, kw_only=True)
class PixelSNAILConfig(Config):
    """Shape of a prior; the defaults are those published for the top map.

    Attributes:
        hidden_channels: Channels between blocks.
        kernel_size: Width of the causal convolutions, odd.
        blocks: Number of blocks.
        residual_blocks: Residual blocks in each block.
        residual_channels: Channels within residual blocks.
        attention: Whether each block ends in attention over all earlier codes.
        output_blocks: Residual blocks after the last block.
        condition_blocks: Residual blocks of the network that reads the coarser map, if there is one.
        condition_channels: Channels of that network.
        label_dim: Length of the label embedding.
        dropout: Dropout probability in residual blocks and attention.

    Raises:
        ValueError: If a field is out of range.
    """

    hidden_channels: int = 256
    kernel_size: int = 5
    blocks: int = 4
    residual_blocks: int = 4
    residual_channels: int = 256
    attention: bool = True
    output_blocks: int = 0
    condition_blocks: int = 3
    condition_channels: int = 256
    label_dim: int = 256
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel_size % 2 == 0 or self.kernel_size < 3:
            raise ValueError(f"kernel_size is {self.kernel_size}; use an odd number from 3 on")
        if self.attention and self.hidden_channels % 16:
            raise ValueError(f"hidden_channels is {self.hidden_channels}; attention needs a multiple of 16")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it is a probability from 0 to below 1")


class NormedConvolution(nn.Module):
    """A convolution with weight normalisation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Height and width.
        pad: Zeros on the left, right, top and bottom; negative numbers crop.
        causal: Whether to mask the lower row from its middle on.
        bias: Whether to add a bias.

    Source: Salimans and Kingma 2016, "Weight normalization", eq. 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int] = (1, 1),
        pad: tuple[int, int, int, int] = (0, 0, 0, 0),
        *,
        causal: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.pad = pad
        self.weight_v = nn.Parameter(torch.empty(out_channels, in_channels, *kernel))
        self.weight_g = nn.Parameter(torch.empty(out_channels, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        seen = torch.ones(kernel)
        if causal:
            seen[-1, kernel[1] // 2 :] = 0
        self.seen: Tensor
        self.register_buffer("seen", seen, persistent=False)
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))
        with torch.no_grad():
            self.weight_g.copy_((self.weight_v * seen).flatten(1).norm(dim=1).view(-1, 1, 1, 1))

    @property
    def weight(self) -> Tensor:
        """Effective weights, (out, in, height, width)."""
        seen = self.weight_v * self.seen
        applied: Tensor = seen * (self.weight_g / seen.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
        return applied

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H', W')."""
        return F.conv2d(F.pad(x, self.pad), self.weight, self.bias)


def same(in_channels: int, out_channels: int, kernel: int) -> NormedConvolution:
    """A convolution that keeps the size, not causal."""
    half = kernel // 2
    return NormedConvolution(in_channels, out_channels, (kernel, kernel), (half, half, half, half))


def causal(in_channels: int, out_channels: int, kernel: int) -> NormedConvolution:
    """A convolution that keeps the size and sees only rows above and pixels to the left."""
    half = kernel // 2
    return NormedConvolution(in_channels, out_channels, (kernel, kernel), (half, half, kernel - 1, 0), causal=True)


def pointwise(in_channels: int, out_channels: int, *, bias: bool = True) -> NormedConvolution:
    """A 1x1 convolution."""
    return NormedConvolution(in_channels, out_channels, bias=bias)


class GatedResidualBlock(nn.Module):
    """A residual block of two convolutions and a gated linear unit.

    Args:
        channels: Channels of input and output.
        hidden: Channels between the convolutions.
        make: Builds a convolution from its numbers of input and output channels.
        auxiliary_channels: Channels of a second input, added after the first convolution; 0 for none.
        condition_channels: Channels of a map added before the gate; 0 for none.
        label_dim: Length of a label embedding added before the gate; 0 for none.
        dropout: Dropout probability between the convolutions.

    Source: Chen et al. 2018, "PixelSNAIL: an improved autoregressive generative model", figure 2; with a linear form of
    the gate of van den Oord et al. 2016, "Conditional image generation with PixelCNN decoders", eq. 2.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        make: Callable[[int, int], NormedConvolution],
        *,
        auxiliary_channels: int = 0,
        condition_channels: int = 0,
        label_dim: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.first = make(channels, hidden)
        self.second = make(hidden, 2 * channels)
        self.auxiliary = pointwise(auxiliary_channels, hidden) if auxiliary_channels else None
        self.condition = pointwise(condition_channels, 2 * channels, bias=False) if condition_channels else None
        self.label = nn.Linear(label_dim, 2 * channels, bias=False) if label_dim else None
        self.dropout = dropout

    def forward(
        self, x: Tensor, auxiliary: Tensor | None = None, condition: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor:
        """(B, C, H, W) to the same shape."""
        out = self.first(F.elu(x))
        if self.auxiliary is not None and auxiliary is not None:
            out = out + self.auxiliary(F.elu(auxiliary))
        out = self.second(F.dropout(F.elu(out), self.dropout, self.training))
        if self.condition is not None and condition is not None:
            out = out + self.condition(condition)
        if self.label is not None and label is not None:
            out = out + self.label(label)[:, :, None, None]
        return x + F.glu(out, dim=1)


class CausalAttention(nn.Module):
    """Attention of every pixel to all earlier ones; the first pixel gets zeros."""

    def __init__(self, query_channels: int, key_channels: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.query = pointwise(query_channels, channels)
        self.key = pointwise(key_channels, channels)
        self.value = pointwise(key_channels, channels)
        self.dropout = dropout

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Map (B, query_channels, H, W) and (B, key_channels, H, W) to (B, channels, H, W)."""
        height, width = query.shape[-2:]
        parts = (self.query(query), self.key(key), self.value(key))
        q, k, v = (rearrange(part, "b (n d) h w -> b n (h w) d", n=HEADS) for part in parts)
        # The first pixel is left out, so that no row of the mask is empty.
        before = torch.ones(height * width - 1, height * width, dtype=torch.bool, device=q.device).tril()
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(q[:, :, 1:], k, v, attn_mask=before, dropout_p=dropout)
        found = F.pad(found, (0, 0, 1, 0))
        return rearrange(found, "b n (h w) d -> b (n d) h w", h=height)


class PixelBlock(nn.Module):
    """Causal residual blocks, then attention over all earlier codes, or a pointwise layer that sees the position."""

    def __init__(self, config: PixelSNAILConfig, *, conditioned: bool, labelled: bool) -> None:
        super().__init__()
        width, dropout = config.hidden_channels, config.dropout
        self.residual = nn.ModuleList(
            GatedResidualBlock(
                width,
                config.residual_channels,
                partial(causal, kernel=config.kernel_size),
                condition_channels=config.condition_channels if conditioned else 0,
                label_dim=config.label_dim if labelled else 0,
                dropout=dropout,
            )
            for _ in range(config.residual_blocks)
        )
        if config.attention:
            block = partial(GatedResidualBlock, hidden=width, make=pointwise, dropout=dropout)
            self.key_block = block(2 * width + 2)
            self.query_block = block(width + 2)
            self.attention = CausalAttention(width + 2, 2 * width + 2, width // 2, dropout)
            self.merge = block(width, auxiliary_channels=width // 2)
        else:
            self.place = pointwise(width + 2, width)
        self.has_attention = config.attention

    def forward(self, x: Tensor, place: Tensor, condition: Tensor | None, label: Tensor | None) -> Tensor:
        """(B, C, H, W) to the same shape; `place` is (B, 2, H, W)."""
        out = x
        for block in self.residual:
            out = block(out, condition=condition, label=label)
        if not self.has_attention:
            return cast("Tensor", self.place(torch.cat([out, place], dim=1)))
        key = self.key_block(torch.cat([x, out, place], dim=1))
        query = self.query_block(torch.cat([out, place], dim=1))
        return cast("Tensor", self.merge(out, auxiliary=self.attention(query, key)))


class PixelSNAIL(nn.Module):
    """Prior of a map of codes: logits of every code given the earlier ones in reading order.

    Args:
        config: Shape of the network.
        size: Height and width of the map.
        num_codes: Size of the codebook.
        condition_codes: Size of the codebook of the coarser map, of half the height and width; None without one.
        label_space: Labels it is conditioned on.

    Source: Chen et al. 2018, "PixelSNAIL: an improved autoregressive generative model"; Razavi et al. 2019,
    "Generating diverse high-fidelity images with VQ-VAE-2", section 3.2.
    """

    def __init__(
        self,
        config: PixelSNAILConfig,
        *,
        size: tuple[int, int],
        num_codes: int,
        condition_codes: int | None = None,
        label_space: LabelSpace = NO_LABELS,
    ) -> None:
        super().__init__()
        self.config, self.size, self.num_codes = config, size, num_codes
        kernel, width, codes = config.kernel_size, config.hidden_channels, num_codes
        half = kernel // 2
        # `stem` shifts the first one down by one row and the second one to the right by one pixel.
        self.above = NormedConvolution(codes, width, (half, kernel), (half, half, half - 1, 0))
        self.left = NormedConvolution(codes, width, (half + 1, half), (half - 1, 0, half, 0))
        flags = {"conditioned": condition_codes is not None, "labelled": label_space.kind != "none"}
        self.blocks = nn.ModuleList(PixelBlock(config, **flags) for _ in range(config.blocks))
        self.condition = None if condition_codes is None else ConditionNetwork(config, condition_codes)
        self.label = label_embedding(label_space, config.label_dim)
        self.last = nn.ModuleList(
            GatedResidualBlock(width, config.residual_channels, pointwise, dropout=config.dropout)
            for _ in range(config.output_blocks)
        )
        self.to_logits = pointwise(width, codes)

    def forward(self, codes: Tensor, condition: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """Logits (B, num_codes, h, W) of the codes (B, h, W) of the first h rows.

        Args:
            codes: Codes; the logits of each depend on earlier ones only.
            condition: Coarser map, (B, H / 2, W / 2), if the prior has one.
            label: Conditions, (B,) or (B, K), or None.
        """
        self.check(codes, condition)
        rows = codes.shape[1]
        x = self.stem(codes)
        place = self.place(x)[:, :, :rows]
        moved = self.condition_map(condition)
        vector = self.label_vector(label)
        for block in self.blocks:
            x = block(x, place.expand(len(x), -1, -1, -1), None if moved is None else moved[:, :, :rows], vector)
        for block in self.last:
            x = block(x)
        return cast("Tensor", self.to_logits(F.elu(x)))

    def check(self, codes: Tensor, condition: Tensor | None) -> None:
        """Raise a `ValueError` for a wrong size, codes out of range, or a missing or superfluous condition."""
        height, width = self.size
        if codes.dim() != 3 or codes.shape[1] > height or codes.shape[2] != width:
            raise ValueError(f"codes have shape {tuple(codes.shape)}; this prior takes (B, up to {height}, {width})")
        check_range("codes", codes, self.num_codes)
        if (condition is None) != (self.condition is None):
            wants = "needs" if condition is None else "has no place for"
            raise ValueError(f"this prior {wants} a coarser map as its condition")
        if condition is not None and self.condition is not None:
            expected = (len(codes), height // 2, width // 2)
            if condition.shape != expected:
                raise ValueError(f"the condition has shape {tuple(condition.shape)}; expected {expected}")
            check_range("the condition", condition, self.condition.codes)

    def stem(self, codes: Tensor) -> Tensor:
        """Features (B, channels, h, W) of codes above (0 in the first row) and to the left (0 in the first column)."""
        seen = F.one_hot(codes, self.num_codes).movedim(-1, 1).to(self.above.weight_v.dtype)
        return F.pad(self.above(seen), (0, 0, 1, -1)) + F.pad(self.left(seen), (1, -1, 0, 0))

    def place(self, like: Tensor) -> Tensor:
        """Row and column of each pixel from -0.5 to 0.5, (1, 2, H, W)."""
        sides = (torch.arange(n, device=like.device, dtype=like.dtype) / n - 0.5 for n in self.size)
        return torch.stack(torch.meshgrid(*sides, indexing="ij"))[None]

    def condition_map(self, condition: Tensor | None) -> Tensor | None:
        """Features of the coarser map, (B, condition_channels, H, W)."""
        return None if self.condition is None or condition is None else cast("Tensor", self.condition(condition))

    def label_vector(self, label: Tensor | None) -> Tensor | None:
        """Label embedding, (B, label_dim)."""
        return None if self.label is None or label is None else cast("Tensor", self.label(label))


class ConditionNetwork(nn.Module):
    """Features of the coarser map at twice its size."""

    def __init__(self, config: PixelSNAILConfig, codes: int) -> None:
        super().__init__()
        width = config.condition_channels
        self.codes = codes
        self.stem = same(codes, width, 3)
        self.blocks = nn.ModuleList(
            GatedResidualBlock(width, width, partial(same, kernel=3), dropout=config.dropout)
            for _ in range(config.condition_blocks)
        )

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (B, H / 2, W / 2) to (B, channels, H, W)."""
        x = self.stem(F.one_hot(codes, self.codes).movedim(-1, 1).to(self.stem.weight_v.dtype))
        for block in self.blocks:
            x = block(x)
        return F.interpolate(x, scale_factor=2, mode="nearest")


def check_range(name: str, codes: Tensor, num_codes: int) -> None:
    """Raise a `ValueError` for codes that are not whole numbers from 0 to ``num_codes - 1``."""
    if codes.is_floating_point():
        raise ValueError(f"{name} are {codes.dtype}; expected whole numbers from 0 to {num_codes - 1}")
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= num_codes):
        raise ValueError(f"{name} span {int(codes.min())} to {int(codes.max())}; expected 0 to {num_codes - 1}")
