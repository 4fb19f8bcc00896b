"""StyleGAN2: a random vector and a label become a style, and the style an image, in one pass."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from medgen.families.stylegan2.networks import Discriminator, Mapping, StyleGAN2Shape, Synthesis
from medgen.generator import Generator, GeneratorConfig
from medgen.labels import Label
from medgen.nn.inference import for_inference
from medgen.nn.label_vector import label_vector, label_vector_length
from medgen.nn.modes import evaluating
from medgen.noise import NoiseSource, stream_seed

LayerNoise = Literal["random", "fixed", "none"]
Center = Literal["label", "all", "published"]

_CENTER_DRAWS = 2048
"""Styles whose mean stands for the average style of a label."""


@dataclass(frozen=True, kw_only=True)
class StyledConfig(GeneratorConfig):
    """What the families with styles have in common.

    Attributes:
        needs_label: Whether it was never trained without a label, as the published models were not; it refuses to draw
            without one.
    """

    needs_label: bool = False

    @property
    def label_dim(self) -> int:
        """Length of the vector that networks read labels from, see `label_vector`."""
        return label_vector_length(self.label_space)


@dataclass(frozen=True, kw_only=True)
class StyleGAN2Config(StyledConfig):
    """Sizes of the networks; the defaults are those of the published ``paper256``.

    Attributes:
        image_size: Height and width, both `base` times the same power of two.
        channels: Channels of the images.
        base: Height and width at which synthesis starts; None for the smallest from 4 on that the image size is a power
            of two of.
        z_dim: Length of the random vector.
        w_dim: Length of the style vector.
        mapping_layers: Layers of the mapping network; 2 in the published ``auto``.
        channel_base: Width times image size, of each resolution; 32768 in the published ``paper512``.
        channel_max: Largest width.
        clamp: Largest absolute value of activations, which keeps half precision in range; None for any.

    Source: Karras et al. 2020, "Training generative adversarial networks with limited data".
    """

    image_size: tuple[int, int] = (256, 256)
    channels: int = 3
    base: tuple[int, int] | None = None
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    channel_base: int = 16384
    channel_max: int = 512
    clamp: float | None = 256.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("z_dim", "w_dim", "mapping_layers", "channel_base", "channel_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use at least 1")
        if self.clamp is not None and not self.clamp > 0:
            raise ValueError(f"clamp is {self.clamp}; use a number above 0, or None for no limit")
        if self.base is not None and (len(self.base) != 2 or min(self.base) < 1):
            raise ValueError(f"base is {self.base}; expected (height, width) in pixels, or None for the smallest")
        _ = self.shape.doublings

    @property
    def shape(self) -> StyleGAN2Shape:
        """Sizes of the networks without what the images mean."""
        return StyleGAN2Shape(
            image_size=self.image_size,
            base=smallest_base(self.image_size) if self.base is None else self.base,
            channels=self.channels,
            z_dim=self.z_dim,
            w_dim=self.w_dim,
            num_labels=self.label_dim,
            mapping_layers=self.mapping_layers,
            channel_base=self.channel_base,
            channel_max=self.channel_max,
            clamp=self.clamp,
        )

    @classmethod
    def tiny(cls) -> Self:
        """16 px, 8 to 16 channels."""
        return cls(
            image_size=(16, 16),
            channels=1,
            label_kind="single",
            label_names=("no finding", "finding"),
            z_dim=16,
            w_dim=16,
            mapping_layers=2,
            channel_base=128,
            channel_max=16,
        )


def smallest_base(image_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which synthesis of such images starts, none below 4.

    Raises:
        ValueError: If both sides of it were 8 or more, as for 250 x 250, where resolutions would be missing.
    """
    height, width = image_size
    while height % 2 == width % 2 == 0 and min(height, width) >= 8:
        height, width = height // 2, width // 2
    if not 4 <= min(height, width) < 8:
        raise ValueError(
            f"image_size is {image_size}; halved as often as can be it is {(height, width)}. Use sides of which one is "
            "4 to 7 times a power of two, and the other divisible by as many, such as 224, 256 or 320; or state base"
        )
    return height, width


