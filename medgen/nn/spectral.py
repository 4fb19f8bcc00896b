"""Spectral normalisation: a convolution whose weights have a largest singular value of 1."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
"""What the pixels hold that a convolution adds around its input."""


class SpectralConv2d(nn.Conv2d):
    """A convolution with its weights divided by an estimate of their largest singular value, u^T W v.

    W is the weight as a matrix with one row for every output channel. In training each forward pass brings u and v
    nearer to the singular vectors by one power iteration; in evaluation they stay as they are.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernel.
        stride: Step of the kernel.
        padding: Pixels added on each side.
        bias: Whether a bias is added, which is not normalised.
        padding_mode: What the added pixels hold.

    Source: Miyato et al. 2018, "Spectral normalization for generative adversarial networks", algorithm 1.
    """

    u: Tensor
    v: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        *,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias, padding_mode=padding_mode)
        self.register_buffer("u", torch.empty(out_channels))
        self.register_buffer("v", torch.empty(self.weight[0].numel()))
        self.reset_vectors()

    @torch.no_grad()
    def reset_vectors(self) -> None:
        """Start the estimate anew; for weights that were given other values than by training."""
        self.u.normal_()
        if not self.weight.is_meta:  # where there are no numbers, only shapes
            self.update_vectors()

    @torch.no_grad()
    def update_vectors(self) -> None:
        """One power iteration: v from u, then u from v."""
        with torch.autocast(self.weight.device.type, enabled=False):
            matrix = self.weight.flatten(1)
            self.v.copy_(F.normalize(torch.mv(matrix.T, self.u), dim=0))
            self.u.copy_(F.normalize(torch.mv(matrix, self.v), dim=0))

    def effective_weight(self) -> Tensor:
        """The weight that the input is convolved with, (out, in, k, k), by u and v as they are."""
        # Backward passes need the vectors of their own forward pass, and another one may come in between.
        u, v = self.u.clone(), self.v.clone()
        with torch.autocast(self.weight.device.type, enabled=False):
            weight: Tensor = self.weight / torch.dot(u, torch.mv(self.weight.flatten(1), v))
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H', W')."""
        if self.training:
            self.update_vectors()
        out: Tensor = self._conv_forward(x, self.effective_weight(), self.bias)
        return out

    def inference_form(self) -> nn.Module:
        """A plain convolution with the effective weight."""
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]  # both dimensions, which nn.Conv2d keeps in a longer type
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            bias=False,
            padding_mode=self.padding_mode,
            device="meta",  # random weights would move torch's state
        )
        conv.weight = nn.Parameter(self.effective_weight().detach())
        conv.bias = self.bias
        return conv
