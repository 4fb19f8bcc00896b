"""Structures that grow and shrink: walls thickened as in hypertrophy, thinned as in dilation.

Everything goes by the Euclidean distance between the middles of pixels, so that a radius need not be a whole number:
1 reaches the 4 nearest pixels, 1.5 the 8 nearest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medgen.anatomy.base import Labels, MaskTransform, Range, check_labels, check_range, draw, labels_of
from medgen.noise import NoiseSource


@dataclass(frozen=True)
class Thicken(MaskTransform):
    """A class grown by a disk, into some of the others only.

    In cardiac maps (1 right ventricle, 2 myocardium, 3 left ventricular cavity), ``Thicken(2, (1, 4), into=3)`` is
    concentric hypertrophy, ``Thicken(3, 3, into=2)`` a cavity that widens into its wall, and ``Thicken(2, 2, into=0)``
    a wall that grows outwards but not into the right ventricle.

    Attributes:
        label: The class that grows.
        pixels: Radius of the disk, in pixels.
        into: The classes that give way; None for all.
    """

    label: int
    pixels: Range
    into: Labels | None = None

    def __post_init__(self) -> None:
        _check(self.label, self.pixels, "into", self.into)

    def _changed(self, masks: Tensor, noise: NoiseSource) -> Tensor:
        gives = masks != self.label if self.into is None else _any_of(masks, labels_of(self.into))
        return _taken(masks, gives, (self.label,), draw(noise, self.pixels))


@dataclass(frozen=True)
class Thin(MaskTransform):
    """A class whose rim goes to its neighbours, on the side where each of them lies.

    In cardiac maps, ``Thin(2, (1, 2), becomes=3)`` is a wall thinned from the cavity, ``becomes=0`` from outside, and
    ``becomes=(0, 1, 3)`` from all sides.

    Attributes:
        label: The class that shrinks.
        pixels: Width of the rim, in pixels.
        becomes: The neighbours that may take it; None for all. A pixel goes to the nearest, and to the smaller number
            where two are as near.
    """

    label: int
    pixels: Range
    becomes: Labels | None = None

    def __post_init__(self) -> None:
        _check(self.label, self.pixels, "becomes", self.becomes)

    def _changed(self, masks: Tensor, noise: NoiseSource) -> Tensor:
        others = masks.unique().tolist() if self.becomes is None else sorted(labels_of(self.becomes))
        takers = [label for label in others if label != self.label]
        return _taken(masks, masks == self.label, takers, draw(noise, self.pixels))


def squared_distance(inside: Tensor, reach: int) -> Tensor:
    """Squared Euclidean distance of each pixel to the nearest that is inside, in squared pixels.

    Args:
        inside: (B, H, W) bool.
        reach: Largest distance that matters, in pixels; the cost grows with it.

    Returns:
        (B, H, W) float32, 0 inside and exact up to ``reach``; infinite where no pixel inside is near.

    Source: Felzenszwalb and Huttenlocher 2012, "Distance transforms of sampled functions", section 2.1, eq. 6, by
    trying all neighbours instead of by the lower envelope.
    """
    along_rows = _nearest(torch.where(inside, 0.0, math.inf), 2, reach)
    return _nearest(along_rows, 1, reach)


def _nearest(squared: Tensor, dim: int, reach: int) -> Tensor:
    """The smallest, over the places along an axis, of a value there and the squared distance to it."""
    best = squared.clone()
    length = squared.shape[dim]
    for step in range(1, min(reach, length - 1) + 1):
        for to, start in ((step, 0), (0, step)):
            there = squared.narrow(dim, start, length - step) + step**2
            here = best.narrow(dim, to, length - step)
            torch.minimum(here, there, out=here)
    return best


def _taken(masks: Tensor, gives: Tensor, takers: Sequence[int], radius: Tensor) -> Tensor:
    """Maps in which pixels that give way belong to the nearest taker, if it is within the radius (B,)."""
    limit = (radius.double().square() * (1 + 1e-6)).float().to(masks.device)  # sqrt(2) is to reach the squared 2
    nearest = torch.full(masks.shape, math.inf, device=masks.device)
    owner = masks
    for taker in takers:
        squared = squared_distance(masks == taker, math.ceil(float(radius.max())))
        owner = torch.where(squared < nearest, taker, owner)
        nearest = torch.minimum(squared, nearest)
    return torch.where(gives & (nearest <= limit[:, None, None]), owner, masks)


def _any_of(masks: Tensor, labels: Sequence[int]) -> Tensor:
    return torch.isin(masks, torch.tensor(labels, device=masks.device))


def _check(label: int, pixels: Range, name: str, others: Labels | None) -> None:
    check_labels("label", label)
    check_range("pixels", pixels, 0)
    if others is not None:
        check_labels(name, others)
        if label in labels_of(others):
            raise ValueError(f"{name} is {others}, which has the label {label} itself; leave it out")
