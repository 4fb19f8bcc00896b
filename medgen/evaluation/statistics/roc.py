"""ROC curves: areas with intervals over patients, and thresholds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.evaluation.statistics.intervals import RESAMPLES, Interval, bootstrap


def auc_value(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve of scores (n,) for the truth (n,) bool: 0.5 is random, 1 is perfect.

    Raises:
        ValueError: If all images are positive or all are negative.

    Source: Hanley and McNeil 1982, "The meaning and use of the area under a ROC curve".
    """
    truth = positive.numpy()
    if not truth.any() or truth.all():
        raise ValueError(
            f"a ROC curve needs images of both kinds; there are {int(truth.sum())} positive, "
            f"{int((~truth).sum())} negative"
        )
    return float(weighted_areas(scores, positive)(np.ones((1, len(truth))))[0])


def roc_auc(
    scores: Tensor,
    positive: Tensor,
    *,
    groups: NDArray[np.int64] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Area under the ROC curve with its percentile bootstrap interval, see `auc_value`.

    Patients (n,), the groups, are resampled whole; resamples without positive or without negative images are left out.
    """
    value = auc_value(scores, positive)
    members = np.arange(len(scores)) if groups is None else groups
    areas = weighted_areas(scores, positive)
    return bootstrap(areas, members, resamples=resamples, seed=seed)._replace(value=value)


def weighted_areas(scores: Tensor, positive: Tensor) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Build a function from weights of images, (r, n), to areas (r,); NaN if one kind has no weight."""
    _, ranks = np.unique(scores.double().numpy(), return_inverse=True)
    order = np.argsort(ranks, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(ranks[order]) > 0])
    truth = positive.numpy()[order]

    def areas(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        ranked = weights[:, order]
        higher, lower = (np.add.reduceat(ranked * part, starts, axis=1) for part in (truth, ~truth))
        wins = np.cumsum(lower, axis=1) - 0.5 * lower  # a tie is half a win
        pairs = higher.sum(1) * lower.sum(1)
        found: NDArray[np.float64] = np.where(pairs > 0, (higher * wins).sum(1) / np.maximum(pairs, 1e-300), np.nan)
        return found

    return areas


def youden_threshold(scores: Tensor, positive: Tensor) -> float:
    """Threshold with the largest sum of sensitivity and specificity; scores (n,) at or above it are positive.

    Raises:
        ValueError: If all images are positive or all are negative.

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
