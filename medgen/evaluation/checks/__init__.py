"""Checks of a report: one file each, which holds the check and the meanings of its scores, and one line in `CHECKS`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medgen.evaluation.checks.case import Check

CHECKS: dict[str, str] = {
    "variety": "medgen.evaluation.checks.variety",
    "controls": "medgen.evaluation.checks.controls",
    "zero_point": "medgen.evaluation.checks.zero_point",
    "class_distances": "medgen.evaluation.checks.class_distances",
    "per_class": "medgen.evaluation.checks.per_class",
    "inception_score": "medgen.evaluation.checks.inception_score",
    "label_auc": "medgen.evaluation.checks.label_auc",
    "prevalence": "medgen.evaluation.checks.prevalence",
    "consistency": "medgen.evaluation.checks.consistency",
    "privacy": "medgen.evaluation.checks.privacy",
    "reconstruction": "medgen.evaluation.checks.reconstruction",
    "likelihood": "medgen.evaluation.checks.likelihood",
    "efficiency": "medgen.evaluation.checks.efficiency",
    "utility": "medgen.evaluation.checks.utility",
    "bias": "medgen.evaluation.checks.bias",
}
"""Name of each check and the module that holds it as ``CHECK``, in the order of a report."""


def load_check(name: str) -> Check:
    """Import a check of `CHECKS`."""
    found: Check = import_module(CHECKS[name]).CHECK
    return found
