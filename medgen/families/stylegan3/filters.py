"""Low-pass filters, and a nonlinearity between two of them that does not alias.

Source: Karras et al. 2021, "Alias-free generative adversarial networks", section 3 and appendix C; the window is from
Kaiser 1974, "Nonrecursive digital filter design using the I0-sinh window function".
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from medgen.nn.equalised import GAIN, activate


def low_pass(taps: int, *, cutoff: float, width: float, rate: float, radial: bool = False) -> Tensor:
    """Compute a low-pass filter whose entries add up to 1.

    Args:
        taps: Number of samples of the filter along a side.
        cutoff: Frequency at which about half the amplitude is left, in cycles per unit of length.
        width: Width of the transition band, in cycles per unit of length.
        rate: Samples per unit of length.
        radial: Whether the filter is radially symmetric; one tap never is.

    Returns:
        (taps,), to apply along each side, or (taps, taps) if radial.
    """
    if taps == 1:
        return torch.from_numpy(np.ones(1, np.float32))
    places = (np.arange(taps) - (taps - 1) / 2) / rate
    window = np.kaiser(taps, _window_shape(taps, width / (rate / 2)))
    if radial:
        distance = np.hypot(places[:, None], places[None])
        # The transform of a disc, in place of the sinc that is the transform of an interval.
        wave = torch.special.bessel_j1(torch.from_numpy(2 * math.pi * cutoff * distance)).numpy()
        kernel = wave / distance * np.outer(window, window)
    else:
        kernel = np.sinc(2 * cutoff * places) * window
    return torch.from_numpy(kernel / kernel.sum()).float()


def _window_shape(taps: int, width: float) -> float:
    """Compute Kaiser's beta for a transition band of this width relative to half the sampling rate."""
    attenuation = 2.285 * (taps - 1) * math.pi * width + 7.95  # of the stop band, in decibels
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation > 21:
        return float(0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21))
    return 0.0


def upsampling(taps: Tensor, factor: int, *, start: int, pixels: int, size: int) -> Tensor:
    """Build the matrix (size, pixels) that puts zeros between pixels of a line and filters it.

    There are `start` zeros before the first pixel; a negative number crops.
    """
    line = taps.numpy() * factor
    tap = np.arange(pixels) * factor + start - np.arange(size)[:, None]
    return _matrix(line, tap)


def downsampling(taps: Tensor, factor: int, *, size: int) -> Tensor:
    """Build the matrix (size, pixels) that filters a line and takes every `factor`-th pixel, without padding."""
    line = taps.numpy()
    tap = np.arange((size - 1) * factor + len(line)) - np.arange(size)[:, None] * factor
    return _matrix(line, tap)


def _matrix(line: NDArray[np.float32], tap: NDArray[np.int_]) -> Tensor:
    """Look up taps by their numbers; 0 for numbers out of range."""
    inside = (tap >= 0) & (tap < len(line))
    return torch.from_numpy(np.where(inside, line[tap.clip(0, len(line) - 1)], np.float32(0)))


class FilteredActivation(nn.Module):
    """Leaky ReLU at a higher sampling rate, cropped to the middle of the images.

    Filters are matrix products along each side: convolutions of single channels are several times slower. The filter
    `up` has shape (taps,), and `down` (taps,) or (taps, taps). Images have height and width `before`, and `after` in
    the result. Values before the second filter are limited to `clamp`.
    """

    up: Tensor
    down: Tensor
    up_rows: Tensor
    up_columns: Tensor
    down_rows: Tensor
    down_columns: Tensor

    def __init__(
        self,
        up: Tensor,
        up_factor: int,
        down: Tensor,
        down_factor: int,
        *,
        before: tuple[int, int],
        after: tuple[int, int],
        clamp: float | None,
    ) -> None:
        super().__init__()
        self.down_factor, self.clamp = down_factor, clamp
        self.register_buffer("up", up, persistent=False)
        self.register_buffer("down", down, persistent=False)
        for side, pixels, size in zip(("rows", "columns"), before, after, strict=True):
            between = (size - 1) * down_factor + len(down)
            start = (between + len(up) - 1 - pixels * up_factor + up_factor) // 2  # zeros on both sides alike
            matrix = upsampling(up, up_factor, start=start, pixels=pixels, size=between)
            self.register_buffer(f"up_{side}", matrix, persistent=False)
            if down.dim() == 1:
                self.register_buffer(f"down_{side}", downsampling(down, down_factor, size=size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *before), padded by zeros, to (B, C, *after) float32."""
        with torch.autocast(x.device.type, enabled=False):  # taps in bfloat16 would not add up to 1
            high = activate(_both_sides(GAIN * x.float(), self.up_rows, self.up_columns), self.clamp)
            if self.down.dim() == 1:
                return _both_sides(high, self.down_rows, self.down_columns)
            single = high.reshape(-1, 1, *high.shape[2:])  # a grouped convolution of few channels is slow
            out = F.conv2d(single, self.down[None, None], stride=self.down_factor)
            return out.view(*x.shape[:2], *out.shape[2:])


def _both_sides(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return rows @ (x @ columns.T)
