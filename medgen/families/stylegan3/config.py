"""The config of StyleGAN3, and the frequency bands of its layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch

from medgen.families.stylegan2.config import StyledConfig


@dataclass(frozen=True)
class Band:
    """Frequency band and size of an image within synthesis.

    Attributes:
        cutoff: Frequency at which half the amplitude is left.
        stopband: Frequency from which on no amplitude is left.
        rate: Pixels per unit of length, the shorter side of the image.
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
        """Width of the transition band."""
        return 2 * (max(self.stopband, self.rate / 2) - self.cutoff)


@dataclass(frozen=True, kw_only=True)
class StyleGAN3Config(StyledConfig):
    """Sizes of the networks; the defaults are those of the published T networks for 256 px.

    Attributes:
        image_size: Height and width; the shorter side is a power of two.
        num_layers: Layers before the one that makes the image.
        num_critical: Number of last layers that are critically sampled.
        first_cutoff: Cut-off frequency at the start, in cycles per shorter side.
        first_stopband: Stop-band frequency at the start.
        last_stopband_rel: Stop-band frequency at the end, relative to the cut-off.
        margin: Pixels on every side within synthesis, for content that moves into the image.
        kernel: Height and width of the convolutions; 1 in the published R networks.
        filter_size: Taps of a low-pass filter at the lower of its two rates.
        activation_rate: Upsampling before the nonlinearity.
        radial_filters: Whether filters are radially symmetric, as in the published R networks.
        channel_base: Width of a layer times twice its cut-off; 65536 in the published R networks.
        channel_max: Largest width; 1024 in the published R networks.
        output_scale: Factor of the last layer's output.

    Source: Karras et al. 2021, "Alias-free generative adversarial networks".
    """

    mapping_layers: int = 2
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
    output_scale: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_layers", "filter_size", "activation_rate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use at least 1")
        if self.margin < 0:
            raise ValueError(f"margin is {self.margin}; use at least 0")
        if self.kernel not in (1, 3):
            raise ValueError(f"kernel is {self.kernel}; use 3, or 1 as in the published R networks")
        for name in ("first_cutoff", "output_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; use a number above 0")
        self.bands()

    @property
    def num_ws(self) -> int:
        """Number of style vectors of an image: of the start, the layers, and the one that makes the image."""
        return self.num_layers + 2

    def bands(self) -> tuple[Band, ...]:
        """Compute the bands of the outputs of all layers, with that of the image last.

        Cut-offs grow geometrically up to the first critical layer (appendix C); rates are powers of two.

        Raises:
            ValueError: If image size and frequencies do not fit.
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
            height, width = (math.ceil(rate * side / shorter) + 2 * self.margin for side in self.image_size)
            size = self.image_size if layer >= self.num_layers - 1 else (height, width)
            channels = round(min(self.channel_base / 2 / cutoff, self.channel_max))
            bands.append(Band(cutoff, stopband, rate, size, channels))
        bands[-1] = Band(cutoff, stopband, rate, self.image_size, self.channels)
        return tuple(bands)

    @classmethod
    def tiny(cls) -> Self:
        """16 px, 16 channels, 5 layers."""
        return cls(
            image_size=(16, 16),
            channels=1,
            label_kind="single",
            label_names=("no finding", "finding"),
            z_dim=16,
            w_dim=16,
            num_layers=5,
            margin=4,
            channel_base=256,
            channel_max=16,
        )


# Training checkpoints of medgen 0.1 hold it under this name.
torch.serialization.add_safe_globals([(StyleGAN3Config, "medgen.families.stylegan3.generator.StyleGAN3Config")])
