"""StyleGAN3: StyleGAN2's styles with a synthesis whose details do not stick to the pixels; for sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from medgen.families.stylegan2.generator import StyledConfig, StyledGenerator
from medgen.families.stylegan2.networks import Mapping
from medgen.families.stylegan3.networks import StyleGAN3Shape, Synthesis
from medgen.noise import NoiseSource


@dataclass(frozen=True, kw_only=True)
class StyleGAN3Config(StyledConfig):
    """Sizes of the networks; the defaults are those of the published T networks at 256 px.

    Attributes:
        image_size: Height and width; the shorter side is a power of two.
        channels: Channels of the images.
        z_dim: Length of the random vector.
        w_dim: Length of the style vector.
        mapping_layers: Layers of the mapping network.
        num_layers: Layers before the one that makes the image.
        num_critical: How many of them, the last, use all that the pixels can hold.
        first_cutoff: Highest frequency at the start, in cycles per shorter side.
        first_stopband: Where nothing is left at the start.
        last_stopband_rel: The same at the end, by the highest frequency there.
        margin: Pixels on every side within synthesis.
        kernel: Height and width of the convolutions; 1 in the published R networks.
        filter_size: Taps of a low-pass filter at the lower of its two rates.
        activation_rate: How much finer pixels are where the nonlinearity acts.
        radial_filters: Whether filters are the same in all directions, as in the published R networks.
        channel_base: Width of a layer times twice its highest frequency; 65536 in the published R networks.
        channel_max: Largest width; 1024 in the published R networks.
        clamp: Largest absolute value of activations; None for any.
        output_scale: What the last layer's output is multiplied by.

    Source: Karras et al. 2021, "Alias-free generative adversarial networks".
    """

    image_size: tuple[int, int] = (256, 256)
    channels: int = 3
    z_dim: int = 512
    w_dim: int = 512
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
    channel_max: int = 512
    clamp: float | None = 256.0
    output_scale: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("z_dim", "w_dim", "mapping_layers", "num_layers", "filter_size", "channel_base", "channel_max")
        for name in (*counts, "activation_rate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use at least 1")
        if self.margin < 0:
            raise ValueError(f"margin is {self.margin}; use at least 0")
        if self.kernel not in (1, 3):
            raise ValueError(f"kernel is {self.kernel}; use 3, or 1 as in the published R networks")
        for name in ("first_cutoff", "output_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; use a number above 0")
        if self.clamp is not None and not self.clamp > 0:
            raise ValueError(f"clamp is {self.clamp}; use a number above 0, or None for no limit")
        self.shape.bands()

    @property
    def shape(self) -> StyleGAN3Shape:
        """Sizes of synthesis without what the images mean."""
        return StyleGAN3Shape(
            image_size=self.image_size,
            channels=self.channels,
            w_dim=self.w_dim,
            num_layers=self.num_layers,
            num_critical=self.num_critical,
            first_cutoff=self.first_cutoff,
            first_stopband=self.first_stopband,
            last_stopband_rel=self.last_stopband_rel,
            margin=self.margin,
            kernel=self.kernel,
            filter_size=self.filter_size,
            activation_rate=self.activation_rate,
            radial_filters=self.radial_filters,
            channel_base=self.channel_base,
            channel_max=self.channel_max,
            clamp=self.clamp,
            output_scale=self.output_scale,
        )

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


class StyleGAN3Generator(StyledGenerator, family="stylegan3"):
    """Draws images in one pass. It comes from weights of the authors' code, see `medgen.foreign.convert.convert`."""

    config_class = StyleGAN3Config
    config: StyleGAN3Config

    def __init__(self, config: StyleGAN3Config) -> None:
        mapping = Mapping(config.z_dim, config.label_dim, config.w_dim, config.mapping_layers)
        shape = config.shape
        super().__init__(config, mapping, z_dim=config.z_dim, w_dim=config.w_dim, num_styles=shape.num_styles)
        self.synthesis = Synthesis(shape)

    def draw(self, styles: Tensor) -> Tensor:
        """See `StyledGenerator.draw`; there is no noise."""
        images: Tensor = self.synthesis(styles)
        return images

    def _sample(
        self,
        label: Tensor | None,
        noise: NoiseSource,
        *,
        truncation: float = 1.0,
        truncation_layers: int | None = None,
        center: str = "label",
    ) -> Tensor:
        """One batch of images.

        Args:
            label: Conditions, (B,) or (B, K), or None.
            noise: One random stream per image.
            truncation: How far styles may be from the average one, by their own distance: 1 for all the way, less for
                typical images that vary less.
            truncation_layers: How many layers that holds for, coarse to fine; None for all.
            center: The average that truncation pulls to: ``label`` for that of images of the same label, ``all`` for
                that over all labels, for images without one, ``published`` for the same whatever the label.
        """
        images: Tensor = self.synthesis(self._styles(label, noise, truncation, truncation_layers, center))
        return images
