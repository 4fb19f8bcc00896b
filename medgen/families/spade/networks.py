"""The generator of SPADE, and the semantic maps it draws images of.

Source: Park et al. 2019, "Semantic image synthesis with spatially-adaptive normalization", section 3 and
appendix A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medgen.families.spade.normalisation import ClassModulation, ModulatedNorm, Norm, SpatialModulation, norm_layer
from medgen.nn.spectral import SpectralConv2d

Modulation = Literal["spade", "clade"]
Style = Literal["none", "vae", "inside"]

SLOPE = 0.2
"""Of the leaky ReLU, for negative numbers."""
_DOUBLINGS = {"none": (4, 5, 6, 7), "vae": (4, 5, 6, 7), "inside": (4, 5)}


class Stage(NamedTuple):
    """A residual block of the generator.

    Attributes:
        in_channels: Channels it gets.
        out_channels: Channels it gives.
        doubles: Whether its input is doubled in size before.
    """

    in_channels: int
    out_channels: int
    doubles: bool


@dataclass(frozen=True, kw_only=True)
class SPADEShape:
    """Sizes of the generator; the defaults are the published ones for 256 px.

    Attributes:
        image_size: Height and width, both divisible by 2 as often as `doublings` says.
        channels: Channels of the images.
        num_classes: Channels of the semantic map.
        width: Channels at full resolution (``ngf``).
        doublings: How often the lowest resolution is doubled: 4, 5, 6, 7 (published as ``few``, ``normal``, ``more``,
            ``most``), where the seventh also halves the width; with style ``inside`` 4 or 5 (``few``, ``most``), where
            the fifth makes the widest layers twice as wide and halves the width.
        norm: What features are normalised by before they are modulated.
        modulation: ``spade`` looks at the label map around a pixel, ``clade`` at the pixel's class only.
        kernel_size: Of SPADE's convolutions, 3 or 1.
        hidden: Width of SPADE's hidden layer.
        style: What the lowest resolution is made of: ``none`` for the semantic map, ``vae`` for a code beside which a
            `StyleEncoder` is trained, ``inside`` for the code of an `InnerStyleEncoder`.
        style_dim: Length of the code; 0 without one.
        spectral: Whether convolutions of the blocks are spectrally normalised.
    """

    image_size: tuple[int, int] = (256, 256)
    channels: int = 3
    num_classes: int
    width: int = 64
    doublings: int = 5
    norm: Norm = "batch"
    modulation: Modulation = "spade"
    kernel_size: int = 3
    hidden: int = 128
    style: Style = "none"
    style_dim: int = 0
    spectral: bool = True

    def __post_init__(self) -> None:
        for name, choices in (("norm", Norm), ("modulation", Modulation), ("style", Style)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(get_args(choices))}")
        for name in ("channels", "num_classes", "width", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use at least 1")
        if self.kernel_size not in (1, 3):
            raise ValueError(f"kernel_size is {self.kernel_size}; SPADE's convolutions are 1 or 3 pixels wide")
        if (self.style_dim > 0) == (self.style == "none") or self.style_dim < 0:
            raise ValueError(
                f"style_dim is {self.style_dim} with style {self.style!r}; give the length of the code, 0 for 'none'"
            )
        if self.doublings not in _DOUBLINGS[self.style]:
            allowed = ", ".join(map(str, _DOUBLINGS[self.style]))
            raise ValueError(f"doublings is {self.doublings}; with style {self.style!r} use one of {allowed}")
        if any(side < 1 or side % (1 << self.doublings) for side in self.image_size):
            raise ValueError(
                f"image_size is {self.image_size}; with {self.doublings} doublings both sides must be divisible by "
                f"{1 << self.doublings}"
            )
        if self.norm == "instance" and self.base == (1, 1):
            raise ValueError(
                f"norm is 'instance', but {self.doublings} doublings to an image of {self.image_size} start from a "
                "single pixel, which it makes 0; use fewer doublings, or norm 'group'"
            )
        if self.stages[-1].out_channels < 1:
            raise ValueError(f"width is {self.width}; {self.doublings} doublings halve it, so use at least 2")

    @property
    def base(self) -> tuple[int, int]:
        """Height and width of the lowest resolution."""
        return self.image_size[0] >> self.doublings, self.image_size[1] >> self.doublings

    @property
    def base_width(self) -> int:
        """Channels of the lowest resolution."""
        return self.stages[0].in_channels

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The residual blocks, coarse to fine."""
        width, inside = self.width, self.style == "inside"
        widest = 32 * width if inside and self.doublings == 5 else 16 * width
        coarse = [False] + ([False] if inside or self.doublings == 4 else [True, self.doublings > 5])
        fine = [widest, 8 * width, 4 * width, 2 * width, width]
        if self.doublings == 7 or (inside and self.doublings == 5):
            fine.append(width // 2)
        return (
            *(Stage(widest, widest, doubles) for doubles in coarse),
            *(Stage(a, b, True) for a, b in pairwise(fine)),
        )

    def check_inputs(self, semantic: Tensor, code: Tensor | None) -> None:
        """Refuse what is not for a generator of these sizes; see `SPADESynthesis.forward`."""
        if tuple(semantic.shape[1:]) != (self.num_classes, *self.image_size):
            expected = ", ".join(map(str, (self.num_classes, *self.image_size)))
            raise ValueError(f"semantic has shape {tuple(semantic.shape)}; expected (B, {expected}), see semantic_map")
        wanted = None if self.style == "none" else (len(semantic), self.style_dim)
        found = None if code is None else tuple(code.shape)
        if found != wanted:
            raise ValueError(
                f"code has shape {found}; with style {self.style!r} give "
                + ("none" if wanted is None else f"one of shape {wanted}")
            )


class SPADEBlock(nn.Module):
    """A residual block whose norms know the label map.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; where they differ, the skip connection has a convolution, too.
        shape: Kinds of norm and modulation.

    Source: Park et al. 2019, section 3, "SPADE generator".
    """

    def __init__(self, in_channels: int, out_channels: int, shape: SPADEShape) -> None:
        super().__init__()
        inner = min(in_channels, out_channels)
        self.first_norm, self.second_norm = _modulated_norm(in_channels, shape), _modulated_norm(inner, shape)
        convolution = SpectralConv2d if shape.spectral else nn.Conv2d
        self.first = convolution(in_channels, inner, 3, padding=1)
        self.second = convolution(inner, out_channels, 3, padding=1)
        self.skip_norm = _modulated_norm(in_channels, shape) if in_channels != out_channels else None
        self.skip = convolution(in_channels, out_channels, 1, bias=False) if in_channels != out_channels else None

    def forward(self, x: Tensor, semantic: Tensor) -> Tensor:
        """(B, in, H, W) and a semantic map (B, K, any, any) to (B, out, H, W)."""
        semantic = resized(semantic, x.shape[2:])
        skipped = x if self.skip is None or self.skip_norm is None else self.skip(self.skip_norm(x, semantic))
        x = self.first(F.leaky_relu(self.first_norm(x, semantic), SLOPE))
        x = self.second(F.leaky_relu(self.second_norm(x, semantic), SLOPE))
        return skipped + x


def _modulated_norm(channels: int, shape: SPADEShape) -> ModulatedNorm:
    modulation = (
        ClassModulation(channels, shape.num_classes)
        if shape.modulation == "clade"
        else SpatialModulation(channels, shape.num_classes, hidden=shape.hidden, kernel_size=shape.kernel_size)
    )
    return ModulatedNorm(norm_layer(shape.norm, channels, affine=False), modulation)


class SPADESynthesis(nn.Module):
    """From a semantic map, and a style code where there is one, to an image.

    Args:
        shape: Sizes.
    """

    def __init__(self, shape: SPADEShape) -> None:
        super().__init__()
        self.shape = shape
        height, width = shape.base
        self.start: nn.Module = (
            nn.Conv2d(shape.num_classes, shape.base_width, 3, padding=1)
            if shape.style == "none"
            else nn.Linear(shape.style_dim, shape.base_width * height * width)
        )
        self.blocks = nn.ModuleList(SPADEBlock(stage.in_channels, stage.out_channels, shape) for stage in shape.stages)
        self.to_image = nn.Conv2d(shape.stages[-1].out_channels, shape.channels, 3, padding=1)

    def inference_form(self) -> nn.Module:
        """The same without gradients, where what label maps repeat is computed once."""
        from medgen.families.spade.inference import FastSynthesis  # which is made of these networks

        return FastSynthesis(self)

    def forward(self, semantic: Tensor, code: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1].

        Args:
            semantic: (B, num_classes, H, W) float, see `semantic_map`.
            code: (B, style_dim), or None without styles.

        Raises:
            ValueError: If the map is of another size, or the code of another length, than the network's.
        """
        self.shape.check_inputs(semantic, code)
        x = self.start(resized(semantic, self.shape.base) if code is None else code)
        x = x.view(len(x), self.shape.base_width, *self.shape.base)
        for block, stage in zip(self.blocks, self.shape.stages, strict=True):
            if stage.doubles:
                x = F.interpolate(x, scale_factor=2.0)
            x = block(x, semantic)
        return cast("Tensor", self.to_image(F.leaky_relu(x, SLOPE))).tanh()


def resized(semantic: Tensor, size: Sequence[int]) -> Tensor:
    """A semantic map at another height and width, by nearest neighbours."""
    if tuple(semantic.shape[2:]) == tuple(size):
        return semantic
    smaller: Tensor = F.interpolate(semantic, size=tuple(size))
    return smaller


def semantic_map(masks: Tensor, num_classes: int, *, dont_care: bool = False, edges: Tensor | None = None) -> Tensor:
    """What generator and discriminators read of label maps: for every class whether a pixel is of it.

    Args:
        masks: Class numbers, (B, H, W) int64.
        num_classes: Number of classes.
        dont_care: Whether there is one more number, `num_classes`, where nobody said what is there; it gets a channel
            of its own.
        edges: Borders between instances, (B, 1, H, W), see `instance_edges`; they become the last channel.

    Returns:
        (B, num_classes + dont_care + (1 with edges), H, W) float32, 0 or 1.

    Raises:
        ValueError: If masks are of another shape or type, or hold other numbers.
    """
    if masks.dim() != 3 or masks.is_floating_point() or masks.is_complex() or masks.dtype == torch.bool:
        raise ValueError(
            f"masks have shape {tuple(masks.shape)} and type {masks.dtype}; give class numbers (B, H, W), torch.int64"
        )
    classes = num_classes + dont_care
    low, high = (int(value) for value in masks.aminmax()) if masks.numel() else (0, 0)
    if low < 0 or high >= classes:
        raise ValueError(f"masks hold {low} to {high}; there are the classes 0 to {classes - 1}")
    found = torch.zeros(len(masks), classes, *masks.shape[1:], device=masks.device)
    found.scatter_(1, masks[:, None].long(), 1.0)
    return found if edges is None else torch.cat([found, edges.to(found.dtype)], dim=1)


def instance_edges(instances: Tensor) -> Tensor:
    """Pixels with a neighbour of another instance above, below, left or right.

    Args:
        instances: Numbers of instances, (B, H, W), of any type.

    Returns:
        (B, 1, H, W) float32, 0 or 1.
    """
    edges = torch.zeros_like(instances, dtype=torch.bool)
    across, down = instances[:, :, 1:] != instances[:, :, :-1], instances[:, 1:] != instances[:, :-1]
    edges[:, :, 1:] |= across
    edges[:, :, :-1] |= across
    edges[:, 1:] |= down
    edges[:, :-1] |= down
    return edges[:, None].float()
