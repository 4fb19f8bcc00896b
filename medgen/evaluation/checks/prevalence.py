"""Label prevalence: how often a classifier of real images sees each label, in generated and in real images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.evaluation.checks.case import Case, Check, Findings
from medgen.evaluation.judges.label_readers import LabelReaders
from medgen.evaluation.scores import Meaning, Score, score
from medgen.evaluation.sets import FeatureSet, patients_of
from medgen.evaluation.statistics.intervals import Interval, bootstrap, share

PREVALENCE_RESAMPLES = 10_000
"""Resamples of the bootstrap, as in the paper."""


def label_prevalence(case: Case) -> Findings:
    """Measure `label_prevalences`, and warn of labels that the generator drops."""
    found = label_prevalences(case.readers, case.generated, case.real)
    dropped = [
        name.partition(":")[2] or case.space.names[-1]
        for name, item in found.items()
        if name.startswith("prevalence_difference") and item.high is not None and item.high < 0
    ]
    warnings = [f"a classifier of real images sees {name} less often than in real images" for name in dropped]
    return Findings(scores=list(found.values()), warnings=warnings)


def label_prevalences(readers: LabelReaders, generated: FeatureSet, real: FeatureSet) -> dict[str, Score]:
    """Prevalence of each label in generated and in held-out real images, as the classifiers see it.

    The scores are ``prevalence_generated``, ``prevalence_real`` and ``prevalence_difference`` with 95 % intervals,
    named like those of `medgen.evaluation.checks.label_auc.label_aucs`. If the requested labels are distributed as the
    real ones, a difference below 0 says that the generator drops the label.

    Source: Segal et al. 2021, "Evaluating the clinical realism of synthetic chest X-rays generated using progressively
    growing GANs", figure 6 and section "Label prevalence".
    """
    found = {}
    train, network = readers.train, readers.network
    for _, suffix, reader in readers.usable():
        answers = [reader.scores(part.features[network.name]) >= reader.threshold for part in (real, generated)]
        result = prevalence(answers[0], answers[1], patients=patients_of(real))
        for kind, interval, part in (
            ("real", result.real, real),
            ("generated", result.generated, generated),
            ("difference", result.difference, generated),
        ):
            name = f"prevalence_{kind}{suffix}"
            found[name] = score(name, interval, part, train if kind != "difference" else real, network)
    return found


class Prevalence(NamedTuple):
    """Shares of images that a classifier calls positive, with 95 % intervals; `difference` is generated less real."""

    real: Interval
    generated: Interval
    difference: Interval


def prevalence(real: Tensor, generated: Tensor, *, patients: Tensor | None = None, seed: int = 0) -> Prevalence:
    """Compare the shares of positive answers of a classifier for real (n,) and generated images (m,), bool.

    Patients of real images, (n,), are resampled whole; None if images are independent.
    """
    groups = np.arange(len(real)) if patients is None else patients.numpy()
    joined = np.concatenate([groups, groups.max() + 1 + np.arange(len(generated))])
    answers = torch.cat([real, generated]).double().numpy()
    is_real = np.arange(len(answers)) < len(real)

    def real_share(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = counts @ answers[: len(real)] / counts.sum(1)
        return found

    def difference(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        of_real, of_generated = counts * is_real, counts * ~is_real
        with np.errstate(invalid="ignore"):  # a resample may hold one kind only: NaN
            shares = [part @ answers / part.sum(1) for part in (of_generated, of_real)]
        found: NDArray[np.float64] = shares[0] - shares[1]
        return found

    return Prevalence(
        real=bootstrap(real_share, groups, resamples=PREVALENCE_RESAMPLES, seed=seed),
        generated=share(generated),
        difference=bootstrap(difference, joined, resamples=PREVALENCE_RESAMPLES, seed=seed),
    )


MEANINGS = {
    "prevalence": Meaning("labels", "Label prevalence", 0, "How often a classifier of real images sees the label."),
    "prevalence_difference": Meaning(
        "labels", "Prevalence, generated less real", 0, "Below 0, the generator drops the label."
    ),
}

CHECK = Check(run=label_prevalence, labels=True, packages=("sklearn",), meanings=MEANINGS)
