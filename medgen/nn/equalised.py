"""Layers with equalised learning rates, and convolutions modulated by a style.

Weights are drawn from a unit normal and scaled in the forward pass, so that Adam moves all of them equally fast.

Source: Karras et al. 2018, "Progressive growing of GANs", section 4.1; Karras et al. 2020, "Analyzing and improving the
image quality of StyleGAN", section 2.2 and appendix B.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medgen.nn.resampling import downsample, filtered, separable_filter, upsample

Resampling = Literal["none", "up", "down"]

SLOPE = 0.2
"""Slope of the leaky ReLU."""
GAIN = math.sqrt(2)
"""Factor that keeps the variance through the leaky ReLU; it is applied to the weights before it."""


def activate(x: Tensor, clamp: float | None = None) -> Tensor:
    """Leaky ReLU of values already scaled by `GAIN`, clamped to [-clamp, clamp]."""
    out = F.leaky_relu(x, SLOPE)
    return out if clamp is None else F.hardtanh(out, -clamp, clamp)  # its gradient takes one pass, that of clamp four


class EqualisedLinear(nn.Module):
    """A linear layer, in float32 even under autocast, as styles and logits need it.

    Args:
        in_features: Length of the input.
        out_features: Length of the output.
        bias_start: Initial value of the bias.
        rate: Learning rate of the weights relative to that of the optimiser.
        active: Whether a leaky ReLU follows.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias_start: float = 0.0, rate: float = 1.0, active: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / rate)
        self.bias = nn.Parameter(torch.full((out_features,), bias_start))
        self.rate = rate
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        """(B, in) to (B, out)."""
        rate = self.rate * (GAIN if self.active else 1)
        with torch.autocast(x.device.type, enabled=False):
            out = F.linear(x.float(), self.weight * (rate / math.sqrt(self.weight.shape[1])), self.bias * rate)
            return activate(out) if self.active else out


class EqualisedConv(nn.Module):
    """A convolution that may halve the size.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Height and width of the weights.
        halve: Whether the output has half the size.
        bias: Whether to add a bias.
        active: Whether a leaky ReLU follows.
        clamp: Largest absolute value of the output at gain 1; None for no limit.
    """

    kernel: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        halve: bool = False,
        bias: bool = True,
        active: bool = True,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.halve, self.active, self.clamp = halve, active, clamp
        self.register_buffer("kernel", separable_filter(), persistent=False)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """(B, in, H, W) to (B, out, H', W'), times a gain."""
        factor = gain * (GAIN if self.active else 1)
        weight = self.weight * (factor / math.sqrt(self.weight[0].numel()))
        bias = None if self.bias is None else self.bias * factor
        out = convolve(x, weight, self.kernel, "down" if self.halve else "none", bias)
        return activate(out, self.clamp and self.clamp * gain) if self.active else out


def convolve(
    x: Tensor, weight: Tensor, kernel: Tensor, resampling: Resampling = "none", bias: Tensor | None = None
) -> Tensor:
    """Convolution that keeps, doubles or halves the size, with the filter applied at the larger size.

    Args:
        x: Images, (B, in, H, W).
        weight: Weights, (out, in, k, k), k being 1 or 3; flipped where the size is doubled, as published.
        kernel: Resampling filter.
        resampling: Change of size.
        bias: (out,), or None.
    """
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    half = weight.shape[-1] // 2
    if resampling == "none":
        return F.conv2d(x, weight, bias, padding=half)
    if resampling == "down":
        if half == 0:
            return F.conv2d(downsample(x, kernel), weight, bias)
        return F.conv2d(filtered(x, kernel, pad=2), weight, bias, stride=2)
    if half == 0:
        return upsample(F.conv2d(x, weight, bias), kernel)
    doubled = filtered(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), kernel, pad=1, gain=4)
    return doubled if bias is None else doubled + bias[:, None, None]


def modulated(x: Tensor, weight: Tensor, styles: Tensor, kernel: Tensor, *, resampling: Resampling = "none") -> Tensor:
    """Convolution of (B, in, H, W) with weights (out, in, k, k) scaled per image by styles (B, in).

    The styles scale the input instead of the weights, which is equivalent.

    Source: Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN", eq. 1.
    """
    return convolve(x * styles.to(x.dtype)[:, :, None, None], weight, kernel, resampling)


def demodulation(weight: Tensor, styles: Tensor) -> Tensor:
    """Factors (B, out), float32, that normalise weights (out, in, k, k) scaled by styles (B, in).

    Source: Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN", eq. 3.
    """
    with torch.autocast(weight.device.type, enabled=False):
        squares = styles.float().square() @ weight.float().square().sum((2, 3)).T
        return (squares + 1e-8).rsqrt()


class MinibatchDeviation(nn.Module):
    """Append a channel with the standard deviation over a group of images, which exposes mode collapse.

    Args:
        group: Images per group; a smaller batch is one group.

    Source: Karras et al. 2018, "Progressive growing of GANs", section 3.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C + 1, H, W).

        Raises:
            ValueError: If the batch is not divisible into groups.
        """
        batch, _, height, width = x.shape
        group = min(self.group, batch)
        if batch % group:
            raise ValueError(
                f"a batch of {batch} images is not divisible by the {group} of minibatch deviation's group"
            )
        parts = x.float().view(group, -1, *x.shape[1:])  # groups take every (B / group)-th image
        deviation = (parts.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
        channel = deviation.to(x.dtype).repeat(group).view(batch, 1, 1, 1)
        return torch.cat([x, channel.expand(-1, -1, height, width)], dim=1)
