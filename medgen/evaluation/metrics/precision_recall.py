"""Precision, recall, density and coverage from nearest neighbours in a feature space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from medgen.evaluation.judges.features import FeatureNetwork
from medgen.evaluation.metrics.base import SampleMetric
from medgen.evaluation.scores import Meaning
from medgen.evaluation.statistics.distances import squared_distances
from medgen.evaluation.statistics.intervals import bootstrap_mean, named, share
from medgen.evaluation.statistics.neighbour_radii import Moved, squared_radii, within_radii


class ManifoldHits(NamedTuple):
    """Hits of single images for one number of neighbours; their means are precision and recall.

    Attributes:
        looks_real: Whether each generated image lies in the real manifold, (M,) bool.
        covered: Whether each real image lies in the generated manifold, (N,) bool.
    """

    looks_real: Tensor
    covered: Tensor


class Crowding(NamedTuple):
    """Contributions of single images; their means are density and coverage.

    Attributes:
        crowd: Number of real balls that hold each generated image, divided by k, (M,).
        reached: Whether the ball of each real image holds a generated image, (N,) bool.
    """

    crowd: Tensor
    reached: Tensor


def manifold_hits(real: Tensor, generated: Tensor, *, ks: Sequence[int] = (3, 5)) -> dict[int, ManifoldHits]:
    """Test which images, vectors (N, D) and (M, D), lie in each other's manifolds, for several numbers of neighbours.

    The manifold of a set is the union of closed balls around its images, each with the distance to the k-th nearest
    neighbour in the set as radius.

    Raises:
        ValueError: If a set has no more images than the largest of `ks`.

    Source: Kynkäänniemi et al. 2019, "Improved precision and recall metric for assessing generative models", eq. 1-3.
    """
    _check_sizes(real, generated, max(ks))
    centre = real.mean(0)
    mine, theirs = Moved(generated, centre), Moved(real, centre)
    radii = zip(ks, squared_radii(mine, ks), squared_radii(theirs, ks), strict=True)
    return {k: ManifoldHits(*within_radii(mine, theirs, *both)) for k, *both in radii}


def crowding(real: Tensor, generated: Tensor, *, k: int = 5) -> Crowding:
    """Count the real balls around each generated image, and find the balls that hold one.

    See `manifold_hits` for arguments and errors.

    Source: Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models", eq. 3 and 5.
    """
    _check_sizes(real, generated, k)
    (radii,) = squared_radii(Moved(real, real.mean(0)), [k])
    crowd = torch.zeros(len(generated), device=real.device)
    reached = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows, distance in squared_distances(generated, real):
        inside = distance <= radii
        crowd[rows] = inside.sum(1, dtype=torch.float32)
        reached |= inside.any(0)
    return Crowding(crowd / k, reached)


def _check_sizes(real: Tensor, generated: Tensor, k: int) -> None:
    for name, features in (("real", real), ("generated", generated)):
        if len(features) <= k:
            raise ValueError(f"the {name} set has {len(features)} images; k = {k} neighbours need at least {k + 1}")


def precision_recall(real: Tensor, generated: Tensor, *, k: int = 3) -> tuple[Tensor, Tensor]:
    """Precision and recall, scalars: shares of images that lie in the manifold of the other set.

    See `manifold_hits` for arguments, errors and source.
    """
    hits = manifold_hits(real, generated, ks=[k])[k]
    return hits.looks_real.float().mean(), hits.covered.float().mean()


class PrecisionRecall(SampleMetric):
    """Improved precision and recall with their harmonic mean: ``precision``, ``recall`` and ``f1``; 1 is best.

    Names have no suffix for k = 3 neighbours, the value of the paper; other `ks` are part of it, as in
    ``precision_k5``.
    """

    higher_is_better = True
    least = 6  # one more than the default number of neighbours
    meanings: ClassVar = {
        "precision": Meaning("fidelity", "Precision", 1, "Share of generated images that lie among real ones."),
        "f1": Meaning("variety", "F1", 1, "Harmonic mean of precision and recall."),
        "recall": Meaning("variety", "Recall", 1, "Share of real images among generated ones: the variety covered."),
    }

    def __init__(self, features: FeatureNetwork | int, ks: Sequence[int] = (3, 5)) -> None:
        super().__init__(features)
        self.ks = _checked(ks)

    def compute(self) -> dict[str, Tensor]:
        """``precision`` and ``recall`` with Wilson's intervals, and ``f1``; ValueError if a set has too few images."""
        numbers: dict[str, Tensor] = {}
        for k, hits in manifold_hits(*self.sets(max(self.ks) + 1), ks=self.ks).items():
            suffix = "" if k == 3 else f"_k{k}"
            precision, recall = share(hits.looks_real), share(hits.covered)
            numbers |= named(f"precision{suffix}", precision) | named(f"recall{suffix}", recall)
            both = precision.value + recall.value
            numbers[f"f1{suffix}"] = torch.tensor(2 * precision.value * recall.value / both if both else 0.0)
        return numbers


class DensityCoverage(SampleMetric):
    """``density``, robust against outliers among real images, and ``coverage``; real images get about 1."""

    higher_is_better = True
    least = 6  # one more than the default number of neighbours
    meanings: ClassVar = {
        "density": Meaning(
            "fidelity", "Density", 0, "How densely real images surround generated ones; compare with the controls."
        ),
        "coverage": Meaning("variety", "Coverage", 1, "Share of real images with a generated one near by."),
    }

    def __init__(self, features: FeatureNetwork | int, k: int = 5) -> None:
        super().__init__(features)
        (self.k,) = _checked([k])

    def compute(self) -> dict[str, Tensor]:
        """``density`` with a bootstrap interval, ``coverage`` with Wilson's; ValueError if a set has too few images."""
        hits = crowding(*self.sets(self.k + 1), k=self.k)
        return named("density", bootstrap_mean(hits.crowd)) | named("coverage", share(hits.reached))


def _checked(ks: Sequence[int]) -> tuple[int, ...]:
    if not ks or min(ks) < 1:
        raise ValueError(f"k is {ks}; use at least one neighbour")
    return tuple(ks)
