"""Distances between many vectors, computed in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 2**24
"""Distances held in memory at once (64 MiB of float32)."""
_COLUMNS = 1024
"""Vectors centred at once, so that no copy of a whole set is made."""


def squared_distances(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared Euclidean distances between (N, D) and (M, D): yields row slices and blocks (rows, M).

    Both sets are centred at the mean of `b`, which keeps digits of small distances. Blocks have the type of `a`.
    """
    centre = b.mean(0).to(a.dtype)  # taking the mean in another type would copy the whole set
    step = max(1, _BLOCK // max(1, len(b)))
    for start in range(0, len(a), step):
        part = a[start : start + step] - centre
        squared = torch.empty(len(part), len(b), dtype=part.dtype, device=part.device)
        for left in range(0, len(b), _COLUMNS):
            other = b[left : left + _COLUMNS] - centre
            torch.addmm(other.square().sum(1), part, other.T, alpha=-2, out=squared[:, left : left + _COLUMNS])
        yield slice(start, start + len(part)), squared.add_(part.square().sum(1, keepdim=True)).clamp_(min=0)


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Nearest reference vector of each query.

    Attributes:
        distance: Euclidean distance, (N,) float32.
        index: Row of the reference set, (N,) int64.
    """

    distance: Tensor
    index: Tensor


def nearest(queries: Tensor, reference: Tensor) -> Neighbours:
    """Find the nearest of (M, D) reference vectors for each of (N, D) queries.

    Raises:
        ValueError: If a set is empty or the lengths of the vectors differ.
    """
    if not len(queries) or not len(reference) or queries.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"queries {tuple(queries.shape)} and reference {tuple(reference.shape)} need vectors of one length"
        )
    indices = torch.cat([block.argmin(1) for _, block in squared_distances(queries, reference)])
    # Computed from the difference itself, so that an exact copy is at distance zero.
    return Neighbours(distance=(queries - reference[indices]).norm(dim=1), index=indices)
