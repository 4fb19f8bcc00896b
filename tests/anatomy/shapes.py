"""Label maps whose anatomy is known: discs, rings, and a schematic heart."""

from __future__ import annotations

import torch
from torch import Tensor

RV, MYO, LV, SCAR = 1, 2, 3, 4


def distance(size: int, middle: tuple[float, float]) -> Tensor:
    """Distance of each pixel from a place (row, column), (size, size)."""
    down, across = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((down - middle[0]) ** 2 + (across - middle[1]) ** 2).float().sqrt()


def disc(size: int = 32, radius: float = 8, middle: tuple[float, float] = (16, 16)) -> Tensor:
    """A disc of class 1, (1, size, size)."""
    return (distance(size, middle) <= radius).long()[None]


def heart(size: int = 64, cavity: float = 9, wall: float = 5, place: tuple[float, float] = (32, 36)) -> Tensor:
    """A left ventricle as a ring with a right one to its left, (1, size, size)."""
    from_left = distance(size, place)
    mask = torch.zeros(size, size, dtype=torch.int64)
    mask[distance(size, (place[0], place[1] - 14)) <= 10] = RV
    mask[from_left <= cavity + wall] = MYO
    mask[from_left <= cavity] = LV
    return mask[None]


def hearts(count: int) -> Tensor:
    """Hearts of various sizes, (count, 64, 64)."""
    return torch.cat([heart(cavity=6 + i % 4, wall=4 + i % 3, place=(30 + i % 5, 36)) for i in range(count)])
