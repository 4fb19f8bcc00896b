"""Base of the transforms of label maps, transforms that combine others, and checks of their settings."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medgen.noise import NoiseSource
from medgen.renamed import renamed_arguments

Range = float | tuple[float, float]
"""A fixed number, or the lowest and highest of a number drawn for each map."""

Labels = int | tuple[int, ...]
"""One class or several, by number."""

_MOST_CLASSES = 255  # larger numbers are grey values, and 255 marks "no class" in many data sets


class MaskTransform(ABC):
    """Random change of label maps.

    Derive a frozen dataclass and write `_changed`. All random numbers must come from the given noise, so that a result
    depends on its map, the settings and its stream only, and not on the batch.
    """

    def __call__(self, masks: Tensor, noise: NoiseSource) -> Tensor:
        """Change copies of maps of class numbers, (B, H, W) int64, in which 0 is the background.

        ``noise`` has one stream per map: ``NoiseSource(seed, range(len(masks)))``, of `medgen.noise`.

        Raises:
            ValueError: If the masks are not class maps, or the number of streams differs.
        """
        check_masks(masks)
        if not isinstance(noise, NoiseSource):
            raise ValueError(
                f"noise is {noise!r}; give medgen.noise.NoiseSource(seed, range({len(masks)})), a stream for each mask"
            )
        if len(noise) != len(masks):
            raise ValueError(f"noise has {len(noise)} streams for {len(masks)} masks; give one index per mask")
        return self._changed(masks, noise) if masks.numel() else masks

    @abstractmethod
    def _changed(self, masks: Tensor, noise: NoiseSource) -> Tensor:
        """Change checked maps, with equally many random numbers from every stream."""


@dataclass(frozen=True)
class Compose(MaskTransform):
    """Apply transforms one after the other."""

    transforms: Sequence[MaskTransform]

    def __post_init__(self) -> None:
        for position, transform in enumerate(self.transforms):
            check_transform(f"transforms[{position}]", transform)
        object.__setattr__(self, "transforms", tuple(self.transforms))

    def _changed(self, masks: Tensor, noise: NoiseSource) -> Tensor:
        for transform in self.transforms:
            masks = transform(masks, noise)
        return masks


@dataclass(frozen=True, init=False)
class Sometimes(MaskTransform):
    """Apply a transform to each map with a probability from 0 to 1."""

    transform: MaskTransform
    probability: float

    @renamed_arguments(chance="probability")
    def __init__(self, transform: MaskTransform, probability: float) -> None:
        check_transform("transform", transform)
        check_number("probability", probability, 0, 1)
        object.__setattr__(self, "transform", transform)
        object.__setattr__(self, "probability", probability)

    def _changed(self, masks: Tensor, noise: NoiseSource) -> Tensor:
        rows = (noise.uniform() < self.probability).nonzero()[:, 0].to(masks.device)
        branches = Branches(noise)
        if not len(rows):
            return masks
        return masks.index_copy(0, rows, self.transform(masks[rows], branches.of(rows.tolist())))


class Branches:
    """Further random streams for some maps of a batch, keyed by two numbers from each stream of the batch.

    A transform that is repeated for some maps draws from these, so that the streams of the batch stay in step.
    """

    def __init__(self, noise: NoiseSource) -> None:
        halves = (noise.uniform(2).cpu() * 2**24).long()  # the 24 random bits of a float32
        self._keys: list[int] = (halves[:, 0] * 2**24 + halves[:, 1]).tolist()
        self._device = noise.device

    def of(self, rows: Sequence[int], number: int = 0) -> NoiseSource:
        """Streams of these rows of the batch; each ``number`` gives others."""
        return NoiseSource(number, [self._keys[row] for row in rows], self._device)


def check_masks(masks: Tensor) -> None:
    """Raise ValueError unless masks are (B, H, W) int64 with values from 0 to 254."""
    if masks.dim() != 3:
        raise ValueError(f"masks have shape {tuple(masks.shape)}; give class numbers as (B, H, W)")
    if masks.dtype != torch.int64:
        shown = ", ".join(f"{value:g}" for value in masks.unique()[:5].tolist())
        raise ValueError(f"masks are {masks.dtype} with values {shown}; give class numbers as int64")
    if masks.numel() and not 0 <= int(masks.min()) <= int(masks.max()) < _MOST_CLASSES:
        values = masks.unique().tolist()
        shown = ", ".join(map(str, values if len(values) <= 6 else [*values[:3], "...", *values[-2:]]))
        raise ValueError(
            f"masks hold {shown}; give class numbers from 0 to {_MOST_CLASSES - 1}, such as 0 and 1 for 0 and 255"
        )


def check_transform(name: str, transform: object) -> None:
    """Raise ValueError unless this is a `MaskTransform`."""
    if not isinstance(transform, MaskTransform):
        raise ValueError(f"{name} is {transform!r}; give a transform of medgen.anatomy, with its settings")


def check_number(name: str, value: float, least: float, most: float = math.inf) -> None:
    """Raise ValueError unless the number is finite and in range."""
    if not (least <= value <= most and math.isfinite(value)):
        raise ValueError(f"{name} is {value}; it must be {_between(least, most)}")


def check_range(name: str, value: Range, least: float, most: float = math.inf) -> None:
    """Raise ValueError unless the range is ordered, finite and within its bounds."""
    ends = ends_of(value) if not isinstance(value, Sequence) or len(value) == 2 else (math.nan, math.nan)
    if not (least <= ends[0] <= ends[1] <= most and math.isfinite(ends[1])):
        raise ValueError(f"{name} is {value}; give one number, or the lowest and the highest, {_between(least, most)}")


def check_labels(name: str, labels: Labels) -> None:
    """Raise ValueError unless these are distinct class numbers from 0 to 254."""
    numbers = labels_of(labels)
    if not numbers or len(set(numbers)) < len(numbers) or not all(0 <= number < _MOST_CLASSES for number in numbers):
        raise ValueError(f"{name} is {labels}; give class numbers from 0 to {_MOST_CLASSES - 1}, each once")


def ends_of(value: Range) -> tuple[float, float]:
    """Lowest and highest of a range."""
    return (value[0], value[1]) if isinstance(value, Sequence) else (value, value)


def labels_of(labels: Labels) -> tuple[int, ...]:
    """Class numbers as a tuple."""
    return (labels,) if isinstance(labels, int) else tuple(labels)


def draw(noise: NoiseSource, value: Range) -> Tensor:
    """Draw a number of the range for each map, (B,) float32."""
    low, high = ends_of(value)
    return low + (high - low) * noise.uniform()


def _between(least: float, most: float) -> str:
    return f"{least:g} or more" if math.isinf(most) else f"from {least:g} to {most:g}"
