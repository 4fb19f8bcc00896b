"""Metrics of each class or finding."""

from __future__ import annotations

from dataclasses import replace

from medgen.evaluation.checks.case import CLASS_LEAST, HOW_TO_LABEL, Case, Check, Findings
from medgen.evaluation.run import measurable, measure


def per_class(case: Case) -> Findings:
    """Measure the metrics of the report on each class; classes with few images are left out with a warning."""
    if case.generated.labels is None:
        raise ValueError(f"{case.generated.name} has no labels; {HOW_TO_LABEL}")
    found = Findings()
    real = case.classes(case.real)
    for name, rows in case.classes(case.generated).items():
        sides = (case.generated.subset(rows), case.real.subset(real.get(name, rows[:0])))
        fewest = min(side.n for side in sides)
        if fewest < CLASS_LEAST:
            found.warnings.append(f"there are only {fewest} images of {name}: its own numbers are left out")
            continue
        scores = measure(*sides, case.judge, measurable(case.settings.metrics, fewest)).values()
        found.scores += [replace(item, name=f"{item.name}:{name}") for item in scores]
    return found


CHECK = Check(run=per_class, labels=True, train=False)
