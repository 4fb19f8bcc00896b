"""How often each label occurs, as a classifier trained on real images sees it: what a generator drops or adds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.evaluation.intervals import Interval, bootstrap, share

PREVALENCE_RESAMPLES = 10_000
"""As many as the paper took."""


class Prevalence(NamedTuple):
    """Share of images that a classifier calls positive, with 95 % intervals.

    Attributes:
        real: Of the real images.
        generated: Of the generated ones.
        difference: Generated less real; a label is dropped where the interval lies below 0.
    """

    real: Interval
    generated: Interval
    difference: Interval


def youden_threshold(scores: Tensor, positive: Tensor) -> float:
    """The threshold at which sensitivity plus specificity is largest: scores from it on count as positive.

    Args:
        scores: Larger where the classifier thinks positive, (n,).
        positive: The truth, (n,) bool.

    Raises:
        ValueError: If there is no positive or no negative image.

    Source: Youden 1950, "Index for rating diagnostic tests".
    """
    if not bool(positive.any()) or bool(positive.all()):
        raise ValueError("a threshold needs images of both kinds")
    order = scores.argsort(descending=True)
    hits, ranked = positive[order].double(), scores[order]
    sensitivity = hits.cumsum(0) / hits.sum()
    false_alarms = (1 - hits).cumsum(0) / (1 - hits).sum()
    index = sensitivity - false_alarms
    last_of_ties = torch.cat([ranked[1:] < ranked[:-1], torch.ones(1, dtype=torch.bool)])
    index[~last_of_ties] = -torch.inf
    return float(ranked[index.argmax()])


def prevalence(real: Tensor, generated: Tensor, *, patients: Tensor | None = None, seed: int = 0) -> Prevalence:
    """Compare how often a classifier says yes.

    Args:
        real: Its answers for real images, (n,) bool.
        generated: Its answers for generated ones, (m,) bool.
        patients: The patient of each real image, (n,), which are resampled whole; None where images are independent.
        seed: Seed of the bootstrap.

    Source: Segal et al. 2021, "Evaluating the clinical realism of synthetic chest X-rays generated using progressively
    growing GANs", section "Label prevalence".
    """
    groups = np.arange(len(real)) if patients is None else patients.numpy()
    joined = np.concatenate([groups, groups.max() + 1 + np.arange(len(generated))])
    answers = torch.cat([real, generated]).double().numpy()
    is_real = np.arange(len(answers)) < len(real)

    def difference(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        of_real, of_generated = counts * is_real, counts * ~is_real
        with np.errstate(invalid="ignore"):  # a resample may hold one kind only: NaN
            found: NDArray[np.float64] = of_generated @ answers / of_generated.sum(1) - of_real @ answers / of_real.sum(
                1
            )
        return found

    return Prevalence(
        real=bootstrap(
            lambda counts: counts @ answers[: len(real)] / counts.sum(1),
            groups,
            resamples=PREVALENCE_RESAMPLES,
            seed=seed,
        ),
        generated=share(generated),
        difference=bootstrap(difference, joined, resamples=PREVALENCE_RESAMPLES, seed=seed),
    )
