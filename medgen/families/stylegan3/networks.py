"""Synthesis network of StyleGAN3, whose layers are band-limited to avoid aliasing.

The unit of length is the shorter side of an image; frequencies are in cycles, rates in pixels per unit. The mapping
network is that of StyleGAN2.

Source: Karras et al. 2021, "Alias-free generative adversarial networks", section 3 and appendices C and F.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medgen.families.stylegan3.config import Band, StyleGAN3Config
from medgen.families.stylegan3.filters import FilteredActivation, low_pass
from medgen.nn.equalised import EqualisedLinear


class FourierStart(nn.Module):
    """Input of synthesis: Fourier features of fixed frequencies, rotated and translated by a style.

    Source: Karras et al. 2021, section 3.1 and appendix F.
    """

    frequencies: Tensor
    phases: Tensor
    transform: Tensor

    def __init__(self, band: Band, w_dim: int) -> None:
        super().__init__()
        self.band = band
        # Uniform over a disc: the root compensates for the circumference growing with the radius.
        radius = band.cutoff * torch.rand(band.channels).sqrt()
        angle = 2 * math.pi * torch.rand(band.channels)
        self.register_buffer("frequencies", torch.stack([angle.cos(), angle.sin()], dim=1) * radius[:, None])
        self.register_buffer("phases", torch.rand(band.channels) - 0.5)
        self.register_buffer("transform", torch.eye(3))
        self.weight = nn.Parameter(torch.randn(band.channels, band.channels))
        self.placement = EqualisedLinear(w_dim, 4)
        with torch.no_grad():  # upright and in the middle
            self.placement.weight.zero_()
            self.placement.bias[0] = 1.0

    def forward(self, w: Tensor) -> Tensor:
        """Compute features (B, channels, *band.size) float32 from styles (B, w_dim)."""
        band = self.band
        with torch.autocast(w.device.type, enabled=False):  # phases need all digits
            matrix = self._turned_and_moved(self.placement(w.float())) @ self.transform
            frequencies = self.frequencies @ matrix[:, :2, :2]  # (B, C, 2)
            phases = self.phases + (self.frequencies @ matrix[:, :2, 2:]).squeeze(2)
            down, along = ((torch.arange(side, device=w.device) + 0.5 - side / 2) / band.rate for side in band.size)
            cycles = frequencies[:, :, :1] * along + phases[:, :, None]  # (B, C, W)
            cycles = cycles[:, :, None] + (frequencies[:, :, 1:] * down)[..., None]  # (B, C, H, W)
            # Frequencies that a transform moves beyond the Nyquist limit fade out.
            beyond = (frequencies.norm(dim=2) - band.cutoff) / (band.rate / 2 - band.cutoff)
            waves = (2 * math.pi * cycles).sin() * (1 - beyond).clamp(0, 1)[:, :, None, None]
            weight = self.weight / math.sqrt(band.channels)
            return F.conv2d(waves, weight[:, :, None, None])

    @staticmethod
    def _turned_and_moved(placement: Tensor) -> Tensor:
        """Turn (B, 4), an unscaled cosine and sine and a shift, into transforms of coordinates (B, 3, 3)."""
        cosine, sine, x, y = (placement / placement[:, :2].norm(dim=1, keepdim=True)).unbind(1)
        zero, one = torch.zeros_like(x), torch.ones_like(x)
        turn = torch.stack([cosine, -sine, zero, sine, cosine, zero, zero, zero, one], dim=1).view(-1, 3, 3)
        move = torch.stack([one, zero, -x, zero, one, -y, zero, zero, one], dim=1).view(-1, 3, 3)
        return turn @ move


class AliasFreeLayer(nn.Module):
    """A convolution modulated by a style, and a leaky ReLU between two low-pass filters.

    The input of band `before` is scaled to a mean square of 1 by a running average over the data. An output that is
    `critical`, that is, critically sampled, has no radial filter.

    Source: Karras et al. 2021, section 3.2 and appendix C.
    """

    magnitude: Tensor

    def __init__(self, before: Band, after: Band, config: StyleGAN3Config, *, critical: bool) -> None:
        super().__init__()
        self.style = EqualisedLinear(config.w_dim, before.channels, bias_start=1.0)
        self.weight = nn.Parameter(torch.randn(after.channels, before.channels, config.kernel, config.kernel))
        self.bias = nn.Parameter(torch.zeros(after.channels))
        self.register_buffer("magnitude", torch.ones(()))
        rate = max(before.rate, after.rate) * config.activation_rate
        up_factor, down_factor = rate // before.rate, rate // after.rate
        up_taps, down_taps = (config.filter_size * factor if factor > 1 else 1 for factor in (up_factor, down_factor))
        radial = config.radial_filters and not critical
        # The convolution pads with zeros, so that its result is larger than its input.
        height, width = (side + config.kernel - 1 for side in before.size)
        self.activation = FilteredActivation(
            low_pass(up_taps, cutoff=before.cutoff, width=before.width, rate=rate),
            up_factor,
            low_pass(down_taps, cutoff=after.cutoff, width=after.width, rate=rate, radial=radial),
            down_factor,
            before=(height, width),
            after=after.size,
            clamp=config.clamp,
        )

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(B, in, H, W) and styles (B, w_dim) to (B, out, *size) float32."""
        styles = self.style(w)
        out = F.conv2d(x * styles[:, :, None, None], self.weight.to(x.dtype), padding=self.weight.shape[-1] - 1)
        with torch.autocast(x.device.type, enabled=False):
            squares = styles.float().square() @ self.weight.float().square().sum((2, 3)).T
            scale = (squares + 1e-8).rsqrt() * self.magnitude.rsqrt()
            out = out.float() * scale[:, :, None, None] + self.bias[:, None, None]
        found: Tensor = self.activation(out)
        return found


class ToImage(nn.Module):
    """The last layer: a modulated 1 x 1 convolution."""

    magnitude: Tensor

    def __init__(self, in_channels: int, config: StyleGAN3Config) -> None:
        super().__init__()
        self.clamp, self.scale = config.clamp, config.output_scale
        self.style = EqualisedLinear(config.w_dim, in_channels, bias_start=1.0)
        self.weight = nn.Parameter(torch.randn(config.channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(config.channels))
        self.register_buffer("magnitude", torch.ones(()))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(B, in, H, W) and styles (B, w_dim) to (B, channels, H, W) float32."""
        styles = self.style(w) / math.sqrt(self.weight.shape[1])
        out = F.conv2d(x * styles[:, :, None, None], self.weight.to(x.dtype)).float()
        out = out * self.magnitude.rsqrt() + self.bias[:, None, None]
        return (out if self.clamp is None else out.clamp(-self.clamp, self.clamp)) * self.scale


class Synthesis(nn.Module):
    """Maps style vectors, one for each layer, to an image."""

    def __init__(self, config: StyleGAN3Config) -> None:
        super().__init__()
        bands = config.bands()
        first_critical = config.num_layers - config.num_critical
        self.start = FourierStart(bands[0], config.w_dim)
        self.layers = nn.ModuleList(
            AliasFreeLayer(bands[max(i - 1, 0)], bands[i], config, critical=i >= first_critical)
            for i in range(config.num_layers)
        )
        self.to_image = ToImage(bands[-2].channels, config)

    def forward(self, styles: Tensor) -> Tensor:
        """Draw images (B, C, H, W), about [-1, 1], from styles (B, num_ws, w_dim)."""
        first, *others, last = styles.unbind(1)
        x = self.start(first)
        for layer, w in zip(self.layers, others, strict=True):
            x = layer(x, w)
        image: Tensor = self.to_image(x, last)
        return image
