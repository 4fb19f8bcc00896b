"""Synthesis without gradients on a CPU: equal up to rounding, with fewer reads of memory.

A convolution at a high resolution has few operations per pixel, so that everything around it matters: the length of the
modulated weights, the bias, the noise, the activation and its limit are applied in place, to a piece of the image at a
time that stays in the processor's cache. Scaled weights and their squared norms are computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medgen.families.stylegan2.networks import StyledConv, Synthesis, ToImage
from medgen.nn.equalised import GAIN, SLOPE, EqualisedLinear

_PIECE = 1 << 18
"""Numbers that are worked on at a time: 1 MB in float32."""
_TOGETHER = 1 << 22
"""Size of a layer's output above which the batch is split: fine layers have many pixels and run faster in small parts;
coarse layers have many weights, which a whole batch shares."""


class FastSynthesis(nn.Module):
    """The inference form of `medgen.families.stylegan2.networks.Synthesis`, with copies of its weights."""

    def __init__(self, synthesis: Synthesis) -> None:
        super().__init__()
        self.start = synthesis.start
        self.first = nn.ModuleList(FastStyledConv(cast("StyledConv", layer)) for layer in synthesis.first)
        self.second = nn.ModuleList(FastStyledConv(cast("StyledConv", layer)) for layer in synthesis.second)
        self.to_image = nn.ModuleList(FastToImage(cast("ToImage", layer)) for layer in synthesis.to_image)
        channels = len(cast("ToImage", synthesis.to_image[0]).bias)
        # Layers are made without memory, as their weights come from the network; random ones would move torch's state.
        self.enlarge = nn.ConvTranspose2d(
            channels, channels, 4, stride=2, padding=1, groups=channels, bias=False, device="meta"
        )
        self.enlarge.weight = nn.Parameter((4 * synthesis.kernel).expand(channels, 1, -1, -1).contiguous())

    def forward(self, styles: Tensor, *noise: Tensor | None) -> Tensor:
        """Draw images (B, C, H, W), about [-1, 1], from styles (B, num_ws, w_dim) and the noise of each convolution."""
        x = self.start.expand(len(styles), -1, -1, -1)
        x = self.second[0](x, styles[:, 0], noise[0])
        return self._refine(1, x, self.to_image[0](x, styles[:, 1]), styles, noise)

    def _refine(self, level: int, x: Tensor, image: Tensor, styles: Tensor, noise: Sequence[Tensor | None]) -> Tensor:
        """Run the resolutions from a level on, in parts of the batch where layers are large."""
        for i in range(level, len(self.second)):
            numbers = cast("FastStyledConv", self.second[i]).bias.numel() * 4 * x.shape[2] * x.shape[3]
            count = max(1, _TOGETHER // numbers)
            if len(x) > count:
                done = []
                for part in (slice(start, start + count) for start in range(0, len(x), count)):
                    own = [n if n is None or len(n) == 1 else n[part] for n in noise]
                    done.append(self._refine(i, x[part], image[part], styles[part], own))
                return torch.cat(done)
            x = self.first[i - 1](x, styles[:, 2 * i - 1], noise[2 * i - 1])
            x = self.second[i](x, styles[:, 2 * i], noise[2 * i])
            image = self.enlarge(image) + self.to_image[i](x, styles[:, 2 * i + 1])
        return image


class FastStyledConv(nn.Module):
    """A modulated convolution with its activation."""

    lengths: Tensor

    def __init__(self, layer: StyledConv) -> None:
        super().__init__()
        out_channels, in_channels = layer.weight.shape[:2]
        weight = layer.weight.detach() / math.sqrt(layer.weight[0].numel())
        self.style = _Styles(layer.style)
        self.register_buffer("lengths", weight.square().sum((2, 3)).T.contiguous())
        self.conv: nn.Module
        self.blur: nn.Module
        if layer.upsamples:
            doubled = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, bias=False, device="meta")
            doubled.weight = nn.Parameter(weight.transpose(0, 1).contiguous())
            blur = nn.Conv2d(out_channels, out_channels, 4, padding=1, groups=out_channels, bias=False, device="meta")
            blur.weight = nn.Parameter((4 * layer.kernel).expand(out_channels, 1, -1, -1).contiguous())
            self.conv, self.blur = doubled, blur
        else:
            plain = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False, device="meta")
            plain.weight = nn.Parameter(weight)
            self.conv, self.blur = plain, nn.Identity()
        self.bias = nn.Parameter(layer.bias.detach() * GAIN)
        self.noise_strength = nn.Parameter(layer.noise_strength.detach() * GAIN)
        self.limit = layer.clamp

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """(B, in, H, W) with styles (B, w_dim) and noise (B or 1, 1, H', W') or None to (B, out, H', W')."""
        styles = self.style(w.float())
        scale = (styles.square() @ self.lengths.float() + 1e-8).rsqrt() * GAIN
        out: Tensor = self.blur(self.conv(x * styles.to(x.dtype)[:, :, None, None]))
        if noise is not None:
            noise = (noise * self.noise_strength).to(out.dtype).expand(len(out), -1, -1, -1)
        for image, factor in enumerate(scale.to(out.dtype)):
            self._finish(out[image], factor[:, None, None], None if noise is None else noise[image])
        return out

    def _finish(self, image: Tensor, factor: Tensor, noise: Tensor | None) -> None:
        """Apply scale, bias, noise and activation to one image (C, H, W), in place."""
        rows = max(1, _PIECE // (image.shape[0] * image.shape[2]))
        bias = self.bias.to(image.dtype)[:, None, None]
        for start in range(0, image.shape[1], rows):
            piece = image[:, start : start + rows]
            torch.addcmul(bias, piece, factor, out=piece)
            if noise is not None:
                piece.add_(noise[:, start : start + rows])
            F.leaky_relu_(piece, SLOPE)
            if self.limit is not None:
                piece.clamp_(-self.limit, self.limit)


class FastToImage(nn.Module):
    """The 1 x 1 convolution of `ToImage` as one matrix product per image."""

    def __init__(self, layer: ToImage) -> None:
        super().__init__()
        self.style = _Styles(layer.style)
        self.weight = nn.Parameter(layer.weight.detach()[:, :, 0, 0].T / math.sqrt(layer.weight.shape[1]))
        self.bias = nn.Parameter(layer.bias.detach())
        self.limit = layer.clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(B, in, H, W) to (B, channels, H, W) float32."""
        batch, _, height, width = x.shape
        weight = self.style(w.float())[:, :, None] * self.weight.float()  # (B, in, channels)
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
        out = torch.baddbmm(self.bias.to(x.dtype), pixels, weight.to(x.dtype)).float()
        if self.limit is not None:
            out = out.clamp_(-self.limit, self.limit)
        return out.view(batch, height, width, -1).permute(0, 3, 1, 2)


class _Styles(nn.Module):
    """A linear layer with the scale of its weights applied; its buffers stay in float32, unlike parameters."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: EqualisedLinear) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach() * (layer.rate / math.sqrt(layer.weight.shape[1])))
        self.register_buffer("bias", layer.bias.detach() * layer.rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in) to (B, out)."""
        return F.linear(x, self.weight, self.bias)
