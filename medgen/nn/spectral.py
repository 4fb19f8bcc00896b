"""Spectrally normalised convolutions."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
"""Padding of a convolution, see `torch.nn.Conv2d`."""


class SpectralConv2d(nn.Conv2d):
    """A convolution with its weights divided by an estimate of their largest singular value, u^T W v.

    W is the weight as a matrix with one row per output channel. In training each forward pass improves u and v by one
    power iteration; in evaluation they are constant. Arguments are those of `torch.nn.Conv2d`.

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
        """Restart the estimate; call it after setting the weights by hand."""
        self.u.normal_()
        if not self.weight.is_meta:
            self.update_vectors()

    @torch.no_grad()
    def update_vectors(self) -> None:
        """One power iteration: v from u, then u from v."""
        with torch.autocast(self.weight.device.type, enabled=False):
            matrix = self.weight.flatten(1)
            self.v.copy_(F.normalize(torch.mv(matrix.T, self.u), dim=0))
            self.u.copy_(F.normalize(torch.mv(matrix, self.v), dim=0))

    def effective_weight(self) -> Tensor:
        """Normalised weight, (out, in, k, k), for the current u and v."""
        # Copies, as another forward pass may change u and v before the backward pass.
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
            device="meta",  # initial weights would be drawn from the global random stream
        )
        conv.weight = nn.Parameter(self.effective_weight().detach())
        conv.bias = self.bias
        return conv
