"""SPADE: images of label maps, in a given style, or in one drawn from those of training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from medgen.data.encoded import weights_hash
from medgen.families.spade.codes import CodePrior, StyleCodes
from medgen.families.spade.config import SPADEConfig
from medgen.families.spade.encoders import InnerStyleEncoder, StyleEncoder
from medgen.families.spade.label_maps import LabelMapVAE
from medgen.families.spade.masks import checked_masks, masks_of_files
from medgen.families.spade.networks import SPADESynthesis, instance_edges, semantic_map
from medgen.generator import Generator, PerImage
from medgen.images import check_images
from medgen.labels import Label
from medgen.nn.inference import for_inference
from medgen.nn.label_vector import label_vector
from medgen.nn.modes import evaluating
from medgen.noise import NoiseSource
from medgen.renamed import current_arguments, renamed_arguments


class SPADEGenerator(Generator, family="spade"):
    """Draws images of label maps.

    Without a mask, maps are drawn as well, by the autoencoder of label maps. Styles and maps are drawn from their
    distributions in training images with the given label.
    """

    config_class = SPADEConfig
    renamed_options: ClassVar[dict[str, str]] = {"truncation": "truncation_psi"}
    config: SPADEConfig

    def __init__(self, config: SPADEConfig) -> None:
        super().__init__(config)
        self.synthesis = SPADESynthesis(config)
        self.style_encoder = build_style_encoder(config)
        self.style_prior = CodePrior(config.code_dim, config.label_space) if config.code_dim else None
        self.map_vae = build_map_vae(config) if config.map_dim else None
        self.map_prior = CodePrior(config.map_dim, config.label_space) if config.map_dim else None

    def semantic(self, masks: Tensor, instances: Tensor | None = None) -> Tensor:
        """One-hot encode label maps (B, H, W) for synthesis and discriminators, as (B, K, H, W) float."""
        edges = instance_edges(masks if instances is None else instances) if self.config.instance_edges else None
        return semantic_map(masks, len(self.config.mask_names), dont_care=self.config.dont_care, edges=edges)

    @torch.no_grad()
    def encode_style(self, images: Tensor) -> StyleCodes:
        """Encode the styles of images (B, C, H, W), or of one (C, H, W), in [0, 1].

        Raises:
            ValueError: If the generator has no style encoder, or images are of another type, shape or range.
        """
        if self.style_encoder is None:
            raise ValueError(f"this generator has no style encoder (config.style is {self.config.style!r})")
        images = images[None] if isinstance(images, Tensor) and images.dim() == 3 else images
        size = self.config.image_size if self.config.style_size is None else None
        check_images(images, channels=self.config.channels, size=size, name="style images")
        if not images.numel():
            raise ValueError(f"style images have shape {tuple(images.shape)}; give at least one, of at least one pixel")
        with evaluating(self):
            values = self.style_encoder.mean(images.to(self.device, torch.float32) * 2 - 1)
        return StyleCodes(values.cpu(), self._encoder_hash())

    @renamed_arguments(truncation="truncation_psi")
    def sample_masks(
        self, n: int, label: Label = None, *, seed: int = 0, first_index: int = 0, truncation_psi: float = 1.0
    ) -> Tensor:
        """Draw the label maps (n, H, W), int64, that `sample` draws with equal arguments.

        Raises:
            ValueError: If the generator draws no label maps, or `truncation_psi` is out of range.
        """
        self._maps()
        self._check_values(truncation_psi=truncation_psi)
        with self.session(n, label, seed=seed, first_index=first_index) as session:
            normal = session.noise.normal(self.config.map_dim)
            return self._draw_masks(session.condition, normal, truncation_psi).cpu()

    @torch.no_grad()
    def encode_masks(self, masks: Tensor) -> Tensor:
        """Encode label maps (n, H, W), or one (H, W), as codes (n, map_dim); `decode_masks` is nearly the inverse.

        Raises:
            ValueError: If the generator draws no label maps, or these are not of its classes and size.
        """
        vae, _ = self._maps()
        with evaluating(self):
            maps = checked_masks(masks, self.config.num_classes, self.config.image_size)
            return vae.encode((maps[None] if maps.dim() == 2 else maps).to(self.device))[0].cpu()

    @torch.no_grad()
    def decode_masks(self, codes: Tensor) -> Tensor:
        """Decode codes (n, map_dim), such as blends of others, to label maps (n, H, W), int64.

        Raises:
            ValueError: If the generator draws no label maps, or codes are of another length.
        """
        vae, _ = self._maps()
        if codes.dim() != 2 or codes.shape[1] != self.config.map_dim:
            raise ValueError(f"codes have shape {tuple(codes.shape)}; expected (n, {self.config.map_dim})")
        with evaluating(self):
            return vae.draw(codes.to(self.device)).cpu()

    def toward(self, codes: Tensor, label: Label, amount: float = 1.0) -> Tensor:
        """Move codes of label maps, (n, map_dim), toward those of a label, such as a pathology, or of one for each.

        The unit of `amount` is the way from the mean of all training maps to the mean of those with the label.

        Raises:
            ValueError: If the label is unknown, or the generator draws no label maps.
        """
        _, prior = self._maps()
        condition = self.label_space.resolve(label, len(codes))
        vector = label_vector(condition, self.label_space, len(codes), torch.device("cpu"))
        if condition is None or vector is None:
            raise ValueError("there is no label to move toward; give one of this generator's")
        direction = vector @ prior.slope.cpu()
        return codes + amount * direction

    def masks_for(
        self, n: int, label: Label = None, *, seed: int = 0, first_index: int = 0, **options: Any
    ) -> Tensor | None:
        """Label maps of the images, see `Generator.masks_for`."""
        options = current_arguments(options, self.renamed_options)
        prepared = self._prepare(options, range(first_index, first_index + n))
        if isinstance(mask := prepared.get("mask"), PerImage):
            return mask.values
        return self.sample_masks(
            n, label, seed=seed, first_index=first_index, truncation_psi=options.get("truncation_psi", 1.0)
        )

    def _check_values(self, *, truncation_psi: float = 1.0, mask: object = None, **_: Any) -> None:
        if not 0 <= truncation_psi <= 2:
            raise ValueError(
                f"truncation_psi is {truncation_psi}; use 0 (the mean) to 1 (as in training images), at most 2"
            )
        if mask is None and self.map_vae is None:
            raise ValueError(
                "mask is None, and this generator has no label-map autoencoder to draw one (config.map_dim is 0); give "
                "mask: a tensor (n, H, W) of class numbers, or a file or folder of index PNGs"
            )
        if isinstance(mask, str | Path):
            checked_masks(masks_of_files(mask, range(1)), self.config.num_classes, self.config.image_size)

    def _prepare(self, options: Mapping[str, Any], indices: range) -> dict[str, Any]:
        """Mask and style of each image."""
        prepared = dict(options)
        if prepared.get("instances") is not None:
            if not self.config.instance_edges:
                raise ValueError(
                    "instances are given, but this generator does not see the borders between them "
                    "(config.instance_edges is False); leave instances out"
                )
            if prepared.get("mask") is None:
                raise ValueError("instances are given without the label maps they are of; give mask, too")
        for name, classes in (("mask", self.config.num_classes), ("instances", None)):
            if (given := prepared.get(name)) is not None:
                maps = masks_of_files(given, indices) if isinstance(given, str | Path) else given
                maps = checked_masks(maps, classes, self.config.image_size, name)
                prepared[name] = PerImage(_one_each(maps, 2, len(indices), name))
        if (style := prepared.get("style")) is not None:
            if self.style_prior is None:
                raise ValueError("this generator has no styles (config.style is 'none'); leave style out")
            group = self._group(str(style)) if isinstance(style, str | Path) else None
            codes = self._style_codes(style) if group is None else None
            prepared["style"] = group if codes is None else PerImage(_one_each(codes, 1, len(indices), "style"))
        return prepared

    def _style_codes(self, style: object) -> Tensor:
        if isinstance(style, StyleCodes):
            if style.encoder != self._encoder_hash():
                raise ValueError(
                    "style holds codes of another checkpoint's style encoder; encode the images with this generator's "
                    "encode_style"
                )
            return style.values
        if isinstance(style, str | Path):
            return self.encode_style(self._read_image(style)).values
        if isinstance(style, Tensor):
            return self.encode_style(style).values
        raise ValueError(f"style is {style!r}; give a label, a file, images, or the result of encode_style")

    def _read_image(self, path: str | Path) -> Tensor:
        """Read an image file as in training, (C, H, W) in [0, 1]."""
        from medgen.data.preprocessing import resized
        from medgen.data.readers import IntensityWindow, read_image

        raw, config = read_image(path), self.config
        pixels = resized(raw.to_channels(config.channels), config.image_size, "crop")
        window = IntensityWindow(*config.intensity_window, config.intensity_unit)
        return torch.from_numpy(window.apply(replace(raw, pixels=pixels), str(path))).movedim(-1, 0)

    def _group(self, style: str) -> _Group | None:
        """Look up a class, or a finding alone, by its name; None for the name of a file."""
        space = self.label_space
        if space.kind in ("single", "multi") and style.casefold() in (name.casefold() for name in space.names):
            condition = space.resolve(style if space.kind == "single" else [[style]], 1)
            vector = label_vector(condition, space, 1, torch.device("cpu"))
            return None if vector is None else _Group(vector)
        if not Path(style).is_file():
            groups = f"one of {', '.join(map(repr, space.names))}, or " if len(space) else ""
            raise ValueError(
                f"style {style!r} is neither a group of training images nor a file; use {groups}an image file"
            )
        return None

    def _encoder_hash(self) -> str:
        return weights_hash(self.style_encoder.state_dict()) if self.style_encoder is not None else ""

    def _maps(self) -> tuple[LabelMapVAE, CodePrior]:
        if self.map_vae is None or self.map_prior is None:
            raise ValueError("this generator has no label-map autoencoder (config.map_dim is 0); give masks instead")
        return self.map_vae, self.map_prior

    def _sample(
        self,
        label: Tensor | None,
        noise: NoiseSource,
        *,
        mask: Tensor | str | None = None,
        style: Tensor | str | None = None,
        instances: Tensor | str | None = None,
        truncation_psi: float = 1.0,
    ) -> Tensor:
        """Draw one batch of images.

        Args:
            label: Conditions of maps and styles, (B,) or (B, K), or None.
            noise: One random stream per image.
            mask: Label maps, (n, H, W) or one for all (H, W), or a file or folder of index PNGs that images take in
                turn; None draws maps.
            style: Images (n, C, H, W) in [0, 1], an image file, the result of `encode_style`, or the name of a label
                whose styles are drawn: a class, or a finding with all others absent. None for the image's label.
            instances: Numbers of instances of given masks, (n, H, W) or one for all (H, W), or files, for generators
                with instance edges; None takes the borders between classes, as training does.
            truncation_psi: Scale of the distance of drawn maps and styles from the mean: 1 as in training images.
        """
        with torch.autocast(noise.device.type, enabled=False):  # codes and maps are the same in every precision
            # Always drawn, so that a seed has the same style whether its map is given or not.
            map_noise = noise.normal(self.config.map_dim)
            masks = mask if isinstance(mask, Tensor) else self._draw_masks(label, map_noise, truncation_psi)
            codes = style if isinstance(style, Tensor) else self._draw_styles(label, style, noise, truncation_psi)
        apart = instances if isinstance(instances, Tensor) else None
        return for_inference(self.synthesis)(self.semantic(masks, apart), codes)

    def _draw_masks(self, label: Tensor | None, normal: Tensor, psi: float) -> Tensor:
        vae, prior = self._maps()
        vectors = label_vector(label, self.label_space, len(normal), normal.device)
        return vae.draw(prior.draw(vectors, psi * normal))

    def _draw_styles(self, label: Tensor | None, group: object, noise: NoiseSource, psi: float) -> Tensor | None:
        if self.style_prior is None:
            return None
        vectors = label_vector(label, self.label_space, len(noise), noise.device)
        if isinstance(group, _Group):
            vectors = group.vector.to(noise.device).expand(len(noise), -1)
        return self.style_prior.draw(vectors, psi * noise.normal(self.config.style_dim))


@dataclass(frozen=True)
class _Group:
    """A label whose styles are drawn, as its vector (1, K)."""

    vector: Tensor


def build_style_encoder(config: SPADEConfig) -> StyleEncoder | InnerStyleEncoder | None:
    """Build the style encoder of a config; None for generators without one."""
    if config.style in ("none", "drawn"):
        return None
    if config.style == "inside":
        return InnerStyleEncoder(config)
    return StyleEncoder(
        config.image_size,
        config.channels,
        config.width,
        config.style_dim,
        size=config.style_size,
        halvings=config.style_halvings,
    )


def build_map_vae(config: SPADEConfig) -> LabelMapVAE:
    """Build the autoencoder of label maps of a config."""
    return LabelMapVAE(config.num_classes, config.image_size, config.map_dim, config.map_width)


def _one_each(values: Tensor, dims: int, n: int, name: str) -> Tensor:
    """Give each of n images its value with `dims` dimensions; one for all is repeated."""
    if values.dim() == dims:
        values = values[None]
    if len(values) not in (1, n):
        raise ValueError(f"{name} has {len(values)} entries for {n} images; give one for each, or one for all")
    return values.expand(n, *values.shape[1:])
