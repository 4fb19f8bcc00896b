"""Up- and downsampling by 2 with small low-pass filters.

Source: Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN", appendix B; the filters go back to
Zhang 2019, "Making convolutional networks shift-invariant again".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = (1.0, 3.0, 3.0, 1.0)
"""Default filter along each side."""


def separable_filter(taps: Sequence[float] = TAPS) -> Tensor:
    """Outer product of taps with themselves, (n, n), with sum 1."""
    line = torch.tensor(taps)
    square = torch.outer(line, line)
    return square / square.sum()


def filtered(x: Tensor, kernel: Tensor, *, pad: int = 0, gain: float = 1.0) -> Tensor:
    """Convolve each channel of images (B, C, H, W) with a filter, after padding with zeros."""
    return _per_channel(x, kernel.flip(0, 1) * gain, stride=1, pad=pad)


def upsample(x: Tensor, kernel: Tensor) -> Tensor:
    """Double the size of images (B, C, H, W): zeros between the pixels, then the filter."""
    channels, height, width = x.shape[1:]
    weight = (4 * kernel).to(x.dtype).expand(channels, 1, -1, -1)
    crop = [side // 2 - 1 for side in kernel.shape]
    full = F.conv_transpose2d(x, weight, stride=2, padding=crop, groups=channels)
    return full[:, :, : 2 * height, : 2 * width]  # a filter of odd length ends one pixel late


def downsample(x: Tensor, kernel: Tensor) -> Tensor:
    """Halve the size of images (B, C, H, W): the filter, then every second pixel."""
    kernel, pad = kernel.flip(0, 1), (kernel.shape[0] - 1) // 2
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:  # whose gradient is ten times slower
        with torch.autocast("cpu", enabled=False):
            return _per_channel(x.float(), kernel, stride=2, pad=pad).to(x.dtype)
    return _per_channel(x, kernel, stride=2, pad=pad)


def _per_channel(x: Tensor, kernel: Tensor, *, stride: int, pad: int) -> Tensor:
    channels = x.shape[1]
    weight = kernel.to(x.dtype).expand(channels, 1, -1, -1)
    return F.conv2d(x, weight, stride=stride, padding=pad, groups=channels)


def upsample_lines(x: Tensor, taps: Tensor) -> Tensor:
    """Double the size of images (B, C, H, W) with a separable filter of an even number of taps."""
    crop, (height, width) = len(taps) // 2 - 1, x.shape[2:]
    line = (2 * taps).to(x.dtype)
    single = x.reshape(-1, 1, height, width)  # a grouped convolution of few channels is slow
    single = F.conv_transpose2d(single, line.view(1, 1, 1, -1), stride=(1, 2), padding=(0, crop))
    single = F.conv_transpose2d(single, line.view(1, 1, -1, 1), stride=(2, 1), padding=(crop, 0))
    return single.view(*x.shape[:2], 2 * height, 2 * width)


def downsample_lines(x: Tensor, taps: Tensor, *, crop: int) -> Tensor:
    """Crop `crop` pixels on every side of images (B, C, H, W), then halve the size.

    The filter, of an even number of taps, is flipped, which undoes the shift of `upsample_lines`.
    """
    crop -= len(taps) // 2 - 1
    x = x[:, :, crop : x.shape[2] - crop, crop : x.shape[3] - crop]
    single = x.reshape(-1, 1, *x.shape[2:])
    line = taps.to(x.dtype)
    single = F.conv2d(single, line.view(1, 1, 1, -1), stride=(1, 2))
    single = F.conv2d(single, line.view(1, 1, -1, 1), stride=(2, 1))
    return single.view(*x.shape[:2], *single.shape[2:])


def filter_lines(x: Tensor, taps: Tensor) -> Tensor:
    """Filter each image of (B, C, H, W) along both sides with its own odd taps (B, taps), with reflected margins."""
    batch, channels, height, width = x.shape
    reach = taps.shape[1] // 2
    x = F.pad(x, [reach] * 4, mode="reflect")
    x = x.reshape(1, batch * channels, *x.shape[2:])
    lines = taps.to(x.dtype).repeat_interleave(channels, 0)[:, None, None]
    x = F.conv2d(x, lines, groups=batch * channels)
    x = F.conv2d(x, lines.transpose(2, 3), groups=batch * channels)
    return x.view(batch, channels, height, width)


def sample_bilinear(images: Tensor, grid: Tensor) -> Tensor:
    """Bilinear `torch.nn.functional.grid_sample`, 0 outside, with gradients of any order to the images."""
    sampled: Tensor = _SampleBilinear.apply(images, grid)
    return sampled


class _SampleBilinear(torch.autograd.Function):
    """Linear in the images; older versions of torch cannot differentiate its gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.size = images.shape
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (grid,) = ctx.saved_tensors
        return _SampleBilinearBack.apply(gradients[0], grid, ctx.size), None


class _SampleBilinearBack(torch.autograd.Function):
    """Transpose of `_SampleBilinear`."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, grid: Tensor, size: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        # Only the size of the images matters here, not their values.
        images = gradient.new_empty(1).expand(size)
        spread, _ = torch.ops.aten.grid_sampler_2d_backward(gradient, images, grid, 0, 0, False, [True, False])
        return cast("Tensor", spread)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (grid,) = ctx.saved_tensors
        return _SampleBilinear.apply(gradients[0], grid), None, None
