"""Kernel distance in a feature space; with the features of Inception-v3, this is the KID."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from medgen.evaluation.metrics.base import SampleMetric
from medgen.evaluation.scores import Meaning
from medgen.evaluation.statistics.intervals import Interval, named

_BLOCK = 2**22
"""Kernel values held in memory at once (32 MiB of float64), whatever the number of vectors."""


def kernel_distance(real: Tensor, generated: Tensor, *, resamples: int = 200, seed: int = 0) -> Interval:
    """Squared maximum mean discrepancy of vectors (N, D) and (M, D) under the cubic polynomial kernel, unbiased.

    All pairs of images count, not random subsets as in the paper; the interval is a bootstrap over images of both sets.

    Source: Bińkowski et al. 2018, "Demystifying MMD GANs", section 4; Gretton et al. 2012, "A kernel two-sample test",
    eq. 3.
    """
    generator = torch.Generator().manual_seed(seed)
    real_counts, generated_counts = (_counts(len(part), resamples, generator) for part in (real, generated))
    within_real = _pair_means(real, real, real_counts, real_counts, same=True)
    within_generated = _pair_means(generated, generated, generated_counts, generated_counts, same=True)
    between = _pair_means(real, generated, real_counts, generated_counts, same=False)
    distances = within_real + within_generated - 2 * between
    low, high = distances[1:].nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(distances[0]), low, high)


def _counts(n: int, resamples: int, generator: torch.Generator) -> Tensor:
    """Number of times each of n images is drawn, (n, 1 + resamples); the first column is the sample itself."""
    drawn = torch.randint(n, (resamples, n), generator=generator)
    counts = torch.zeros(resamples, n, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(drawn.shape, dtype=torch.float64)
    )
    return torch.cat([torch.ones(1, n, dtype=torch.float64), counts]).T.contiguous()


def _pair_means(a: Tensor, b: Tensor, a_counts: Tensor, b_counts: Tensor, *, same: bool) -> Tensor:
    """Mean kernel value over pairs of images for each column of counts, without pairs of an image and itself."""
    a_counts, b_counts = a_counts.to(a.device), b_counts.to(a.device)
    total = torch.zeros(a_counts.shape[1], dtype=torch.float64, device=a.device)
    step = max(1, _BLOCK // len(b))
    for start in range(0, len(a), step):
        part, counts = a[start : start + step], a_counts[start : start + step]
        kernel = (part @ b.T / a.shape[1] + 1).double() ** 3
        if same:
            own = torch.arange(start, start + len(part), device=a.device)
            kernel[own - start, own] = 0
        total += (counts * (kernel @ b_counts)).sum(0)
    pairs = a_counts.sum(0) * b_counts.sum(0)
    if same:
        pairs = pairs - a_counts.square().sum(0)
    return (total / pairs).cpu()


class KernelDistance(SampleMetric):
    """Squared maximum mean discrepancy with its 95 % interval, ``kd``; 0 is best, negative values occur.

    Its expectation, unlike that of the Fréchet distance, does not depend on the number of images.
    """

    higher_is_better = False
    network_in_name = True
    meanings: ClassVar = {
        "kd": Meaning("fidelity", "Kernel distance", -1, "Distance of the distributions, unbiased for few images."),
    }

    def compute(self) -> dict[str, Tensor]:
        """The distance, ``kd``, with a bootstrap interval; ValueError if a set has fewer than two images."""
        return named("kd", kernel_distance(*self.sets()))
