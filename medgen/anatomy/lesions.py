"""Lesions in label maps, such as myocardial scars for the synthesis of late-enhancement images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from medgen.anatomy.base import MaskTransform, Range, check_labels, check_number, check_range, draw
from medgen.anatomy.deformation import smooth_noise
from medgen.anatomy.morphology import squared_distance
from medgen.noise import NoiseSource


@dataclass(frozen=True)
class InsertLesion(MaskTransform):
    """Insert a lesion as a new class within another: a sector of a wall, from its inner border outwards.

    An infarct begins at the inner border of the muscle and spreads outwards through the region of one artery. So a
    larger lesion reaches deeper into the wall, and once through it, grows to the sides. In cardiac maps (2 myocardium,
    3 left ventricular cavity): ``InsertLesion(within=2, label=4, inner=3)``, checked by the rules of `SCARRED_HEART`.
    Images of such maps need a generator trained with the new class.

    Attributes:
        within: The class that the lesion lies in; no other changes.
        label: The class of the lesion.
        inner: The class of the cavity. In maps without it, and if None, lesions are sectors through the whole wall.
        share: Share of the pixels of ``within`` that become the lesion.
        sector_degrees: Opening of the sector, seen from the middle of the cavity; 0 for lesions through the whole wall.
        direction_degrees: Direction of the middle of the sector: 0 is right, 90 down.
        roughness: Variation of width and depth along the border, as a fraction.
        smoothness: Length scale of that variation, in pixels.

    Source: Reimer et al. 1977, "The wavefront phenomenon of ischemic cell death"; use in augmentation: Lustermans et
    al. 2022, "Optimized automated cardiac MR scar quantification with GAN-based data augmentation". The shape is ours.
    """

    within: int
    label: int
    inner: int | None = None
    share: Range = (0.05, 0.3)
    sector_degrees: Range = (60.0, 150.0)
    direction_degrees: Range = (0.0, 360.0)
    roughness: float = 0.15
    smoothness: float = 8.0

    def __post_init__(self) -> None:
        for name in ("within", "label", *(("inner",) if self.inner is not None else ())):
            check_labels(name, getattr(self, name))
        if len({self.within, self.label, self.inner}) < 3:
            raise ValueError(
                f"within is {self.within}, label {self.label} and inner {self.inner}; they must be different classes"
            )
        check_range("share", self.share, 0, 1)
        check_range("sector_degrees", self.sector_degrees, 0, 360)
        check_range("direction_degrees", self.direction_degrees, -360, 360)
        check_number("roughness", self.roughness, 0, 0.5)
        check_number("smoothness", self.smoothness, 0.5)

    def _changed(self, masks: Tensor, noise: NoiseSource) -> Tensor:
        share, sector, direction = (
            draw(noise, value).to(masks.device) for value in (self.share, self.sector_degrees, self.direction_degrees)
        )
        height, width = masks.shape[1:]
        bumps = 1 + self.roughness * smooth_noise(noise, 2, (height, width), self.smoothness).to(masks.device)
        widening, deepening = bumps.clamp(0.5, 2).unbind(1)

        within = masks == self.within
        cavity = torch.zeros_like(within) if self.inner is None else masks == self.inner
        has_cavity = cavity.any(2, keepdim=True).any(1, keepdim=True)
        turned = widening * _angle_between(_directions(torch.where(has_cavity, cavity, within)), direction)
        half = torch.where(has_cavity, torch.deg2rad(sector / 2)[:, None, None], 0.0)
        # Pixels join the lesion in the order in which a front reaches them, which is fastest in the middle.
        front = deepening * self._depth(masks, within, cavity) / (1 - (turned / half) ** 4).clamp(min=1e-4).sqrt()
        order = torch.where(turned < half, front, 1e3 + turned)  # beyond the sector: after all others

        wanted = (share * within.sum((1, 2))).round()
        sequence = torch.where(within, order, math.inf).flatten(1).argsort(dim=1, stable=True)
        rank = sequence.argsort(dim=1).view_as(masks)
        return torch.where(within & (rank < wanted[:, None, None]), self.label, masks)

    def _depth(self, masks: Tensor, within: Tensor, cavity: Tensor) -> Tensor:
        """Relative depth of each pixel in the wall, from 0 at its inner border to 1; 0 without a cavity."""
        reach = max(masks.shape[1:])
        from_inside = squared_distance(cavity, reach).sqrt() - 0.5  # of a pixel's middle to the border
        from_outside = squared_distance(~(within | cavity | (masks == self.label)), reach).sqrt() - 0.5
        share = from_inside / (from_inside + from_outside)
        return torch.where(within & from_inside.isfinite() & from_outside.isfinite(), share, 0.0)


def _directions(inside: Tensor) -> Tensor:
    """Direction of each pixel in radians, (B, H, W), seen from the centroid of the pixels inside."""
    height, width = inside.shape[1:]
    down = torch.arange(height, device=inside.device)[:, None]
    across = torch.arange(width, device=inside.device)[None]
    count = inside.sum((1, 2)).clamp(min=1)

    def from_middle(place: Tensor) -> Tensor:
        middle = (inside * place).sum((1, 2)) / count  # integer sums, exact in any order
        return place - middle[:, None, None]

    return torch.atan2(from_middle(down), from_middle(across))


def _angle_between(directions: Tensor, degrees: Tensor) -> Tensor:
    """Absolute angles, 0 to pi, between directions (B, H, W) in radians and one for each map (B,) in degrees."""
    turned = directions - torch.deg2rad(degrees)[:, None, None]
    return (torch.remainder(turned + math.pi, 2 * math.pi) - math.pi).abs()
