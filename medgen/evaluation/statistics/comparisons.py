"""Comparisons of ways of training, on equal folds and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.evaluation.statistics.intervals import Interval

Data = TypeVar("Data")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of networks trained in one way, with that of each class or finding and of each repetition.

    Attributes:
        value: Mean over repetitions, such as of the area under the ROC curve; interval over test patients.
        baseline: Name of the way it is compared with; empty for the baseline itself.
        p: Two-sided Wilcoxon signed-rank test of the repetitions against the baseline's, Holm-corrected for the number
            of ways; NaN for the baseline, or if too few repetitions differ.
        synthetic: Number of synthetic images used in training or in the test.
    """

    name: str
    value: Interval
    per_label: Mapping[str, Interval] = field(default_factory=dict)
    runs: tuple[float, ...]
    baseline: str = ""
    p: float = float("nan")
    synthetic: int = 0


def folds_without_one(classes: Tensor, groups: Tensor, folds: int, *, seeds: int = 1) -> list[tuple[Tensor, int]]:
    """Rows of each repetition, which leaves one fold of patients out, and its seed; folds have equal shares of classes.

    Raises:
        ValueError: If there are fewer patients than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if folds < 2 or len(groups.unique()) < folds:
        raise ValueError(f"folds is {folds}; use at least 2 and no more than the {len(groups.unique())} patients")
    labels, patients = classes.numpy(), groups.numpy()
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(labels, labels, patients)
    kept = [torch.from_numpy(rows) for rows, _ in split]
    return [(rows, seed * folds + fold) for seed in range(seeds) for fold, rows in enumerate(kept)]


def compare_ways(
    ways: Mapping[str, Callable[[Data, int], Tensor]],
    repetitions: Iterable[tuple[Data, int]],
    outcome: Callable[[str, Sequence[Tensor]], Outcome],
) -> list[Outcome]:
    """Train in several ways on the same data with the same seeds; the first way is the baseline.

    A way maps data and seed of a repetition to answers on the test images, of which `outcome` summarises all
    repetitions.
    """
    answers: dict[str, list[Tensor]] = {name: [] for name in ways}
    for data, seed in repetitions:
        for name, way in ways.items():
            answers[name].append(way(data, seed))
    baseline, *others = [outcome(name, found) for name, found in answers.items()]
    ps = holm([signed_rank_p(other.runs, baseline.runs) for other in others])
    return [baseline, *(replace(other, baseline=baseline.name, p=p) for other, p in zip(others, ps, strict=True))]


def signed_rank_p(values: Sequence[float], baseline: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test of paired runs; NaN if fewer than six pairs differ."""
    from scipy.stats import wilcoxon

    difference: NDArray[np.float64] = np.asarray(values) - np.asarray(baseline)
    if np.count_nonzero(difference) < 6:  # the smallest p of five pairs is 0.06
        return float("nan")
    return float(wilcoxon(difference).pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p values for their number, step down; NaN stays and does not count.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    corrected = np.asarray(ps, dtype=np.float64)
    order = [i for i in np.argsort(corrected) if np.isfinite(corrected[i])]
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * corrected[i]))
        corrected[i] = largest
    return [float(p) for p in corrected]