class StyledGenerator(Generator):
    """Base of the families whose styles come from a mapping network and go to every layer of synthesis.

    Args:
        config: What the generator is rebuilt from.
        mapping: From random vectors and labels to styles.
        z_dim: Length of the random vector.
        w_dim: Length of a style.
        num_styles: Layers that take one.
    """

    config: StyledConfig
    mean_style: Tensor

    def __init__(self, config: StyledConfig, mapping: Mapping, *, z_dim: int, w_dim: int, num_styles: int) -> None:
        super().__init__(config)
        self.mapping = mapping
        self.z_dim, self.num_styles = z_dim, num_styles
        self.register_buffer("mean_style", torch.zeros(w_dim))

    @torch.no_grad()
    def styles(
        self,
        n: int,
        label: Label = None,
        *,
        seed: int = 0,
        first_index: int = 0,
        truncation: float = 1.0,
        truncation_layers: int | None = None,
        center: Center = "label",
        **others: Any,
    ) -> Tensor:
        """The styles (n, num_styles, w_dim) of the images that `sample` draws with the same arguments.

        Args:
            n: Number of images.
            label: Conditions, see `Generator.sample`.
            seed: Seed of the run.
            first_index: Number of the first image in the run.
            truncation: See `_sample` of the family.
            truncation_layers: See `_sample` of the family.
            center: See `_sample` of the family.
            **others: Further options of `sample`; no style depends on them.

        Raises:
            ValueError: If an argument is out of range or unknown to this model.
        """
        if n < 1:
            raise ValueError(f"n is {n}; ask for at least one image")
        own = {"truncation": truncation, "truncation_layers": truncation_layers, "center": center}
        self.check_options(own | others)
        condition = self.label_space.resolve(label, n)
        condition = None if condition is None else condition.to(self.device)
        noise = NoiseSource(seed, range(first_index, first_index + n), self.device)
        with evaluating(self):
            return self._styles(condition, noise, truncation, truncation_layers, center)

    def _check_values(
        self,
        *,
        truncation: float = 1.0,
        truncation_layers: int | None = None,
        center: str = "label",
        **others: Any,
    ) -> None:
        super()._check_values(**others)
        if not 0 <= truncation <= 2:
            raise ValueError(f"truncation is {truncation}; use 0 (the average image) to 1 (none), at most 2")
        if truncation_layers is not None and not 0 <= truncation_layers <= self.num_styles:
            raise ValueError(f"truncation_layers is {truncation_layers}; use 0 to {self.num_styles}, or None for all")
        if center not in get_args(Center):
            raise ValueError(f"center is {center!r}; use 'label', 'all' or 'published'")

    @abstractmethod
    def draw(self, styles: Tensor) -> Tensor:
        """Images (B, C, H, W), about [-1, 1], of styles (B, num_styles, w_dim), with gradients; noise is fixed."""

    @torch.no_grad()
    def synthesize(self, styles: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] of styles (B, num_styles, w_dim).

        Args:
            styles: A style for every layer, coarse to fine; one for all, (B, w_dim), is taken for every layer.

        Raises:
            ValueError: If styles are of another shape.
        """
        with evaluating(self):
            return (self.draw(self._every_style(styles)).float() / 2 + 0.5).clamp(0, 1)

    def _every_style(self, styles: Tensor) -> Tensor:
        """Styles (B, num_styles, w_dim) where the generator is; one for all layers, (B, w_dim), is repeated.

        Raises:
            ValueError: If styles are of another shape.
        """
        if styles.dim() == 2:
            styles = styles[:, None].expand(-1, self.num_styles, -1)
        expected = (self.num_styles, len(self.mean_style))
        if styles.shape[1:] != expected:
            raise ValueError(f"styles have shape {tuple(styles.shape)}; expected (B, {expected[0]}, {expected[1]})")
        return styles.to(self.device)

    def _styles(
        self, label: Tensor | None, noise: NoiseSource, truncation: float, layers: int | None, center: str
    ) -> Tensor:
        if label is None and self.config.needs_label:
            raise ValueError(
                f"there is no label, but this model was trained with labels only; give one of "
                f"{', '.join(map(repr, self.label_space.names))}"
            )
        with torch.autocast(noise.device.type, enabled=False):
            vector = label_vector(label, self.label_space, len(noise), noise.device)
            style: Tensor = self.mapping(noise.normal(self.z_dim), vector)
            styles = style[:, None].repeat(1, self.num_styles, 1)
            if truncation == 1:
                return styles
            if center == "all" and label is not None:
                raise ValueError(
                    "center is 'all', but there are labels: the average over all labels would pull images away from "
                    "theirs; use center='label', no label, or center='published', which does so as the official code"
                )
            middle = (self._label_means(vector, len(noise)) if center == "label" else self.mean_style)[..., None, :]
            styles[:, :layers] = middle + truncation * (styles - middle)[:, :layers]
        return styles

    def _label_means(self, vector: Tensor | None, n: int) -> Tensor:
        """The average style of images with each of the label vectors, (n, w_dim); without labels the average of all."""
        if vector is None:
            return self.mean_style.expand(n, -1)
        kinds, which = vector.unique(dim=0, return_inverse=True)
        stream = torch.Generator().manual_seed(stream_seed("average style"))
        z = torch.randn(_CENTER_DRAWS, self.z_dim, generator=stream).to(vector.device)
        means = [self.mapping(z, kind.expand(len(z), -1)).mean(0) for kind in kinds]
        return torch.stack(means)[which]


class StyleGAN2Generator(StyledGenerator, family="stylegan2"):
    """Draws images in one pass; its styles can be mixed, moved and found for real images, see `latents`."""

    config_class = StyleGAN2Config
    config: StyleGAN2Config

    def __init__(self, config: StyleGAN2Config) -> None:
        shape = config.shape
        mapping = Mapping(shape.z_dim, shape.num_labels, shape.w_dim, shape.mapping_layers)
        super().__init__(config, mapping, z_dim=shape.z_dim, w_dim=shape.w_dim, num_styles=shape.num_styles)
        self.synthesis = Synthesis(shape)

    def draw(self, styles: Tensor) -> Tensor:
        """See `StyledGenerator.draw`."""
        images: Tensor = self.synthesis(styles, *self.synthesis.fixed_noise())
        return images

    @torch.no_grad()
    def synthesize(self, styles: Tensor, *, layer_noise: LayerNoise = "fixed", seed: int = 0) -> Tensor:
        """Images (B, C, H, W) in [0, 1] of styles (B, num_styles, w_dim).

        Args:
            styles: A style for every layer, coarse to fine; one for all, (B, w_dim), is taken for every layer.
            layer_noise: See `_sample`; ``fixed`` gives equal styles equal images.
            seed: Seed of ``random`` noise.

        Raises:
            ValueError: If styles are of another shape, or there is no such noise.
        """
        self._check_values(layer_noise=layer_noise)
        styles = self._every_style(styles)
        noise = NoiseSource(seed, range(len(styles)), self.device)
        with evaluating(self):
            images = for_inference(self.synthesis)(styles, *self._layer_noise(layer_noise, noise))
        scaled: Tensor = (images.float() / 2 + 0.5).clamp(0, 1)
        return scaled

    def _sample(
        self,
        label: Tensor | None,
        noise: NoiseSource,
        *,
        truncation: float = 1.0,
        truncation_layers: int | None = None,
        center: str = "label",
        layer_noise: str = "random",
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
            layer_noise: ``random`` for new noise in every layer of every image, ``fixed`` for that of the weights,
                ``none``.
        """
        styles = self._styles(label, noise, truncation, truncation_layers, center)
        return for_inference(self.synthesis)(styles, *self._layer_noise(layer_noise, noise))

    def _check_values(self, *, layer_noise: str = "random", **others: Any) -> None:
        super()._check_values(**others)
        if layer_noise not in get_args(LayerNoise):
            raise ValueError(f"layer_noise is {layer_noise!r}; use one of {', '.join(get_args(LayerNoise))}")

    def _layer_noise(self, kind: str, noise: NoiseSource) -> list[Tensor | None]:
        if kind == "fixed":
            return self.synthesis.fixed_noise()
        sizes = self.synthesis.noise_sizes()
        return [noise.normal(1, *size) if kind == "random" else None for size in sizes]


def build_discriminator(config: StyleGAN2Config, *, group: int = 4, mapping_layers: int = 8) -> Discriminator:
    """The discriminator of the same sizes as the generator of a config.

    Args:
        config: The generator's.
        group: Images per group of minibatch deviation.
        mapping_layers: Layers that read the label.
    """
    return Discriminator(config.shape, group=group, mapping_layers=mapping_layers)
