"""Dilation and erosion of classes: walls thickened as in hypertrophy, thinned as in dilation.

Distances are Euclidean between the middles of pixels, so a radius can be a fraction: 1 reaches the 4 nearest pixels,
1.5 the 8 nearest.
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
    """Grow a class by a disk, into some of the others only.

    In cardiac maps (1 right ventricle, 2 myocardium, 3 left ventricular cavity), ``Thicken(2, (1, 4), into=3)`` is
    concentric hypertrophy, ``Thicken(3, 3, into=2)`` widens the cavity into its wall, and ``Thicken(2, 2, into=0)``
    grows the wall outwards but not into the right ventricle.

    Attributes:
        label: The class that grows.
        pixels: Radius of the disk, in pixels.
        into: The classes that it may replace; None for all.
    """

    label: int
    pixels: Range
    into: Labels | None = None

    def __post_init__(self) -> None:
        _check(self.label, self.pixels, "into", self.into)

    def _changed(self, masks: Tensor, noise: NoiseSource) -> Tensor:
        into = None if self.into is None else torch.tensor(labels_of(self.into), device=masks.device)
        gives = masks != self.label if into is None else torch.isin(masks, into)
        return _taken(masks, gives, (self.label,), draw(noise, self.pixels))


@dataclass(frozen=True)
class Thin(MaskTransform):
    """Shrink a class: each pixel of its rim goes to the nearest neighbouring class.

    In cardiac maps, ``Thin(2, (1, 2), becomes=3)`` thins the wall from the cavity, ``becomes=0`` from outside, and
    ``becomes=(0, 1, 3)`` from all sides.

    Attributes:
        label: The class that shrinks.
        pixels: Width of the rim, in pixels.
        becomes: The classes that may replace it; None for all. At equal distance the smaller number wins.
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
    """Squared Euclidean distance of each pixel to the nearest inside, (B, H, W) float32, in squared pixels.

    Exact up to a distance of ``reach`` pixels, infinite far beyond; the cost grows with ``reach``.

    Source: Felzenszwalb and Huttenlocher 2012, "Distance transforms of sampled functions", section 2.1, eq. 6, with
    all neighbours tried instead of the lower envelope.
    """
    along_rows = _nearest(torch.where(inside, 0.0, math.inf), 2, reach)
    return _nearest(along_rows, 1, reach)


def _nearest(squared: Tensor, dim: int, reach: int) -> Tensor:
    """Minimum along an axis of value plus squared distance."""
    best = squared.clone()
    length = squared.shape[dim]
    for step in range(1, min(reach, length - 1) + 1):
        for to, start in ((step, 0), (0, step)):
            there = squared.narrow(dim, start, length - step) + step**2
            here = best.narrow(dim, to, length - step)
            torch.minimum(here, there, out=here)
    return best


def _taken(masks: Tensor, gives: Tensor, takers: Sequence[int], radius: Tensor) -> Tensor:
    """Give pixels to the nearest of the takers within the radius (B,)."""
    limit = (radius.double().square() * (1 + 1e-6)).float().to(masks.device)  # sqrt(2) must reach 2
    nearest = torch.full(masks.shape, math.inf, device=masks.device)
    owner = masks
    for taker in takers:
        squared = squared_distance(masks == taker, math.ceil(float(radius.max())))
        owner = torch.where(squared < nearest, taker, owner)
        nearest = torch.minimum(squared, nearest)
    return torch.where(gives & (nearest <= limit[:, None, None]), owner, masks)


def _check(label: int, pixels: Range, name: str, others: Labels | None) -> None:
    check_labels("label", label)
    check_range("pixels", pixels, 0)
    if others is not None:
        check_labels(name, others)
        if label in labels_of(others):
            raise ValueError(f"{name} is {others}, which has the label {label} itself; leave it out")
