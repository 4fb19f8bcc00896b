"""The Fréchet distance between two sets of images in any feature space; the FID, where that is Inception-v3's."""

from __future__ import annotations

import torch
from torch import Tensor

from medgen.evaluation.features import FeatureMetric, FeatureNetwork


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> Tensor:
    """Squared Fréchet distance between two Gaussians, a scalar.

    Args:
        mean_a: (D,).
        covariance_a: (D, D), symmetric; may be singular, as it is with fewer images than dimensions.
        mean_b: (D,).
        covariance_b: (D, D).

    Source: Dowson and Landau 1982, "The Fréchet distance between multivariate normal distributions", eq. 4; Heusel et
    al. 2017, "GANs trained by a two time-scale update rule", eq. 6.
    """
    # tr sqrt(A B) = tr sqrt(sqrt(A) B sqrt(A)): symmetric, so that rounding cannot make eigenvalues complex.
    values, vectors = torch.linalg.eigh(covariance_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross: Tensor = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    distance: Tensor = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * cross
    return distance


class FrechetDistance(FeatureMetric):
    """Squared Fréchet distance between Gaussians fitted to real and generated features; 0 is best, ``fd``.

    Grows as images get fewer, so compare numbers of equal image counts only. Sums are kept in float64, and add up over
    processes.

    Args:
        features: See `FeatureMetric`.
    """

    higher_is_better = False
    network_in_name = True

    def __init__(self, features: FeatureNetwork | int) -> None:
        super().__init__(features)
        for side in ("real", "generated"):
            self.add_state(f"{side}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", torch.zeros(self.dim, dtype=torch.float64), dist_reduce_fx="sum")
            outer = torch.zeros(self.dim, self.dim, dtype=torch.float64)
            self.add_state(f"{side}_outer", outer, dist_reduce_fx="sum")

    def update(self, images: Tensor, real: bool) -> None:
        """Add images (B, C, H, W) in [0, 1], or vectors (B, D), to the real or to the generated set."""
        vectors = self.vectors(images).double()
        side = "real" if real else "generated"
        getattr(self, f"{side}_count").add_(len(vectors))
        getattr(self, f"{side}_sum").add_(vectors.sum(0))
        getattr(self, f"{side}_outer").addmm_(vectors.T, vectors)

    def compute(self) -> dict[str, Tensor]:
        """The distance, ``fd``, a float64 scalar.

        Raises:
            ValueError: If a set has fewer than two images.
        """
        return {"fd": frechet_distance(*self._moments("real"), *self._moments("generated"))}

    def _moments(self, side: str) -> tuple[Tensor, Tensor]:
        count, total, outer = (getattr(self, f"{side}_{name}") for name in ("count", "sum", "outer"))
        if count < 2:
            raise ValueError(f"the {side} set has {int(count)} images; a Fréchet distance needs at least two")
        mean = total / count
        return mean, (outer - count * torch.outer(mean, mean)) / (count - 1)
