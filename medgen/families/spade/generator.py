"""SPADE: images of label maps, in a style that is given, drawn, or that of a group of training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from medgen.data.encoded import weights_hash
from medgen.families.spade.codes import CodePrior, StyleCodes
from medgen.families.spade.encoders import InnerStyleEncoder, StyleEncoder
from medgen.families.spade.label_maps import LabelMapShape, LabelMapVAE
from medgen.families.spade.masks import checked_masks, masks_of_files
from medgen.families.spade.networks import Modulation, SPADEShape, SPADESynthesis, instance_edges, semantic_map
from medgen.families.spade.normalisation import Norm
from medgen.generator import Generator, GeneratorConfig, PerImage
from medgen.labels import Label
from medgen.nn.inference import for_inference
from medgen.nn.label_vector import label_vector
from medgen.nn.modes import evaluating
from medgen.noise import NoiseSource

Style = Literal["none", "vae", "inside", "drawn"]


@dataclass(frozen=True, kw_only=True)
class SPADEConfig(GeneratorConfig):
    """Sizes of the networks; the defaults are the published ones for 256 px.

    Attributes:
        mask_names: Classes of the label maps, in the order of their numbers; the background is first.
        dont_care: Whether label maps may hold one more number, that of the last class plus one, where nobody said what
            is there.
        instance_edges: Whether the generator sees the borders between instances. Where no map of instances is given,
            and always in training, these are the borders between classes.
        width: Channels at full resolution (``ngf``); 16 times as many at the lowest.
        doublings: How often the image doubles in size from the lowest resolution on, 4 to 7: published as ``few``,
            ``normal``, ``more`` and ``most``.
        norm: Normalisation under SPADE.
        modulation: ``spade``, or ``clade``: one scale and shift for each class, without looking at neighbours.
        kernel_size: Of SPADE's convolutions, 3 or 1.
        hidden: Width of SPADE's hidden layer; 128 is published.
        style: ``none``; ``vae`` for a style encoder beside the generator, as published; ``inside`` for one that is part
            of it, as published for cardiac MR.
            ``drawn`` takes codes and has no encoder that makes them of images, as official generators without theirs.
        style_dim: Length of a style code; published for ``inside`` are the channels of the lowest resolution.
        style_size: Height and width at which the style encoder sees images; None for their own. 256 is published.
        style_halvings: Layers of the style encoder beside the generator; None for as many as leave 4 pixels, at most 6.
        map_dim: Length of the codes of label maps; 0 for a generator that draws none.
        map_width: Channels of the label-map autoencoder at full resolution.

    Source: Park et al. 2019, "Semantic image synthesis with spatially-adaptive normalization"; ``inside``: Amirrajab et
    al. 2022, "Pathology synthesis of 3D-consistent cardiac MR images using 2D VAEs and GANs"; ``clade``: Tan et al.
    2021, "Efficient semantic image synthesis via class-adaptive normalization".
    """

    image_size: tuple[int, int] = (256, 256)
    channels: int = 3
    mask_names: tuple[str, ...]
    dont_care: bool = False
    instance_edges: bool = False
    width: int = 64
    doublings: int = 5
    norm: Norm = "batch"
    modulation: Modulation = "spade"
    kernel_size: int = 3
    hidden: int = 128
    style: Style = "vae"
    style_dim: int = 256
    style_size: int | None = 256
    style_halvings: int | None = None
    map_dim: int = 0
    map_width: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mask_names) < 2 or len(set(self.mask_names)) != len(self.mask_names):
            raise ValueError(f"mask_names is {list(self.mask_names)}; give at least two classes, each by another name")
        if self.style not in get_args(Style):
            raise ValueError(f"style is {self.style!r}; use one of {', '.join(get_args(Style))}")
        if self.map_dim < 0:
            raise ValueError(f"map_dim is {self.map_dim}; use a length, or 0 for no label-map autoencoder")
        _ = self.shape, self.map_shape

    @property
    def num_classes(self) -> int:
        """Numbers that label maps may hold."""
        return len(self.mask_names) + self.dont_care

    @property
    def shape(self) -> SPADEShape:
        """Sizes of the synthesis network."""
        return SPADEShape(
            image_size=self.image_size,
            channels=self.channels,
            num_classes=self.num_classes + self.instance_edges,
            width=self.width,
            doublings=self.doublings,
            norm=self.norm,
            modulation=self.modulation,
            kernel_size=self.kernel_size,
            hidden=self.hidden,
            style="vae" if self.style == "drawn" else self.style,
            style_dim=self.style_dim if self.style != "none" else 0,
        )

    @property
    def map_shape(self) -> LabelMapShape | None:
        """Sizes of the label-map autoencoder; None where there is none."""
        if not self.map_dim:
            return None
        return LabelMapShape(
            num_classes=self.num_classes, image_size=self.image_size, width=self.map_width, code_dim=self.map_dim
        )

    @classmethod
    def tiny(cls) -> Self:
        """16 px, 4 to 64 channels, three classes."""
        return cls(
            image_size=(16, 16),
            channels=1,
            label_kind="single",
            label_names=("no finding", "finding"),
            mask_names=("background", "wall", "cavity"),
            width=4,
            doublings=4,
            hidden=8,
            style_dim=8,
            style_size=None,
            map_dim=4,
            map_width=4,
        )


class SPADEGenerator(Generator, family="spade"):
    """Draws images of label maps.

    Without a mask the maps are drawn as well, by the autoencoder that travels with the weights. Styles and maps are
    drawn from what training images with the asked-for label have.
    """

    config_class = SPADEConfig
    config: SPADEConfig

    def __init__(self, config: SPADEConfig) -> None:
        super().__init__(config)
        self.synthesis = SPADESynthesis(config.shape)
        self.style_encoder = build_style_encoder(config)
        self.style_prior = None if config.style == "none" else CodePrior(config.style_dim, config.label_space)
        self.map_vae = LabelMapVAE(config.map_shape) if config.map_shape else None
        self.map_prior = CodePrior(config.map_dim, config.label_space) if self.map_vae else None

    def semantic(self, masks: Tensor, instances: Tensor | None = None) -> Tensor:
        """What synthesis and discriminators read of label maps (B, H, W), (B, K, H, W) float."""
        edges = instance_edges(masks if instances is None else instances) if self.config.instance_edges else None
        return semantic_map(masks, len(self.config.mask_names), dont_care=self.config.dont_care, edges=edges)

    @torch.no_grad()
    def encode_style(self, images: Tensor) -> StyleCodes:
        """Styles of images.

        Args:
            images: (B, C, H, W), or one (C, H, W), in [0, 1].

        Raises:
            ValueError: If the generator has no style encoder, or images are none, of another shape or out of range.
        """
        if self.style_encoder is None:
            raise ValueError(f"this generator has no style encoder (config.style is {self.config.style!r})")
        if not isinstance(images, Tensor):
            raise ValueError(f"style images are {images!r:.80}; give a tensor (B, C, H, W) in [0, 1]")
        images = images[None] if images.dim() == 3 else images
        size = None if self.config.style_size is not None else self.config.image_size
        if images.dim() != 4 or images.shape[1] != self.config.channels or size not in (None, tuple(images.shape[2:])):
            expected = f"(B, {self.config.channels}, {', '.join(map(str, size)) if size else 'H, W'})"
            raise ValueError(f"style images have shape {tuple(images.shape)}; expected {expected}")
        if not images.numel():
            raise ValueError(f"style images have shape {tuple(images.shape)}; give at least one, of at least one pixel")
        if not images.isfinite().all():
            raise ValueError("style images hold NaN or infinite values; give numbers in [0, 1]")
        if not images.is_floating_point() or images.min() < 0 or images.max() > 1:
            raise ValueError("style images must be floating point in [0, 1]; divide 8-bit ones by 255")
        with evaluating(self):
            values = self.style_encoder.mean(images.to(self.device, torch.float32) * 2 - 1)
        return StyleCodes(values.cpu(), self._encoder_hash())

    @torch.no_grad()
    def sample_masks(
        self, n: int, label: Label = None, *, seed: int = 0, first_index: int = 0, truncation: float = 1.0
    ) -> Tensor:
        """The label maps (n, H, W), int64, that `sample` draws with the same arguments.

        Raises:
            ValueError: If the generator draws no label maps, or `truncation` is out of range.
        """
        self._maps()
        self._check_values(truncation=truncation)
        condition = self.label_space.resolve(label, n)
        condition = None if condition is None else condition.to(self.device)
        noise = NoiseSource(seed, range(first_index, first_index + n), self.device)
        with evaluating(self):
            return self._draw_masks(condition, noise.normal(self.config.map_dim), truncation).cpu()

    @torch.no_grad()
    def encode_masks(self, masks: Tensor) -> Tensor:
        """Codes (n, map_dim) of label maps (n, H, W), or one (H, W); `decode_masks` brings them back, nearly.

        Raises:
            ValueError: If the generator draws no label maps, or these are not of its classes and size.
        """
        vae, _ = self._maps()
        with evaluating(self):
            maps = checked_masks(masks, self.config.num_classes, self.config.image_size)
            return vae.encode((maps[None] if maps.dim() == 2 else maps).to(self.device))[0].cpu()

    @torch.no_grad()
    def decode_masks(self, codes: Tensor) -> Tensor:
        """Label maps (n, H, W), int64, of codes (n, map_dim), which may be blends of others.

        Raises:
            ValueError: If the generator draws no label maps, or codes are of another length.
        """
        vae, _ = self._maps()
        if codes.dim() != 2 or codes.shape[1] != self.config.map_dim:
            raise ValueError(f"codes have shape {tuple(codes.shape)}; expected (n, {self.config.map_dim})")
        with evaluating(self):
            return vae.draw(codes.to(self.device)).cpu()

    def toward(self, codes: Tensor, label: Label, amount: float = 1.0) -> Tensor:
        """Codes of label maps, (n, map_dim), moved toward those of a label, such as a pathology, or of one for each.

        The direction is that from the mean of all training maps to the mean of those with the label; 1 is its length.

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
        """See `Generator.masks_for`."""
        prepared = self._prepare(options, range(first_index, first_index + n))
        if isinstance(mask := prepared.get("mask"), PerImage):
            return mask.values
        return self.sample_masks(
            n, label, seed=seed, first_index=first_index, truncation=options.get("truncation", 1.0)
        )

    def _check_values(self, *, truncation: float = 1.0, mask: object = None, **_: Any) -> None:
        if not 0 <= truncation <= 2:
            raise ValueError(f"truncation is {truncation}; use 0 (the mean) to 1 (as in training images), at most 2")
        if mask is None and self.map_vae is None:
            raise ValueError(
                "mask is None, and this generator has no label-map autoencoder to draw one (config.map_dim is 0); give "
                "mask: a tensor (n, H, W) of class numbers, or a file or folder of index PNGs"
            )
        if isinstance(mask, str | Path):
            checked_masks(masks_of_files(mask, range(1)), self.config.num_classes, self.config.image_size)

    def _prepare(self, options: Mapping[str, Any], indices: range) -> dict[str, Any]:
        """Masks and styles, one for each image."""
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
        """An image file as training images are read, (C, H, W) in [0, 1]."""
        from medgen.data.preprocessing import resized
        from medgen.data.readers import IntensityWindow, read_image

        raw, config = read_image(path), self.config
        pixels = resized(raw.to_channels(config.channels), config.image_size, "crop")
        window = IntensityWindow(*config.intensity_window, config.intensity_unit)
        return torch.from_numpy(window.apply(replace(raw, pixels=pixels), str(path))).movedim(-1, 0)

    def _group(self, style: str) -> _Group | None:
        """A class, or a finding alone, by its name; None if the text is a file's name."""
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
        truncation: float = 1.0,
    ) -> Tensor:
        """One batch of images.

        Args:
            label: Conditions of the images' maps and styles, (B,) or (B, K), or None.
            noise: One random stream per image.
            mask: Label maps, (n, H, W) or one for all (H, W), or a file or folder of index PNGs that images take in
                turn; None draws maps.
            style: Images (n, C, H, W) in [0, 1], an image file, the result of `encode_style`, or the name of a label
                for its styles: those of a class's training images, or those that go with a finding and no other,
                which follow from all training images as findings add up. None for the styles of the image's label.
            instances: Numbers of instances of given masks, (n, H, W) or one for all (H, W), or files, for generators
                with instance edges; None takes the borders between classes, as training does.
            truncation: How far drawn maps and styles may be from the mean one: 1 as far as training images are, 0 not.
        """
        with torch.autocast(noise.device.type, enabled=False):  # codes and maps are the same in every precision
            # Always drawn, so that a seed has the same style whether its map is given or not.
            map_noise = noise.normal(self.config.map_dim)
            masks = mask if isinstance(mask, Tensor) else self._draw_masks(label, map_noise, truncation)
            codes = style if isinstance(style, Tensor) else self._draw_styles(label, style, noise, truncation)
        apart = instances if isinstance(instances, Tensor) else None
        return for_inference(self.synthesis)(self.semantic(masks, apart), codes)

    def _draw_masks(self, label: Tensor | None, normal: Tensor, truncation: float) -> Tensor:
        vae, prior = self._maps()
        vectors = label_vector(label, self.label_space, len(normal), normal.device)
        return vae.draw(prior.draw(vectors, truncation * normal))

    def _draw_styles(self, label: Tensor | None, group: object, noise: NoiseSource, truncation: float) -> Tensor | None:
        if self.style_prior is None:
            return None
        vectors = label_vector(label, self.label_space, len(noise), noise.device)
        if isinstance(group, _Group):
            vectors = group.vector.to(noise.device).expand(len(noise), -1)
        return self.style_prior.draw(vectors, truncation * noise.normal(self.config.style_dim))


@dataclass(frozen=True)
class _Group:
    """The styles that go with a label, as its vector (1, K)."""

    vector: Tensor


def build_style_encoder(config: SPADEConfig) -> StyleEncoder | InnerStyleEncoder | None:
    """The style encoder of a config; None for generators without one."""
    if config.style in ("none", "drawn"):
        return None
    if config.style == "inside":
        return InnerStyleEncoder(config.shape)
    return StyleEncoder(
        config.image_size,
        config.channels,
        config.width,
        config.style_dim,
        size=config.style_size,
        halvings=config.style_halvings,
    )


def _one_each(values: Tensor, dims: int, n: int, name: str) -> Tensor:
    """Values with `dims` dimensions for each of n images; one for all is repeated."""
    if values.dim() == dims:
        values = values[None]
    if len(values) not in (1, n):
        raise ValueError(f"{name} has {len(values)} entries for {n} images; give one for each, or one for all")
    return values.expand(n, *values.shape[1:])
