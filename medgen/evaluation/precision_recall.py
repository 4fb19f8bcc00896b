"""Improved precision and recall: how many generated images look real, and how much of the real variety they cover."""

from __future__ import annotations

import torch
from torch import Tensor

from medgen.evaluation.distances import centred, squared_distances
from medgen.evaluation.features import FeatureMetric, FeatureNetwork


def precision_recall(real: Tensor, generated: Tensor, *, k: int = 3) -> tuple[Tensor, Tensor]:
    """Share of generated images inside the real manifold (precision), and of real inside the generated one (recall).

    A set's manifold is the union of one closed ball per image that reaches to its `k`-th nearest neighbour in the set.

    Args:
        real: Feature vectors, (N, D).
        generated: Feature vectors, (M, D).
        k: Neighbours; 3 in the paper.

    Returns:
        Two scalars in [0, 1].

    Raises:
        ValueError: If a set has `k` images or fewer.

    Source: Kynkäänniemi et al. 2019, "Improved precision and recall metric for assessing generative models", eq. 1-3.
    """
    for name, features in (("real", real), ("generated", generated)):
        if len(features) <= k:
            raise ValueError(f"the {name} set has {len(features)} images; k = {k} neighbours need at least {k + 1}")
    real, generated = centred(real, generated)
    real_radius, generated_radius = _squared_radii(real, k), _squared_radii(generated, k)
    looks_real = []
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows, distance in squared_distances(generated, real):
        looks_real.append((distance <= real_radius).any(1))
        covered |= (distance <= generated_radius[rows, None]).any(0)
    return torch.cat(looks_real).float().mean(), covered.float().mean()


def _squared_radii(features: Tensor, k: int) -> Tensor:
    """Squared distance of each vector to its k-th nearest other vector, (N,)."""
    radii = []
    for rows, distance in squared_distances(features, features):
        own = torch.arange(rows.start, rows.stop, device=features.device)
        distance[own - rows.start, own] = torch.inf
        radii.append(distance.kthvalue(k, dim=1).values)
    return torch.cat(radii)


class PrecisionRecall(FeatureMetric):
    """Improved precision and recall with their harmonic mean, ``precision``, ``recall`` and ``f1``; 1 is best.

    Args:
        features: See `FeatureMetric`.
        k: Neighbours that define the manifolds.
    """

    higher_is_better = True

    def __init__(self, features: FeatureNetwork | int, k: int = 3) -> None:
        super().__init__(features)
        if k < 1:
            raise ValueError(f"k is {k}; use at least one neighbour")
        self.k = k
        self.real: list[Tensor]
        self.generated: list[Tensor]
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("generated", [], dist_reduce_fx="cat")

    def update(self, images: Tensor, real: bool) -> None:
        """Add images (B, C, H, W) in [0, 1], or vectors (B, D), to the real or to the generated set."""
        (self.real if real else self.generated).append(self.vectors(images))

    def compute(self) -> dict[str, Tensor]:
        """``precision``, ``recall`` and ``f1``, float32 scalars.

        Raises:
            ValueError: If a set has `k` images or fewer.
        """
        precision, recall = precision_recall(self._all(self.real), self._all(self.generated), k=self.k)
        f1 = 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(torch.float32).tiny)
        return {"precision": precision, "recall": recall, "f1": f1}

    def _all(self, state: list[Tensor] | Tensor) -> Tensor:
        """All vectors of a state, which is a list until processes have exchanged theirs."""
        if isinstance(state, Tensor):
            return state
        return torch.cat(state) if state else torch.zeros(0, self.dim, device=self.device)
