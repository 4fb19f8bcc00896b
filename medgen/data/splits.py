"""Splits by patient with equal label shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_NAMES = ("train", "val", "test")


def split_by_patient(
    patients: Sequence[str],
    labels: Tensor | None,
    *,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> list[str]:
    """Assign every image to a split so that no patient is in two.

    A patient carries every label that any of their images has. Patients are assigned by iterative stratification,
    rarest label first (Sechidis et al. 2011, "On the stratification of multi-label data"), so that each split has
    nearly its share of every class or finding. The order of the rows does not matter.

    Args:
        patients: Patient of each image.
        labels: (n,) classes with -1 for unknown or (n, K) findings with NaN for unknown; ``None`` splits at random.
        fractions: Shares of train, val and test; they sum to 1, and 0 leaves a split empty.
        seed: Chooses the split.

    Returns:
        ``"train"``, ``"val"`` or ``"test"`` for each image.

    Raises:
        ValueError: If the fractions do not sum to 1, or there are fewer patients than splits.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"split_fractions is {fractions}; give the shares of train, val and test, which sum to 1")
    names = sorted(set(patients))
    wanted = [(name, fraction) for name, fraction in zip(_NAMES, fractions, strict=True) if fraction > 0]
    if len(names) < len(wanted):
        raise ValueError(
            f"{len(names)} patients cannot be dealt out to {len(wanted)} splits; give split_fractions with zeros"
        )
    shares = np.array([fraction for _, fraction in wanted])
    random = np.random.RandomState(seed)
    order = random.permutation(len(names))
    if labels is None:
        bounds = np.round(np.cumsum(shares) * len(names)).astype(int)
        parts = np.searchsorted(bounds, np.arange(len(names)), side="right")
    else:
        position = {name: place for place, name in enumerate(names)}
        rows = np.array([position[patient] for patient in patients])
        parts = _stratify(_per_patient(labels, rows, len(names))[order], shares, random)
    part_of = np.empty(len(names), dtype=int)
    part_of[order] = parts
    of_patient = {name: wanted[part_of[place]][0] for place, name in enumerate(names)}
    return [of_patient[patient] for patient in patients]


def _per_patient(labels: Tensor, rows: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Labels that any image of a patient has, (patients, K)."""
    values = labels.numpy()
    shown = values[:, None] == np.unique(values[values >= 0])[None] if values.ndim == 1 else values == 1
    carried = np.zeros((count, shown.shape[1]), dtype=bool)
    np.logical_or.at(carried, rows, shown)
    return carried


def _stratify(
    carried: NDArray[np.bool_], shares: NDArray[np.float64], random: np.random.RandomState
) -> NDArray[np.int64]:
    try:
        from iterstrat.ml_stratifiers import IterativeStratification
    except ImportError as error:
        raise ImportError(
            'splitting with equal label shares needs pip install "medgen[splits]"; or name a split_column'
        ) from error
    parts: NDArray[np.int64] = IterativeStratification(labels=carried, r=shares, random_state=random)
    return parts
