"""StyleGAN2: a random vector and a label become a style, and the style an image, in one pass."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from medgen.families.stylegan2.config import StyledConfig, StyleGAN2Config
from medgen.families.stylegan2.networks import Mapping, Synthesis
from medgen.generator import Generator
from medgen.labels import Label
from medgen.nn.inference import for_inference
from medgen.nn.label_vector import label_vector
from medgen.noise import NoiseSource, stream_seed
from medgen.renamed import renamed_arguments

NoiseMode = Literal["random", "fixed", "none"]
Center = Literal["label", "all", "published"]

_CENTER_DRAWS = 2048
"""Styles whose mean stands for the average style of a label."""


class StyledGenerator(Generator):
    """Base of the families with a mapping network whose styles go to every layer of synthesis."""

    renamed_options: ClassVar[dict[str, str]] = {
        "truncation": "truncation_psi",
        "truncation_layers": "truncation_cutoff",
    }
    renamed_weights: ClassVar[dict[str, str]] = {"mean_style": "w_avg"}
    config: StyledConfig
    w_avg: Tensor

    def __init__(self, config: StyledConfig) -> None:
        super().__init__(config)
        self.mapping = Mapping(config.z_dim, config.label_dim, config.w_dim, config.mapping_layers)
        self.register_buffer("w_avg", torch.zeros(config.w_dim))

    @property
    def num_ws(self) -> int:
        """Number of style vectors of an image: one for each layer."""
        return self.config.num_ws

    @property
    def mean_style(self) -> Tensor:
        """Old name of `w_avg`."""
        warnings.warn("mean_style is now w_avg; the old name goes with the next release", FutureWarning, stacklevel=2)
        return self.w_avg

    @property
    def num_styles(self) -> int:
        """Old name of `num_ws`."""
        warnings.warn("num_styles is now num_ws; the old name goes with the next release", FutureWarning, stacklevel=2)
        return self.num_ws

    @renamed_arguments(truncation="truncation_psi", truncation_layers="truncation_cutoff")
    def styles(
        self,
        n: int,
        label: Label = None,
        *,
        seed: int = 0,
        first_index: int = 0,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        center: Center = "label",
        **others: Any,
    ) -> Tensor:
        """Draw the styles (n, num_ws, w_dim) of the images that `sample` draws with equal arguments.

        Options of `sample` that no style depends on, such as a noise mode, are accepted.

        Raises:
            ValueError: If an argument is out of range or unknown to this model.
        """
        own = {"truncation_psi": truncation_psi, "truncation_cutoff": truncation_cutoff, "center": center}
        self.check_options(own | others)
        with self.session(n, label, seed=seed, first_index=first_index) as session:
            return self._styles(session.condition, session.noise, truncation_psi, truncation_cutoff, center)

    def _check_values(
        self, *, truncation_psi: float = 1.0, truncation_cutoff: int | None = None, center: str = "label", **others: Any
    ) -> None:
        super()._check_values(**others)
        if not 0 <= truncation_psi <= 2:
            raise ValueError(f"truncation_psi is {truncation_psi}; use 0 (the average image) to 1 (none), at most 2")
        if truncation_cutoff is not None and not 0 <= truncation_cutoff <= self.num_ws:
            raise ValueError(f"truncation_cutoff is {truncation_cutoff}; use 0 to {self.num_ws}, or None for all")
        if center not in get_args(Center):
            raise ValueError(f"center is {center!r}; use 'label', 'all' or 'published'")

    @abstractmethod
    def draw(self, styles: Tensor) -> Tensor:
        """Draw images (B, C, H, W), about [-1, 1], from styles (B, num_ws, w_dim), with gradients and fixed noise."""

    def synthesize(self, styles: Tensor) -> Tensor:
        """Draw images (B, C, H, W) in [0, 1] from styles of every layer, (B, num_ws, w_dim), or of all, (B, w_dim).

        Raises:
            ValueError: If styles are of another shape.
        """
        styles = self._every_style(styles)
        with self.session(len(styles)):
            return _shown(self.draw(styles))

    def _every_style(self, styles: Tensor) -> Tensor:
        """Bring styles to the shape (B, num_ws, w_dim) and the device of the generator; (B, w_dim) is repeated."""
        if styles.dim() == 2:
            styles = styles[:, None].expand(-1, self.num_ws, -1)
        expected = (self.num_ws, self.config.w_dim)
        if styles.shape[1:] != expected:
            raise ValueError(f"styles have shape {tuple(styles.shape)}; expected (B, {expected[0]}, {expected[1]})")
        return styles.to(self.device)

    def _styles(self, label: Tensor | None, noise: NoiseSource, psi: float, cutoff: int | None, center: str) -> Tensor:
        if label is None and self.config.needs_label:
            raise ValueError(
                f"there is no label, but this model was trained with labels only; give one of "
                f"{', '.join(map(repr, self.label_space.names))}"
            )
        with torch.autocast(noise.device.type, enabled=False):
            vector = label_vector(label, self.label_space, len(noise), noise.device)
            style: Tensor = self.mapping(noise.normal(self.config.z_dim), vector)
            styles = style[:, None].repeat(1, self.num_ws, 1)
            if psi == 1:
                return styles
            if center == "all" and label is not None:
                raise ValueError(
                    "center is 'all', but there are labels: the average over all labels would pull images away from "
                    "theirs; use center='label', no label, or center='published', which does so as the official code"
                )
            middle = (self._label_means(vector, len(noise)) if center == "label" else self.w_avg)[..., None, :]
            styles[:, :cutoff] = middle + psi * (styles - middle)[:, :cutoff]
        return styles

    def _label_means(self, vector: Tensor | None, n: int) -> Tensor:
        """Compute the average style for each of n label vectors, (n, w_dim); without labels the average of all."""
        if vector is None:
            return self.w_avg.expand(n, -1)
        kinds, which = vector.unique(dim=0, return_inverse=True)
        stream = torch.Generator().manual_seed(stream_seed("average style"))
        z = torch.randn(_CENTER_DRAWS, self.config.z_dim, generator=stream).to(vector.device)
        means = [self.mapping(z, kind.expand(len(z), -1)).mean(0) for kind in kinds]
        return torch.stack(means)[which]


class StyleGAN2Generator(StyledGenerator, family="stylegan2"):
    """Draws images in one pass; its styles can be mixed, moved and found for real images, see `latents`."""

    config_class = StyleGAN2Config
    renamed_options: ClassVar[dict[str, str]] = {**StyledGenerator.renamed_options, "layer_noise": "noise_mode"}
    config: StyleGAN2Config

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__(config)
        self.synthesis = Synthesis(config)

    def draw(self, styles: Tensor) -> Tensor:
        """Draw images from styles, see `StyledGenerator.draw`."""
        images: Tensor = self.synthesis(styles, *self.synthesis.fixed_noise())
        return images

    @renamed_arguments(layer_noise="noise_mode")
    def synthesize(self, styles: Tensor, *, noise_mode: NoiseMode = "fixed", seed: int = 0) -> Tensor:
        """Draw images from styles, see `StyledGenerator.synthesize`; ``fixed`` noise gives equal styles equal images.

        Raises:
            ValueError: If styles are of another shape, or there is no such noise mode.
        """
        self._check_values(noise_mode=noise_mode)
        styles = self._every_style(styles)
        with self.session(len(styles), seed=seed) as session:
            return _shown(for_inference(self.synthesis)(styles, *self._noise(noise_mode, session.noise)))

    def _sample(
        self,
        label: Tensor | None,
        noise: NoiseSource,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        center: str = "label",
        noise_mode: str = "random",
    ) -> Tensor:
        """Draw one batch of images, see `Generator._sample`.

        Args:
            label: Conditions, (B,) or (B, K), or None.
            noise: One random stream per image.
            truncation_psi: Scale of the distance of styles from the average one: 1 for no change, less for more typical
                images that vary less.
            truncation_cutoff: Number of layers that are truncated, coarse to fine; None for all.
            center: The average that styles are pulled to: ``label`` for that of images with equal labels, ``all`` for
                that over all labels, for images without one, ``published`` for that over all labels in any case.
            noise_mode: Noise of the layers: ``random`` for new noise in every image, ``fixed`` for that stored with the
                weights, ``none``.
        """
        styles = self._styles(label, noise, truncation_psi, truncation_cutoff, center)
        return for_inference(self.synthesis)(styles, *self._noise(noise_mode, noise))

    def _check_values(self, *, noise_mode: str = "random", **others: Any) -> None:
        super()._check_values(**others)
        if noise_mode not in get_args(NoiseMode):
            raise ValueError(f"noise_mode is {noise_mode!r}; use one of {', '.join(get_args(NoiseMode))}")

    def _noise(self, mode: str, noise: NoiseSource) -> list[Tensor | None]:
        if mode == "fixed":
            return self.synthesis.fixed_noise()
        sizes = self.synthesis.noise_sizes()
        return [noise.normal(1, *size) if mode == "random" else None for size in sizes]


def _shown(images: Tensor) -> Tensor:
    """Bring images of synthesis, about [-1, 1], to [0, 1]."""
    return (images.float() / 2 + 0.5).clamp(0, 1)
