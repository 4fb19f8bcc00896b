"""Near duplicates of training images, also if shifted, mirrored, rotated, scaled or of other contrast."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from medgen.evaluation.sets import ImageSet, batches

_SIDE = 64
"""Side of the compared thumbnails in pixels."""
_RADIUS = 24
"""Radius in pixels of the compared disc, which no rotation cuts off."""
_MARGIN = _SIDE // 2 - _RADIUS
"""Largest shift in pixels."""
_GRAIN = 0.02
"""Contrast of details that counts as none: grain and JPEG artefacts of empty background."""
_COARSE = 4
"""Pixels between the points of the coarse comparison, which finds candidates among all images and turns."""
_TURNS = torch.tensor(
    [
        (mirror, math.radians(angle), math.log(zoom))
        for mirror in (1, -1)
        for angle in range(0, 360, 15)
        for zoom in (0.7, 0.85, 1.0, 1.2, 1.4)
    ]
)
"""Mirroring, angle (radians) and log zoom of the coarse comparison, (T, 3)."""
_CANDIDATES = 16
"""Training images, each under some turn, that enter the close comparison."""
_ROUNDS = ((5.0, 0.06, 4), (2.0, 0.025, 2), (1.0, 0.012, 1))
"""Rounds of the close comparison: step of the angle (degrees), step of the log zoom, number of survivors."""
_BLOCK = 2**11
"""Training images compared coarsely at once (25 MiB)."""
_ALARM = 6.0
"""Standard deviations above the similarity of unseen real images that make a duplicate."""
_LEAST = 0.6
"""Smallest correlation of details of a duplicate: random pairs reach 0.45, best over all shifts and turns."""


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """Similarity of each image to its most similar training image, best over shifts, mirroring, rotations and zooms.

    Attributes:
        similarity: Correlation coefficient of the details, (n,), at most 1.
        index: Row of that training image, (n,) int64.
        held_out: Similarity that unseen real images reach, (m,).
    """

    similarity: Tensor
    index: Tensor
    held_out: Tensor

    @property
    def threshold(self) -> float:
        """Similarity above which an image is a near duplicate.

        Correlations of unseen real images are made normal by Fisher's transform. Median and quartiles replace mean and
        standard deviation, so that a few duplicates among them (a careless split) do not raise the threshold.
        """
        z = self.held_out.clamp(max=1 - 1e-6).double().atanh()
        low, middle, high = z.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
        return max(_LEAST, float((middle + _ALARM * (high - low) / 1.349).tanh()))

    @property
    def rows(self) -> Tensor:
        """Rows of the near duplicates, the most similar first."""
        order = self.similarity.argsort(descending=True)
        return order[self.similarity[order] > self.threshold]


def near_duplicates(
    images: ImageSet | Tensor, train: ImageSet | Tensor, held_out: ImageSet | Tensor, *, batch_size: int = 64
) -> NearDuplicates:
    """Search images, (n, C, H, W) in [0, 1] when sliced, for near duplicates of training images.

    The broad shape of an organ, which all patients share, is removed. Details are compared by normalised
    cross-correlation, over shifts of up to an eighth of the image, mirroring, rotations and zooms of up to two fifths.
    Held-out real images are of patients that are not among the training images.
    """
    reference = _Reference(_Thumbnails(train, batch_size))
    similarity, index = reference.most_alike(_Thumbnails(images, batch_size))
    unseen, _ = reference.most_alike(_Thumbnails(held_out, batch_size))
    return NearDuplicates(similarity=similarity, index=index, held_out=unseen)


class _Thumbnails:
    """All images of a set, small and grey, (n, 1, SIDE, SIDE): details, and blurred for the coarse comparison.

    Details are without slow changes of brightness and contrast. Even contrast keeps the edge of a field of view, which
    all images of a camera share, from outweighing its content.
    """

    def __init__(self, images: ImageSet | Tensor, batch_size: int) -> None:
        details, broad = [], []
        for batch in batches(images, range(len(images)), batch_size):
            grey = F.interpolate(batch.mean(1, keepdim=True), size=(_SIDE, _SIDE), mode="area")
            fine = grey - _blurred(grey, 9)
            details.append(fine / (_blurred(fine.square(), 9) + _GRAIN**2).sqrt())
            broad.append(_blurred(grey, _COARSE + 1))
        self.details = torch.cat(details)
        self.broad = torch.cat(broad)


class _Reference:
    """Reference images, with the parts of a comparison that do not depend on the query.

    Source of the close comparison: Padfield 2012, "Masked object registration in the Fourier domain", for one mask.
    """

    def __init__(self, thumbnails: _Thumbnails) -> None:
        self.points = _grid(2 * _RADIUS, 1)
        self.disc = _within(self.points, _RADIUS).float().view(2 * _RADIUS, 2 * _RADIUS)
        coarse = _grid(2 * _RADIUS // _COARSE, _COARSE)
        self.coarse_points = coarse[_within(coarse, _RADIUS)]
        shifts = _grid(2 * _MARGIN // _COARSE + 1, _COARSE)
        shifts = shifts[_within(shifts, _MARGIN)]
        self.patches = _unit(_sampled(thumbnails.broad, self.coarse_points + shifts[:, None]))  # (m, shifts, points)
        self.spectra = torch.fft.rfft2(thumbnails.details[:, 0])
        disc_spectrum = torch.fft.rfft2(self.disc, s=(_SIDE, _SIDE)).conj()
        square_spectra = torch.fft.rfft2(thumbnails.details[:, 0].square())
        total, squares = (_shifted(spectra * disc_spectrum) for spectra in (self.spectra, square_spectra))
        self.spread = self._floored(squares - total.square() / self.disc.sum())  # (m, shifts, shifts)

    def most_alike(self, queries: _Thumbnails) -> tuple[Tensor, Tensor]:
        """Similarity and row of the most similar reference image of each query, (n,) both."""
        found = [
            self._refined(details, *self._candidates(broad))
            for details, broad in zip(queries.details, queries.broad, strict=True)
        ]
        similarity, rows = zip(*found, strict=True)
        return torch.stack(similarity), torch.stack(rows)

    def _candidates(self, broad: Tensor) -> tuple[Tensor, Tensor]:
        """Reference images most similar in the coarse comparison, and the turn of the query, (c,) and (c, 3).

        One image may come up under several turns, between which round pictures cannot decide.
        """
        templates = _unit(_sampled(broad[None], self.coarse_points @ _matrices(_TURNS))[0])  # (turns, points)
        similarity = torch.cat(
            [
                (part.flatten(0, 1) @ templates.T).unflatten(0, part.shape[:2]).amax(1)  # best over shifts
                for part in self.patches.split(_BLOCK)
            ]
        )  # (m, turns)
        best = similarity.flatten().topk(_CANDIDATES).indices
        return best // len(_TURNS), _TURNS[best % len(_TURNS)]

    def _refined(self, details: Tensor, rows: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
        """Best similarity of a query to the candidates around their turns, and the row of the best, scalars."""
        similarity = torch.zeros(len(rows))
        for angle, zoom, keep in _ROUNDS:
            steps = itertools.product((0.0,), (-math.radians(angle), 0.0, math.radians(angle)), (-zoom, 0.0, zoom))
            around = torch.tensor(list(steps))
            rows, turns = rows.repeat_interleave(len(around)), (turns[:, None] + around).flatten(0, 1)
            templates = _sampled(details[None], self.points @ _matrices(turns))[0].unflatten(1, self.disc.shape)
            means = (templates * self.disc).sum((1, 2), keepdim=True) / self.disc.sum()
            templates = (templates - means) * self.disc
            size = self._floored(templates.square().sum((1, 2), keepdim=True))
            match = _shifted(self.spectra[rows] * torch.fft.rfft2(templates, s=(_SIDE, _SIDE)).conj())
            similarity = (match / (self.spread[rows] * size).sqrt()).flatten(1).amax(1)
            best = similarity.topk(min(keep, len(similarity))).indices
            rows, turns, similarity = rows[best], turns[best], similarity[best]
        return similarity[0].clamp(max=1), rows[0]

    def _floored(self, squares: Tensor) -> Tensor:
        """Sums of squares over the disc, at least so large that images without details match none."""
        return squares.clamp(min=1e-3 * float(self.disc.sum()))


def _blurred(images: Tensor, size: int) -> Tensor:
    return F.avg_pool2d(F.pad(images, (size // 2,) * 4, mode="replicate"), size, stride=1)


def _grid(n: int, step: float) -> Tensor:
    """Points x, y around the middle of an image, `step` pixels apart, in half sides, (n * n, 2)."""
    line = (torch.arange(n) - (n - 1) / 2) * step * 2 / _SIDE
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).flatten(0, 1)


def _within(points: Tensor, radius: int) -> Tensor:
    """Test which points are at most `radius` pixels from the middle, bool."""
    within: Tensor = points.norm(dim=-1) <= 2 * radius / _SIDE
    return within


def _matrices(turns: Tensor) -> Tensor:
    """Matrices from points of a mirrored, rotated and scaled image to the image, for row vectors, (n, 2, 2)."""
    mirror, angle, zoom = turns.unbind(1)
    cos, sin = angle.cos() / zoom.exp(), angle.sin() / zoom.exp()
    return torch.stack([torch.stack([mirror * cos, sin], dim=1), torch.stack([-mirror * sin, cos], dim=1)], dim=1)


def _sampled(images: Tensor, points: Tensor) -> Tensor:
    """Grey levels (n, ...) of images (n, 1, SIDE, SIDE) at points (..., 2)."""
    where = points.reshape(1, -1, 1, 2).expand(len(images), -1, -1, -1)
    levels = F.grid_sample(images, where, padding_mode="border", align_corners=False)
    return levels.reshape(len(images), *points.shape[:-1])


def _unit(vectors: Tensor) -> Tensor:
    """Scale vectors to mean 0 and length 1; constant ones stay near 0."""
    moved = vectors - vectors.mean(-1, keepdim=True)
    unit: Tensor = moved / moved.norm(dim=-1, keepdim=True).clamp(min=1e-3)
    return unit


def _shifted(spectra: Tensor) -> Tensor:
    """Correlations at all allowed shifts, (n, 2 * MARGIN + 1, 2 * MARGIN + 1), from their spectra."""
    shifts = slice(0, 2 * _MARGIN + 1)
    correlations: Tensor = torch.fft.irfft2(spectra, s=(_SIDE, _SIDE))[..., shifts, shifts]
    return correlations
