"""Fréchet distance in a feature space; with the features of Inception-v3, this is the FID."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from medgen.evaluation.judges.features import FeatureNetwork
from medgen.evaluation.metrics.base import FeatureMetric, SampleMetric
from medgen.evaluation.scores import Meaning


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> Tensor:
    """Squared Fréchet distance between two Gaussians of means (D,) and covariances (D, D), a scalar.

    Covariances may be singular, as they are with fewer images than dimensions.

    Source: Dowson and Landau 1982, "The Fréchet distance between multivariate normal distributions", eq. 4; Heusel et
    al. 2017, "GANs trained by a two time-scale update rule", eq. 6.
    """
    # tr sqrt(A B) = tr sqrt(sqrt(A) B sqrt(A)): symmetric, so that rounding cannot make eigenvalues complex.
    root = _square_root(covariance_a)
    cross: Tensor = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    return (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * cross


def _square_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return root


def frechet_distance_to_infinity(real: Tensor, generated: Tensor, *, sizes: int = 15, seed: int = 0) -> Tensor:
    """Fréchet distance of vectors (N, D) and (M, D), extrapolated to infinitely many generated ones, a float64 scalar.

    The bias of the distance is nearly linear in 1/n for n generated images, so a line fitted to distances of subsets,
    from a tenth of the images up, is extended to 1/n = 0. The bias of the real set remains.

    Source: Chong and Forsyth 2020, "Effectively unbiased FID and Inception Score and where to find them", section 4.
    """
    real, generated = real.double(), generated.double()
    mean, covariance = real.mean(0), real.T.cov()
    root = _square_root(covariance)
    generator = torch.Generator().manual_seed(seed)
    counts = torch.linspace(max(2, len(generated) // 10), len(generated), sizes).long()
    distances = []
    for count in counts.tolist():
        part = generated[torch.randperm(len(generated), generator=generator)[:count].to(generated.device)]
        centred = (part - part.mean(0)) / (count - 1) ** 0.5
        # tr sqrt(sqrt(A) B sqrt(A)) is the sum of singular values of sqrt(A) X, where B is X X^T.
        product = centred @ root
        gram = product @ product.T if count < product.shape[1] else product.T @ product
        cross = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
        distance = (mean - part.mean(0)).square().sum() + covariance.trace() + centred.square().sum() - 2 * cross
        distances.append(distance)
    line = torch.stack([torch.ones(sizes), 1 / counts], dim=1).double()
    intercept: Tensor = torch.linalg.lstsq(line, torch.stack(distances).cpu()[:, None]).solution[0, 0]
    return intercept


class FrechetDistance(FeatureMetric):
    """Squared Fréchet distance of Gaussians fitted to real and generated features, ``fd``; 0 is best.

    It grows as images get fewer, so compare equal numbers of images only. Sums are float64 and add up over processes.
    """

    higher_is_better = False
    network_in_name = True
    meanings: ClassVar = {
        "fd": Meaning(
            "fidelity", "Fréchet distance", -1, "Distance of the distributions, 0 is best; grows with fewer images."
        ),
    }

    def __init__(self, features: FeatureNetwork | int) -> None:
        super().__init__(features)
        for side in ("real", "generated"):
            self.add_state(f"{side}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", torch.zeros(self.dim, dtype=torch.float64), dist_reduce_fx="sum")
            outer = torch.zeros(self.dim, self.dim, dtype=torch.float64)
            self.add_state(f"{side}_outer", outer, dist_reduce_fx="sum")

    def update(self, images: Tensor, real: bool) -> None:
        """Add images (B, C, H, W) in [0, 1], or vectors (B, D), to the real or the generated set."""
        vectors = self.vectors(images).double()
        side = "real" if real else "generated"
        getattr(self, f"{side}_count").add_(len(vectors))
        getattr(self, f"{side}_sum").add_(vectors.sum(0))
        getattr(self, f"{side}_outer").addmm_(vectors.T, vectors)

    def compute(self) -> dict[str, Tensor]:
        """The distance, ``fd``, a float64 scalar; ValueError if a set has fewer than two images."""
        return {"fd": frechet_distance(*self._moments("real"), *self._moments("generated"))}

    def _moments(self, side: str) -> tuple[Tensor, Tensor]:
        count, total, outer = (getattr(self, f"{side}_{name}") for name in ("count", "sum", "outer"))
        if count < 2:
            raise ValueError(f"the {side} set has {int(count)} images; a Fréchet distance needs at least two")
        mean = total / count
        return mean, (outer - count * torch.outer(mean, mean)) / (count - 1)


class FrechetDistanceToInfinity(SampleMetric):
    """Fréchet distance extrapolated to infinitely many generated images, ``fd_infinity``; 0 is best."""

    higher_is_better = False
    network_in_name = True
    least = 20
    meanings: ClassVar = {
        "fd_infinity": Meaning(
            "fidelity",
            "Fréchet distance to infinity",
            -1,
            "Extrapolated to infinitely many generated images.",
        ),
    }

    def compute(self) -> dict[str, Tensor]:
        """The distance, ``fd_infinity``, a float64 scalar; ValueError if a set has fewer than 20 images."""
        return {"fd_infinity": frechet_distance_to_infinity(*self.sets())}
