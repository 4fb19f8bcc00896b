"""Confidence intervals: Wilson's for shares, bootstrap for all other statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RESAMPLES = 2000
_BLOCK = 2**22
"""Counts held in memory at once (32 MiB)."""


class Interval(NamedTuple):
    """A number with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def share(hits: Tensor) -> Interval:
    """Share of true entries (n,) with Wilson's interval, which stays in [0, 1].

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    n, z = len(hits), 1.959964
    p = float(hits.double().mean())
    centre, half = p + z * z / (2 * n), z * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    scale = 1 + z * z / n
    return Interval(p, max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def bootstrap_mean(values: Tensor, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of (n,) values with its percentile bootstrap interval."""
    data = values.double().cpu().numpy()
    return bootstrap(lambda counts: counts @ data / counts.sum(1), np.arange(len(data)), resamples=resamples, seed=seed)


def bootstrap(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    groups: NDArray[np.int64],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Statistic of rows with its percentile bootstrap interval; whole groups (n,), such as patients, are resampled.

    The statistic maps the number of times each row was drawn, (r, n) for r resamples, to values (r,); NaN if a resample
    does not allow one, such as one without a positive case. Groups ``arange(n)`` are independent rows.

    Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 13.
    """
    (interval,) = bootstraps(lambda counts: statistic(counts)[:, None], groups, resamples=resamples, seed=seed)
    return interval


def bootstraps(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    groups: NDArray[np.int64],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Intervals of several statistics of the same rows, as `bootstrap`; `statistic` returns (r, k) values."""
    names, member = np.unique(groups, return_inverse=True)
    random = np.random.default_rng(seed)
    at_once = max(1, _BLOCK // len(member))
    drawn = []
    for start in range(0, resamples, at_once):
        picked = random.integers(len(names), size=(min(at_once, resamples - start), len(names)))
        counts = np.stack([np.bincount(row, minlength=len(names)) for row in picked])
        drawn.append(statistic(counts[:, member].astype(np.float64)))
    ends = np.nanquantile(np.concatenate(drawn), [0.025, 0.975], axis=0)
    values = statistic(np.ones((1, len(member))))[0]
    return [Interval(float(value), float(low), float(high)) for value, low, high in zip(values, *ends, strict=True)]


def named(name: str, interval: Interval) -> dict[str, Tensor]:
    """Convert an interval to numbers of a metric: ``NAME``, ``NAME_low`` and ``NAME_high``."""
    parts = {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {key: torch.tensor(value) for key, value in parts.items()}
