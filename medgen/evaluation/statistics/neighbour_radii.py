"""Distances to the k-th nearest neighbour, and membership in balls of these radii.

Used by precision, recall and authenticity. All pairs of two large sets must be compared, and nearly all are far apart.
Distances are therefore estimated with an error bound, in bfloat16 on processors with matrix units, and only undecided
pairs are computed exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from medgen.evaluation.statistics.distances import squared_distances

_TILE = 2048
"""Vectors of each set whose distances are estimated at once."""
_SPARE = 10
"""Extra neighbours that are computed exactly, since estimates may change the order."""
_GATHERED = 2**21
"""Numbers gathered at once (8 MiB)."""
_PIECES = 3
"""Number of bfloat16 values whose sum holds all digits of a float32."""
_ROUNDING = 1.01 * 2.0**-8
"""Largest error of rounding to bfloat16, relative to the rounded number."""
_FLOAT_ROUNDING = 2.0**-24


class Moved:
    """Vectors (N, D) relative to a centre (D,), prepared for estimates of their distances.

    The centre must be equal for both sets of a comparison; `squares` are squared lengths from it, (N,).
    """

    def __init__(self, vectors: Tensor, centre: Tensor) -> None:
        self.vectors = vectors
        self.centre = centre
        self.dim = vectors.shape[1]
        self.squares, self._lost = vectors.new_empty(2, len(vectors))
        self._rounded: Tensor | None = None
        if vectors.device.type == "cpu" and self.dim >= 64 and torch.cpu._is_amx_tile_supported():
            width = -(-(self.dim + 2 * _PIECES) // 32) * 32  # room for terms; odd widths are slow
            self._rounded = torch.zeros(len(vectors), width, dtype=torch.bfloat16)
        for rows in _tiles(len(vectors)):
            part = self.part(rows)
            self.squares[rows] = part.square().sum(1)
            rounded = part.bfloat16() if self._rounded is not None else part
            self._lost[rows] = (part - rounded).norm(dim=1)
            if self._rounded is not None:
                self._rounded[rows, : self.dim] = rounded

    def __len__(self) -> int:
        return len(self.vectors)

    def part(self, rows: slice) -> Tensor:
        """Centred vectors of some rows."""
        return torch.sub(self.vectors[rows], self.centre)

    def error(self, other: Moved, terms: Tensor, other_terms: Tensor) -> Tensor:
        """Bound of the error of each row of `sums`, (N,), without the rounding of the sums themselves."""
        lengths, longest = self.squares.sqrt(), other.squares.max().sqrt()
        # Adding up in float32 loses at most this share of all that is added in each addition.
        summands = 2.1 * lengths * longest + terms.abs() + other_terms.abs().max()
        added_up: Tensor = (self.dim + 8) * _FLOAT_ROUNDING * summands
        if self._rounded is None:
            return added_up
        # x y - x' y' = (x - x') y' + x (y - y'), each at most the product of the lengths (Cauchy-Schwarz).
        rounded: Tensor = 2 * (self._lost * (longest + other._lost.max()) + lengths * other._lost.max())
        return added_up + rounded

    def sums(
        self, other: Moved, terms: Tensor, other_terms: Tensor, *, triangle: bool = False
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        """Estimate `terms[i] + other_terms[j] - 2 self[i] other[j]` for all pairs, in tiles of bfloat16 or float32.

        Yields slices of rows and of columns, and their sums; of two equal sets, tiles below the diagonal can be
        skipped.
        """
        if other._rounded is not None:
            other._rounded[:, self.dim : self.dim + _PIECES] = _pieces(other_terms)
            other._rounded[:, self.dim + _PIECES : self.dim + 2 * _PIECES] = 1
        for rows in _tiles(len(self)):
            left = self._left(rows, terms[rows])
            for columns in _tiles(len(other), rows.start if triangle else 0):
                if other._rounded is not None:
                    yield rows, columns, left @ other._rounded[columns].T
                else:
                    sums = torch.addmm(other_terms[columns], left, other.part(columns).T, alpha=-2)
                    yield rows, columns, sums.add_(terms[rows, None])

    def _left(self, rows: slice, terms: Tensor) -> Tensor:
        """Left factor of the product with the vectors of the other set."""
        if self._rounded is None:
            return self.part(rows)
        left = torch.zeros(len(terms), self._rounded.shape[1], dtype=torch.bfloat16)
        left[:, : self.dim] = -2 * self._rounded[rows, : self.dim]  # a power of two: exact
        left[:, self.dim : self.dim + _PIECES] = 1
        left[:, self.dim + _PIECES : self.dim + 2 * _PIECES] = _pieces(terms)
        return left


def _tiles(n: int, first: int = 0) -> Iterator[slice]:
    for start in range(first, n, _TILE):
        yield slice(start, min(start + _TILE, n))


def _pieces(values: Tensor) -> Tensor:
    """Split numbers (M,) into sums of three bfloat16 values, (M, 3)."""
    pieces = []
    for _ in range(_PIECES):
        pieces.append(values.bfloat16())
        values = values - pieces[-1]
    return torch.stack(pieces, dim=1)


class _Nearest:
    """Smallest values of each row so far, and their columns."""

    def __init__(self, n: int, count: int, like: Tensor) -> None:
        self.values = torch.full((n, count), torch.inf, dtype=like.dtype, device=like.device)
        self.index = torch.zeros(n, count, dtype=torch.int64, device=like.device)

    def see(self, rows: slice, values: Tensor, first: int) -> None:
        """Update with values (rows, columns), whose columns are numbered from `first`."""
        count = self.values.shape[1]
        found = values.topk(min(count, values.shape[1]), dim=1, largest=False)
        both = torch.cat([self.values[rows], found.values], dim=1)
        best = both.topk(count, dim=1, largest=False)
        self.values[rows] = best.values
        self.index[rows] = torch.cat([self.index[rows], found.indices + first], dim=1).gather(1, best.indices)


def squared_radii(features: Moved, ks: Sequence[int]) -> Tensor:
    """Squared distance of each vector to its k-th nearest other vector, for several k, (len(ks), N)."""
    most, n, vectors = max(ks), len(features), features.vectors
    count = min(most + _SPARE, n - 1)
    middle = 2 * features.squares.mean()  # numbers near zero keep most digits
    terms = features.squares - middle / 2
    near: _Nearest | None = None
    for rows, columns, sums in features.sums(features, terms, terms, triangle=True):
        near = near or _Nearest(n, count, sums)
        if rows == columns:
            sums.fill_diagonal_(torch.inf)
        else:
            near.see(columns, sums.T.contiguous(), rows.start)
        near.see(rows, sums, columns.start)
    assert near is not None  # sets are not empty
    radii = torch.empty(near.index.shape, dtype=vectors.dtype, device=vectors.device)
    step = max(1, _GATHERED // (count * features.dim))
    for start in range(0, n, step):
        index = near.index[start : start + step]
        others = vectors.index_select(0, index.flatten()).view(*index.shape, -1)
        radii[start : start + step] = others.sub_(vectors[start : start + step, None]).square_().sum(-1)
    radii = radii.masked_fill_(near.values.isinf(), torch.inf).topk(most, dim=1, largest=False).values
    last = near.values[:, -1]
    beyond = last.float() + middle - features.error(features, terms, terms)
    if last.dtype == torch.bfloat16:
        beyond -= _ROUNDING * last.float().abs()
    # Rows whose neighbours were perhaps missed by the estimate are compared with all vectors.
    unsure = (beyond < radii[:, -1]).nonzero()[:, 0] if count < n - 1 else near.index.new_empty(0)
    for these, squared in _exact_distances(vectors, unsure, vectors):
        squared[torch.arange(len(these), device=these.device), these] = torch.inf
        radii[these] = squared.topk(most, dim=1, largest=False).values.to(radii.dtype)
    return radii[:, [k - 1 for k in ks]].T.contiguous()


def within_radii(a: Moved, b: Moved, a_radii: Tensor, b_radii: Tensor) -> tuple[Tensor, Tensor]:
    """Test which vectors lie in a closed ball around a vector of the other set, (N,) and (M,) bool.

    Both sets have the same centre; radii of the balls around their own vectors, (N,) and (M,), are squared.
    """
    # Squared distances less both radii: one lies in a ball of the other set where its least is at most minus its own
    # radius. Decisions fall near zero, where numbers keep most digits.
    middle = (a_radii.mean() + b_radii.mean()) / 2
    a_terms, b_terms = a.squares - a_radii + middle, b.squares - b_radii
    error = a.error(b, a_terms, b_terms)
    a_low, a_high = a_radii.new_full((2, len(a)), torch.inf)
    b_low, b_high = b_radii.new_full((2, len(b)), torch.inf)
    for rows, columns, sums in a.sums(b, a_terms, b_terms):
        worst = error[rows].max()
        for low, high, least in (
            (a_low[rows], a_high[rows], sums.amin(1).float()),
            (b_low[columns], b_high[columns], sums.amin(0).float()),
        ):
            slack = worst + (_ROUNDING * least.abs() if sums.dtype == torch.bfloat16 else 0)
            torch.minimum(low, least - slack, out=low)
            torch.minimum(high, least + slack, out=high)
    a_bound, b_bound = middle - a_radii, middle - b_radii
    a_inside, b_inside = a_high <= a_bound, b_high <= b_bound
    a_unsure = (~a_inside & (a_low <= a_bound)).nonzero()[:, 0]
    b_unsure = (~b_inside & (b_low <= b_bound)).nonzero()[:, 0]
    for these, squared in _exact_distances(a.vectors, a_unsure, b.vectors):
        a_inside[these] = (squared <= b_radii).any(1)
    for these, squared in _exact_distances(b.vectors, b_unsure, a.vectors):
        b_inside[these] = (squared <= a_radii).any(1)
    return a_inside, b_inside


def _exact_distances(vectors: Tensor, which: Tensor, others: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield some of the rows `which`, and their squared distances to all others, (rows, M) in float64.

    Few rows at a time are converted to float64, since a copy of all would be the largest array.
    """
    for part in which.split(_TILE):
        for rows, squared in squared_distances(vectors[part].double(), others):
            yield part[rows], squared
