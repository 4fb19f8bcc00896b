"""What every change of a label map is: settings one calls with maps and noise, to be joined and left to chance."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medgen.noise import NoiseSource

Range = float | tuple[float, float]
"""One number for all maps, or the lowest and highest of a number drawn for each."""

Labels = int | tuple[int, ...]
"""One class or several, by number."""

_MOST_CLASSES = 255
"""A class number this large is a grey value, or the 255 that marks "no class" in many data sets."""


class MaskTransform(ABC):
    """A random change of label maps.

    Derive a frozen dataclass and write `_changed`. Its random numbers all come from the noise it is given, so that
    map ``i`` of the result depends on the map, the settings and the stream of map ``i``, and not on the batch.
    """

    def __call__(self, masks: Tensor, noise: NoiseSource) -> Tensor:
        """Changed maps.

        Args:
            masks: Class of each pixel, (B, H, W) int64; 0 is the background. They are left as they are.
            noise: One stream per map: ``NoiseSource(seed, range(len(masks)))``, of `medgen.noise`.

        Returns:
            Class of each pixel, (B, H, W) int64.

        Raises:
            ValueError: If the masks are no class maps, or there is another number of streams.
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
        """Changed maps of maps that are checked; takes equally many random numbers from every stream."""


@dataclass(frozen=True)
class Compose(MaskTransform):
    """One transform after the other.

    Attributes:
        transforms: In the order in which they are applied.
    """

    transforms: Sequence[MaskTransform]

    def __post_init__(self) -> None:
        for position, transform in enumerate(self.transforms):
            check_transform(f"transforms[{position}]", transform)
        object.__setattr__(self, "transforms", tuple(self.transforms))

    def _changed(self, masks: Tensor, noise: NoiseSource) -> Tensor:
        for transform in self.transforms:
            masks = transform(masks, noise)
        return masks


@dataclass(frozen=True)
class Sometimes(MaskTransform):
    """A transform of some of the maps; the others stay as they are.

    Attributes:
        transform: What may happen.
        chance: How often, from 0 to 1.
    """

    transform: MaskTransform
    chance: float

    def __post_init__(self) -> None:
        check_transform("transform", self.transform)
        check_number("chance", self.chance, 0, 1)

    def _changed(self, masks: Tensor, noise: NoiseSource) -> Tensor:
        rows = (noise.uniform() < self.chance).nonzero()[:, 0].to(masks.device)
        branches = Branches(noise)
        if not len(rows):
            return masks
        return masks.index_copy(0, rows, self.transform(masks[rows], branches.of(rows.tolist())))


class Branches:
    """Streams that spring from those of a batch, for some of its maps, and as often as needed.

    A transform that runs again for the maps that failed would leave the streams of a batch at places that depend on its
    other maps. So each stream gives one key, and what grows from it moves no stream of the batch.

    Args:
        noise: The streams; two numbers are taken from each.
    """

    def __init__(self, noise: NoiseSource) -> None:
        halves = (noise.uniform(2).cpu() * 2**24).long()  # all 24 random bits that a float32 below 1 holds
        self._keys: list[int] = (halves[:, 0] * 2**24 + halves[:, 1]).tolist()
        self._device = noise.device

    def of(self, rows: Sequence[int], number: int = 0) -> NoiseSource:
        """Streams of the maps in these rows of the batch, others for each number."""
        return NoiseSource(number, [self._keys[row] for row in rows], self._device)


def check_masks(masks: Tensor) -> None:
    """Refuses what is no batch of class maps.

    Raises:
        ValueError: If the shape is not (B, H, W), the type not int64, or a value no class number from 0 to 254.
    """
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
    """Refuses what is no `MaskTransform`.

    Raises:
        ValueError: Naming it.
    """
    if not isinstance(transform, MaskTransform):
        raise ValueError(f"{name} is {transform!r}; give a transform of medgen.anatomy, with its settings")


def check_number(name: str, value: float, least: float, most: float = math.inf) -> None:
    """Refuses numbers out of range.

    Raises:
        ValueError: Naming the setting, its value and the range.
    """
    if not (least <= value <= most and math.isfinite(value)):
        raise ValueError(f"{name} is {value}; it must be {_between(least, most)}")


def check_range(name: str, value: Range, least: float, most: float = math.inf) -> None:
    """Refuses ranges that are upside down or reach too far.

    Raises:
        ValueError: Naming the setting, its value and what it may be.
    """
    ends = ends_of(value) if not isinstance(value, Sequence) or len(value) == 2 else (math.nan, math.nan)
    if not (least <= ends[0] <= ends[1] <= most and math.isfinite(ends[1])):
        raise ValueError(f"{name} is {value}; give one number, or the lowest and the highest, {_between(least, most)}")


def check_labels(name: str, labels: Labels) -> None:
    """Refuses what is no class number or no set of them.

    Raises:
        ValueError: Naming the setting and its value.
    """
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
    """One number of the range for each map, (B,) float32."""
    low, high = ends_of(value)
    return low + (high - low) * noise.uniform()


def _between(least: float, most: float) -> str:
    return f"{least:g} or more" if math.isinf(most) else f"from {least:g} to {most:g}"
