"""The config of SPADE: sizes of the generator, the style encoder and the autoencoder of label maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple, Self, get_args

import torch

from medgen.config import Moved
from medgen.families.spade.normalisation import Norm
from medgen.generator import GeneratorConfig

Modulation = Literal["spade", "clade"]
Style = Literal["none", "vae", "inside", "drawn"]

_UPSAMPLINGS = {"none": (4, 5, 6, 7), "vae": (4, 5, 6, 7), "drawn": (4, 5, 6, 7), "inside": (4, 5)}


class Stage(NamedTuple):
    """A residual block of the generator, with its channels and whether its input is doubled in size first."""

    in_channels: int
    out_channels: int
    upsamples: bool


@dataclass(frozen=True, kw_only=True)
class SPADEConfig(GeneratorConfig):
    """Sizes of the networks; the defaults are the published ones for 256 px.

    Attributes:
        image_size: Height and width, both divisible by 2 to the power of `num_upsamplings`.
        mask_names: Classes of the label maps, in the order of their numbers; the background is first.
        dont_care: Whether label maps may hold one more number, that of the last class plus one, for unlabelled pixels.
        instance_edges: Whether the generator reads the borders between instances. Where no map of instances is given,
            and always in training, these are the borders between classes.
        width: Channels at full resolution (``ngf``).
        num_upsamplings: Upsamplings from the lowest resolution on: 4, 5, 6, 7 (published as ``few``, ``normal``,
            ``more``, ``most``), where the seventh also halves the width; with style ``inside`` 4 or 5 (``few``,
            ``most``), where the fifth doubles the widest layers and halves the width.
        norm: Normalisation before modulation.
        modulation: ``spade`` reads the label map around a pixel, ``clade`` the pixel's class only.
        kernel_size: Kernel size of SPADE's convolutions, 3 or 1.
        hidden: Width of SPADE's hidden layer; 128 is published.
        style: ``none``: synthesis starts from the semantic map. ``vae``: from the code of a style encoder beside the
            generator, as published. ``inside``: from that of one within it, as published for cardiac MR. ``drawn``:
            from a code without an encoder, as official generators without theirs.
        style_dim: Length of a style code; published for ``inside`` are the channels of the lowest resolution.
        style_size: Height and width that the style encoder resizes images to; None for their own. 256 is published.
        style_halvings: Layers of the style encoder beside the generator; None for as many as leave 4 pixels, at most 6.
        map_dim: Length of the codes of label maps; 0 for no autoencoder of label maps.
        map_width: Channels of that autoencoder at full resolution.

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
    num_upsamplings: int = 5
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

    moved: ClassVar[Mapping[str, Moved]] = {"doublings": Moved("num_upsamplings")}

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mask_names) < 2 or len(set(self.mask_names)) != len(self.mask_names):
            raise ValueError(f"mask_names is {list(self.mask_names)}; give at least two classes, each by another name")
        for name, choices in (("norm", Norm), ("modulation", Modulation), ("style", Style)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(get_args(choices))}")
        if self.map_dim < 0:
            raise ValueError(f"map_dim is {self.map_dim}; use a length, or 0 for no label-map autoencoder")
        for name in ("width", "hidden", "map_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use at least 1")
        if self.kernel_size not in (1, 3):
            raise ValueError(f"kernel_size is {self.kernel_size}; SPADE's convolutions are 1 or 3 pixels wide")
        if self.style != "none" and self.style_dim < 1:
            raise ValueError(f"style_dim is {self.style_dim} with style {self.style!r}; give the length of the code")
        if self.num_upsamplings not in _UPSAMPLINGS[self.style]:
            allowed = ", ".join(map(str, _UPSAMPLINGS[self.style]))
            raise ValueError(
                f"num_upsamplings is {self.num_upsamplings}; with style {self.style!r} use one of {allowed}"
            )
        if any(side < 1 or side % (1 << self.num_upsamplings) for side in self.image_size):
            raise ValueError(
                f"image_size is {self.image_size}; with num_upsamplings {self.num_upsamplings} both sides must be "
                f"divisible by {1 << self.num_upsamplings}"
            )
        if self.norm == "instance" and self.base == (1, 1):
            raise ValueError(
                f"norm is 'instance', but num_upsamplings {self.num_upsamplings} to an image of {self.image_size} "
                "starts from a single pixel, which it makes 0; use fewer upsamplings, or norm 'group'"
            )
        if self.stages[-1].out_channels < 1:
            raise ValueError(
                f"width is {self.width}; num_upsamplings {self.num_upsamplings} halves it, so use at least 2"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes in label maps."""
        return len(self.mask_names) + self.dont_care

    @property
    def semantic_channels(self) -> int:
        """Channels of the semantic map."""
        return self.num_classes + self.instance_edges

    @property
    def code_dim(self) -> int:
        """Length of the code that synthesis starts from; 0 where it starts from the semantic map."""
        return 0 if self.style == "none" else self.style_dim

    @property
    def base(self) -> tuple[int, int]:
        """Height and width of the lowest resolution."""
        return self.image_size[0] >> self.num_upsamplings, self.image_size[1] >> self.num_upsamplings

    @property
    def base_width(self) -> int:
        """Channels of the lowest resolution."""
        return self.stages[0].in_channels

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The residual blocks, coarse to fine."""
        width, inside = self.width, self.style == "inside"
        widest = 32 * width if inside and self.num_upsamplings == 5 else 16 * width
        coarse = [False] + ([False] if inside or self.num_upsamplings == 4 else [True, self.num_upsamplings > 5])
        fine = [widest, 8 * width, 4 * width, 2 * width, width]
        if self.num_upsamplings == 7 or (inside and self.num_upsamplings == 5):
            fine.append(width // 2)
        return (
            *(Stage(widest, widest, upsamples) for upsamples in coarse),
            *(Stage(a, b, True) for a, b in pairwise(fine)),
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
            num_upsamplings=4,
            hidden=8,
            style_dim=8,
            style_size=None,
            map_dim=4,
            map_width=4,
        )


# Training checkpoints of medgen 0.1 hold it under this name.
torch.serialization.add_safe_globals([(SPADEConfig, "medgen.families.spade.generator.SPADEConfig")])
