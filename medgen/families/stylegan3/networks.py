"""The synthesis network of StyleGAN3, whose every layer is a continuous image that pixels sample finely enough.

Lengths are such that the shorter side of an image is 1; frequencies are in cycles, rates in pixels per unit of it. The
mapping network is that of StyleGAN2.

Source: Karras et al. 2021, "Alias-free generative adversarial networks", section 3 and appendices C and F.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medgen.families.stylegan3.filters import FilteredActivation, low_pass
from medgen.nn.equalised import EqualisedLinear


@dataclass(frozen=True)
class Band:
    """Which frequencies an image within synthesis holds, and its pixels.

    Attributes:
        cutoff: Where half the amplitude is left.
        stopband: Where none is left.
        rate: Pixels per unit of length.
        size: Height and width, with margins.
        channels: Number of channels.
    """

    cutoff: float
    stopband: float
    rate: int
    size: tuple[int, int]
    channels: int

    @property
    def width(self) -> float:
        """Of the band from full amplitude to none."""
        return 2 * (max(self.stopband, self.rate / 2) - self.cutoff)


@dataclass(frozen=True, kw_only=True)
class StyleGAN3Shape:
    """Sizes of synthesis; the defaults are those of the published T networks.

    Attributes:
        image_size: Height and width; the shorter side is a power of two.
        channels: Channels of the images.
        w_dim: Length of the style vector.
        num_layers: Layers before the one that makes the image.
        num_critical: How many of them, the last, use all that the pixels can hold.
        first_cutoff: Cut-off at the start.
        first_stopband: Where nothing is left at the start.
        last_stopband_rel: The same at the end, by the cut-off there.
        margin: Pixels on every side, so that what moves in from beyond the image is there.
        kernel: Height and width of the convolutions; 1 in the published R networks.
        filter_size: Taps of a low-pass filter at the lower of its two rates.
        activation_rate: How much finer pixels are where the nonlinearity acts.
        radial_filters: Whether filters are the same in all directions, as in the published R networks.
        channel_base: Width of a layer times twice its cut-off.
        channel_max: Largest width.
        clamp: Largest absolute value of activations; None for any.
        output_scale: What the last layer's output is multiplied by.
    """

    image_size: tuple[int, int] = (256, 256)
    channels: int = 3
    w_dim: int = 512
    num_layers: int = 14
    num_critical: int = 2
    first_cutoff: float = 2.0
    first_stopband: float = 2**2.1
    last_stopband_rel: float = 2**0.3
    margin: int = 10
    kernel: int = 3
    filter_size: int = 6
    activation_rate: int = 2
    radial_filters: bool = False
    channel_base: int = 32768
    channel_max: int = 512
    clamp: float | None = 256.0
    output_scale: float = 0.25

    @property
    def num_styles(self) -> int:
        """What takes a style: the start, the layers, and the one that makes the image."""
        return self.num_layers + 2

    def bands(self) -> tuple[Band, ...]:
        """The output of every layer, that of the image last.

        Cut-offs grow geometrically up to the first critical layer (eq. of appendix C); pixels follow in powers of two.

        Raises:
            ValueError: If there are no such sizes.
        """
        shorter = min(self.image_size)
        if shorter & (shorter - 1):
            raise ValueError(f"image_size is {self.image_size}; the shorter side must be a power of two")
        if shorter / 2 <= self.first_cutoff:
            raise ValueError(
                f"image_size is {self.image_size}; the shorter side must be above twice first_cutoff, "
                f"{self.first_cutoff}"
            )
        if not self.first_stopband > self.first_cutoff or not self.last_stopband_rel > 1:
            raise ValueError(
                f"first_stopband is {self.first_stopband} and last_stopband_rel {self.last_stopband_rel}; use more "
                f"than first_cutoff, {self.first_cutoff}, and more than 1"
            )
        if not 0 <= self.num_critical < self.num_layers:
            raise ValueError(f"num_critical is {self.num_critical}; use 0 to num_layers - 1, {self.num_layers - 1}")
        last_cutoff = shorter / 2
        last_stopband = last_cutoff * self.last_stopband_rel
        bands = []
        for layer in range(self.num_layers + 1):
            done = min(layer / (self.num_layers - self.num_critical), 1.0)
            cutoff = self.first_cutoff * (last_cutoff / self.first_cutoff) ** done
            stopband = self.first_stopband * (last_stopband / self.first_stopband) ** done
            rate = 2 ** math.ceil(math.log2(min(2 * stopband, shorter)))
            size = tuple(math.ceil(rate * side / shorter) + 2 * self.margin for side in self.image_size)
            bands.append(
                Band(
                    cutoff=cutoff,
                    stopband=stopband,
                    rate=rate,
                    size=self.image_size if layer >= self.num_layers - 1 else (size[0], size[1]),
                    channels=round(min(self.channel_base / 2 / cutoff, self.channel_max)),
                )
            )
        bands[-1] = Band(cutoff, stopband, rate, self.image_size, self.channels)
        return tuple(bands)


class FourierStart(nn.Module):
    """What synthesis starts from: waves of fixed frequencies, which a style turns and moves as a whole.

    Args:
        band: Its frequencies and pixels.
        w_dim: Length of the style vector.

    Source: Karras et al. 2021, section 3.1 and appendix F.
    """

    frequencies: Tensor
    phases: Tensor
    transform: Tensor

    def __init__(self, band: Band, w_dim: int) -> None:
        super().__init__()
        self.band = band
        # Evenly over a disc: the root makes up for circles being longer further out.
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
        """(B, channels, *band.size) float32 of styles (B, w_dim)."""
        band = self.band
        with torch.autocast(w.device.type, enabled=False):  # phases need all digits
            matrix = self._turned_and_moved(self.placement(w.float())) @ self.transform
            frequencies = self.frequencies @ matrix[:, :2, :2]  # (B, C, 2)
            phases = self.phases + (self.frequencies @ matrix[:, :2, 2:]).squeeze(2)
            down, along = ((torch.arange(side, device=w.device) + 0.5 - side / 2) / band.rate for side in band.size)
            cycles = frequencies[:, :, :1] * along + phases[:, :, None]  # (B, C, W)
            cycles = cycles[:, :, None] + (frequencies[:, :, 1:] * down)[..., None]  # (B, C, H, W)
            # Frequencies that a transform takes beyond what pixels can hold fade out.
            beyond = (frequencies.norm(dim=2) - band.cutoff) / (band.rate / 2 - band.cutoff)
            waves = (2 * math.pi * cycles).sin() * (1 - beyond).clamp(0, 1)[:, :, None, None]
            weight = self.weight / math.sqrt(band.channels)
            return F.conv2d(waves, weight[:, :, None, None])

    @staticmethod
    def _turned_and_moved(placement: Tensor) -> Tensor:
        """From (B, 4), cosine and sine of any length and a shift, to what it does to places, (B, 3, 3)."""
        cosine, sine, x, y = (placement / placement[:, :2].norm(dim=1, keepdim=True)).unbind(1)
        zero, one = torch.zeros_like(x), torch.ones_like(x)
        turn = torch.stack([cosine, -sine, zero, sine, cosine, zero, zero, zero, one], dim=1).view(-1, 3, 3)
        move = torch.stack([one, zero, -x, zero, one, -y, zero, zero, one], dim=1).view(-1, 3, 3)
        return turn @ move


class AliasFreeLayer(nn.Module):
    """A convolution modulated by a style, and a leaky ReLU between two low-pass filters.

    The input is brought to a mean square of 1 over all data, by an average that training keeps, and not by its own.

    Args:
        before: Frequencies and pixels of the input.
        after: Of the output.
        shape: Sizes of synthesis.
        critical: Whether the output uses all that its pixels can hold; its filter is never radial.

    Source: Karras et al. 2021, section 3.2 and appendix C.
    """

    magnitude: Tensor

    def __init__(self, before: Band, after: Band, shape: StyleGAN3Shape, *, critical: bool) -> None:
        super().__init__()
        self.style = EqualisedLinear(shape.w_dim, before.channels, bias_start=1.0)
        self.weight = nn.Parameter(torch.randn(after.channels, before.channels, shape.kernel, shape.kernel))
        self.bias = nn.Parameter(torch.zeros(after.channels))
        self.register_buffer("magnitude", torch.ones(()))
        rate = max(before.rate, after.rate) * shape.activation_rate
        up_factor, down_factor = rate // before.rate, rate // after.rate
        up_taps, down_taps = (shape.filter_size * factor if factor > 1 else 1 for factor in (up_factor, down_factor))
        radial = shape.radial_filters and not critical
        # The convolution's result reaches further than its input, outside of which there are zeros.
        height, width = (side + shape.kernel - 1 for side in before.size)
        self.activation = FilteredActivation(
            low_pass(up_taps, cutoff=before.cutoff, width=before.width, rate=rate),
            up_factor,
            low_pass(down_taps, cutoff=after.cutoff, width=after.width, rate=rate, radial=radial),
            down_factor,
            before=(height, width),
            after=after.size,
            clamp=shape.clamp,
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
    """The last layer: a convolution of single pixels that a style modulates, and nothing else."""

    magnitude: Tensor

    def __init__(self, in_channels: int, shape: StyleGAN3Shape) -> None:
        super().__init__()
        self.clamp, self.scale = shape.clamp, shape.output_scale
        self.style = EqualisedLinear(shape.w_dim, in_channels, bias_start=1.0)
        self.weight = nn.Parameter(torch.randn(shape.channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(shape.channels))
        self.register_buffer("magnitude", torch.ones(()))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(B, in, H, W) and styles (B, w_dim) to (B, channels, H, W) float32."""
        styles = self.style(w) / math.sqrt(self.weight.shape[1])
        out = F.conv2d(x * styles[:, :, None, None], self.weight.to(x.dtype)).float()
        out = out * self.magnitude.rsqrt() + self.bias[:, None, None]
        return (out if self.clamp is None else out.clamp(-self.clamp, self.clamp)) * self.scale


class Synthesis(nn.Module):
    """From style vectors, one for each layer, to an image."""

    def __init__(self, shape: StyleGAN3Shape) -> None:
        super().__init__()
        bands = shape.bands()
        first_critical = shape.num_layers - shape.num_critical
        self.start = FourierStart(bands[0], shape.w_dim)
        self.layers = nn.ModuleList(
            AliasFreeLayer(bands[max(i - 1, 0)], bands[i], shape, critical=i >= first_critical)
            for i in range(shape.num_layers)
        )
        self.to_image = ToImage(bands[-2].channels, shape)

    def forward(self, styles: Tensor) -> Tensor:
        """Images (B, C, H, W), about [-1, 1], of styles (B, num_styles, w_dim)."""
        first, *others, last = styles.unbind(1)
        x = self.start(first)
        for layer, w in zip(self.layers, others, strict=True):
            x = layer(x, w)
        image: Tensor = self.to_image(x, last)
        return image
