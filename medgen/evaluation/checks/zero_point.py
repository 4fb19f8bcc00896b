"""Zero point of the metrics: one half of the real images against the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medgen.evaluation.checks.case import Case, Check, Findings
from medgen.evaluation.judges.features import FeatureNetwork
from medgen.evaluation.run import measurable, measure
from medgen.evaluation.scores import Score
from medgen.evaluation.sets import FeatureSet, RealImages


def zero_point_check(case: Case) -> Findings:
    """Measure `zero_point` with the metrics of the report."""
    settings = case.settings
    return Findings(scores=list(zero_point(case.real, case.judge, settings.metrics, seed=settings.seed).values()))


def zero_point(real: FeatureSet, network: FeatureNetwork, metrics: Sequence[str], *, seed: int = 0) -> dict[str, Score]:
    """Scores of one half of a real set against the other: those of perfect images at half the number."""
    assert isinstance(real.images, RealImages)
    names = ("half of the real images against the other", "the other half")
    halves = zip(names, halves_by_patient(real.images, seed=seed), strict=True)
    one, other = (real.subset(rows, name) for name, rows in halves)
    return measure(one, other, network, measurable(metrics, min(one.n, other.n)))


def halves_by_patient(images: RealImages, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split a real set into two halves that share no patient, with equal shares of each class.

    Source: Segal et al. 2021, "Evaluating the clinical realism of synthetic chest X-rays generated using progressively
    growing GANs": the distance of two halves is the zero point of a metric on these data.
    """
    random = np.random.default_rng(seed)
    patients = np.array(images.patients) if images.patients else np.arange(len(images))
    classes = np.zeros(len(patients), dtype=np.int64)
    if images.labels is not None:  # of findings, the first that is present
        labels = images.labels if images.labels.dim() == 1 else (images.labels == 1).int().argmax(1)
        classes = labels.numpy()
    names, first, sizes = np.unique(patients, return_index=True, return_counts=True)
    side = np.zeros(len(names), dtype=bool)
    balance = 0  # images of the first half less those of the second
    for label in np.unique(classes):
        members = random.permutation(np.flatnonzero(classes[first] == label))
        for member in sorted(members, key=lambda m: -sizes[m]):  # large patients first: small ones even out the rest
            side[member] = balance <= 0
            balance += sizes[member] if side[member] else -sizes[member]
    chosen = side[np.searchsorted(names, patients)]
    return torch.from_numpy(np.flatnonzero(chosen)), torch.from_numpy(np.flatnonzero(~chosen))


CHECK = Check(run=zero_point_check, train=False, shared=True)
