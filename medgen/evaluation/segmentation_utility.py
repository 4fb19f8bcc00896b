"""Utility of synthetic images with label maps: segmentation networks trained with them, tested on real patients.

It measures what a generator adds to the k patients it was trained on. Each number of patients needs its own generator,
since one that has seen more patients would add what it learned from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.data.augmentation import Augmentation
from medgen.evaluation.judges.segmentation import (
    PatientScores,
    SegmentedImages,
    SegmenterModule,
    SegmenterRecipe,
    class_means,
    patient_scores,
    train_segmenter,
)
from medgen.evaluation.judges.short_training import CLASSICAL
from medgen.evaluation.statistics.comparisons import holm, signed_rank_p
from medgen.evaluation.statistics.intervals import Interval, bootstrap, bootstraps

Measure = Literal["dice", "hausdorff"]
By = Literal["class", "label"]


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Some real training patients, and images and requested masks of a generator trained on these patients only.

    Without a generator there are none. Labels in the label space of `real` allow targeted synthesis.
    """

    real: SegmentedImages
    synthetic: SegmentedImages | None = None


@dataclass(frozen=True, kw_only=True)
class SegmentationSetup:
    """Data and settings of all comparisons of segmentation.

    Attributes:
        test: Real test images.
        class_names: Names of the classes, the background first.
        val: Real validation images, which choose the label of targeted synthesis; None leaves targeted synthesis out.
        label_names: Names of the labels of images, such as pathologies.
        recipe: Training of the networks, with equally many steps for all.
        classical: Classical augmentation; leave flips off if left and right matter.
        ratio: Synthetic images per real one; all, if there are fewer.
        seeds: Networks trained in each way, whose scores are averaged.
        device: Device of the trainings.
    """

    test: SegmentedImages
    class_names: Sequence[str]
    val: SegmentedImages | None = None
    label_names: Sequence[str] = ()
    recipe: SegmenterRecipe = field(default_factory=SegmenterRecipe)
    classical: Augmentation = CLASSICAL
    ratio: float = 1.0
    seeds: int = 1
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if self.ratio <= 0:
            raise ValueError(f"ratio is {self.ratio}; give the number of synthetic images for each real one, above 0")
        if self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds}; it must be at least 1")
        top = -1 if self.test.labels is None else int(self.test.labels.max())
        if self.label_names and top >= len(self.label_names):
            raise ValueError(
                f"label_names has {len(self.label_names)} names, but test images have labels up to {top}; name them all"
            )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One score on the test patients, with equal weights, and its difference to a baseline; intervals over patients.

    Attributes:
        value: Mean over classes and test patients.
        per_class: Mean of each class.
        per_label: Mean over classes of the test patients with each label, such as a pathology.
        by_patient: Mean over classes of each test patient, (P,), in the order of patient numbers.
        gain: Paired difference to the baseline; None for real images alone.
        p: Two-sided Wilcoxon signed-rank test over test patients against the baseline, Holm-corrected for the ways of a
            cohort; NaN for real images alone, or if fewer than six patients differ.
    """

    value: Interval
    per_class: Mapping[str, Interval]
    per_label: Mapping[str, Interval]
    by_patient: tuple[float, ...]
    gain: Interval | None = None
    p: float = float("nan")


@dataclass(frozen=True, kw_only=True)
class SegmentationOutcome:
    """Result of networks trained in one way on some patients.

    Attributes:
        target: Label of targeted synthetic images; empty for others.
        baseline: Way it is compared with, without its new part; empty for real images alone.
        dice: Dice, 1 at best.
        hausdorff: 95 % Hausdorff distance in pixels, 0 at best.
    """

    name: str
    patients: int
    real: int
    synthetic: int = 0
    target: str = ""
    baseline: str = ""
    dice: Comparison
    hausdorff: Comparison


def choose_patients(groups_of_patients: Mapping[str, str], k: int, seed: int = 0) -> list[str]:
    """Draw `k` patients at random, with the groups, such as pathologies, in the shares they have among all.

    With one seed, the patients of a smaller `k` are among those of a larger one, so that learning curves add patients.

    Raises:
        ValueError: If there are fewer than `k` patients, or `k` is below 1.
    """
    if not 1 <= k <= len(groups_of_patients):
        raise ValueError(f"k is {k}; choose from 1 to all {len(groups_of_patients)} patients")
    random = np.random.default_rng(seed)
    members: dict[str, list[str]] = {}
    for patient in sorted(groups_of_patients):
        members.setdefault(groups_of_patients[patient], []).append(patient)
    placed = []
    for _, patients in sorted(members.items()):
        # Members are evenly spaced, so that every prefix of the order holds each group in its share.
        for rank, i in enumerate(random.permutation(len(patients))):
            placed.append(((rank + 0.5) / len(patients), random.random(), patients[i]))
    return [patient for _, _, patient in sorted(placed)[:k]]


class _Way(NamedTuple):
    """One way of training."""

    recipe: SegmenterRecipe
    baseline: str = ""
    synthetic: SegmentedImages | None = None
    target: str = ""


def segmentation_utility_by_patients(cohorts: Sequence[Cohort], setup: SegmentationSetup) -> list[SegmentationOutcome]:
    """Train networks in several ways on few patients; measure Dice and Hausdorff distance on real test patients.

    The ways are real images alone, with classical augmentation, with synthetic images, with both, and with targeted
    synthetic images: those of the label on whose validation patients the networks of real images alone have the lowest
    Dice. Ways with synthetic images are compared with the same way without them. There is one row for each cohort and
    way; only the first two ways without a generator, and no targeted synthesis without labels of the synthetic and
    validation images.

    Raises:
        ValueError: If sizes do not fit the network, masks hold other classes, or all test masks are background.

    Source: Al Khalil et al. 2023, "On the usability of synthetic data for improving the robustness of deep
    learning-based segmentation of cardiac magnetic resonance images".
    """
    return [row for cohort in cohorts for row in _compare(cohort, setup)]


def _compare(cohort: Cohort, setup: SegmentationSetup) -> list[SegmentationOutcome]:
    alone = _trained(cohort, _Way(setup.recipe), setup)
    ways = _ways(cohort, setup, alone)
    scores = {
        name: _scores(alone if name == "real" else _trained(cohort, way, setup), setup.test)
        for name, way in ways.items()
    }
    labels = scores["real"].labels
    dice = _comparisons(ways, {name: part.dice for name, part in scores.items()}, labels, setup)
    distances = _comparisons(ways, {name: part.hausdorff for name, part in scores.items()}, labels, setup)
    return [
        SegmentationOutcome(
            name=name,
            patients=len(cohort.real.groups[cohort.real.rows].unique()),
            real=len(cohort.real),
            synthetic=_used(cohort, way, setup),
            target=way.target,
            baseline=way.baseline,
            dice=dice[name],
            hausdorff=distances[name],
        )
        for name, way in ways.items()
    ]


def _ways(cohort: Cohort, setup: SegmentationSetup, alone: Sequence[SegmenterModule]) -> dict[str, _Way]:
    """Ways of training by name, in the order of the table; `alone` are the networks of real images alone."""
    synthetic, classical = cohort.synthetic, replace(setup.recipe, augment=setup.classical)
    ways = {"real": _Way(setup.recipe), "real + classical": _Way(classical, "real")}
    if synthetic is None or not len(synthetic):
        return ways
    ways["real + synthetic"] = _Way(setup.recipe, "real", synthetic)
    ways["real + classical + synthetic"] = _Way(classical, "real + classical", synthetic)
    if setup.val is not None and setup.val.labels is not None and synthetic.labels is not None:
        label = worst_label(_scores(alone, setup.val))
        chosen = synthetic.subset((synthetic.labels[synthetic.rows] == label).nonzero()[:, 0])
        if len(chosen):
            ways["real + targeted synthetic"] = _Way(setup.recipe, "real", chosen, _label_name(setup, label))
    return ways


def worst_label(scores: PatientScores) -> int:
    """Label whose patients have the lowest Dice, mean over classes and patients.

    Raises:
        ValueError: If no patient has a label.
    """
    if scores.labels is None or not len(known := scores.labels[scores.labels >= 0].unique()):
        raise ValueError("the patients have no labels to choose from; give SegmentedImages with labels")
    means = scores.dice.nanmean(1)
    return int(known[torch.stack([means[scores.labels == label].nanmean() for label in known]).argmin()])


def _label_name(setup: SegmentationSetup, label: int) -> str:
    return setup.label_names[label] if setup.label_names else str(label)


def _used(cohort: Cohort, way: _Way, setup: SegmentationSetup) -> int:
    """Number of synthetic training images."""
    return 0 if way.synthetic is None else min(round(setup.ratio * len(cohort.real)), len(way.synthetic))


def _trained(cohort: Cohort, way: _Way, setup: SegmentationSetup) -> list[SegmenterModule]:
    """Networks trained in one way, one for each seed."""
    modules = []
    for seed in range(setup.seeds):
        train = [cohort.real]
        if way.synthetic is not None:
            train.append(way.synthetic.drawn(_used(cohort, way, setup), seed))
        modules.append(train_segmenter(train, way.recipe, len(setup.class_names), device=setup.device, seed=seed))
    return modules


def _scores(modules: Sequence[SegmenterModule], data: SegmentedImages) -> PatientScores:
    """Scores of each patient, means over networks."""
    runs = [patient_scores(module, data) for module in modules]
    dice, distances = (torch.stack([getattr(run, name) for run in runs]).nanmean(0) for name in get_args(Measure))
    return replace(runs[0], dice=dice, hausdorff=distances)


def _comparisons(
    ways: Mapping[str, _Way], values: Mapping[str, Tensor], labels: Tensor | None, setup: SegmentationSetup
) -> dict[str, Comparison]:
    """Comparison of each way with its baseline for one score, (P, K - 1) for each way."""
    against = {name: values[way.baseline] for name, way in ways.items() if way.baseline}
    ps = dict(zip(against, holm([_p(values[name], baseline) for name, baseline in against.items()]), strict=True))
    found = {name: _measured(part, labels, setup) for name, part in values.items()}
    return found | {
        name: replace(found[name], gain=_interval(values[name], baseline), p=ps[name])
        for name, baseline in against.items()
    }


def _measured(values: Tensor, labels: Tensor | None, setup: SegmentationSetup) -> Comparison:
    shown = values.isfinite().any(0)
    if not bool(shown.any()):
        raise ValueError("the test masks are all background; give test images with label maps")
    value, *each = bootstraps(lambda counts: class_means(counts, values[:, shown]), np.arange(len(values)))
    names = [name for name, known in zip(setup.class_names[1:], shown.tolist(), strict=True) if known]
    of_label = [] if labels is None else labels[labels >= 0].unique().tolist()
    return Comparison(
        value=value,
        per_class=dict(zip(names, each, strict=True)),
        per_label={_label_name(setup, label): _interval(values[labels == label]) for label in of_label},
        by_patient=tuple(values.nanmean(1).tolist()),
    )


def _interval(values: Tensor, baseline: Tensor | None = None) -> Interval:
    """Interval of the mean over classes and patients, or of its difference to a baseline."""

    def statistic(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        less = 0.0 if baseline is None else class_means(counts, baseline)[:, 0]
        return class_means(counts, values)[:, 0] - less

    return bootstrap(statistic, np.arange(len(values)))


def _p(values: Tensor, baseline: Tensor) -> float:
    pairs = torch.stack([values.nanmean(1), baseline.nanmean(1)])
    a, b = pairs[:, pairs.isfinite().all(0)].tolist()
    return signed_rank_p(a, b)


def utility_table(outcomes: Sequence[SegmentationOutcome], measure: Measure = "dice", by: By = "class") -> str:
    """Format the rows as a Markdown table: one score with intervals, the gain over the baseline, its p.

    Columns are for each ``"class"`` of the masks, or for each ``"label"`` of the test patients.

    Raises:
        ValueError: If there are no rows.
    """
    if not outcomes:
        raise ValueError("there are no outcomes; give what segmentation_utility_by_patients returned")
    digits = 3 if measure == "dice" else 1
    columns = list(_parts(outcomes[0], measure, by))
    title = "Dice" if measure == "dice" else "95 % Hausdorff distance (pixels)"
    lines = [["patients", "trained on", "synthetic images", title, *columns, "gain", "p"]]
    lines.append(["---"] * len(lines[0]))
    for row in outcomes:
        part: Comparison = getattr(row, measure)
        parts = _parts(row, measure, by)
        name = f"{row.name} ({row.target})" if row.target else row.name
        gain = "" if part.gain is None else f"{_text(part.gain, digits, sign='+')} on {row.baseline}"
        p = "" if part.p != part.p else "below 0.001" if part.p < 0.001 else f"{part.p:.3f}"
        cells = [_text(item, digits) for item in (part.value, *(parts[column] for column in columns))]
        lines.append([str(row.patients), name, str(row.synthetic), *cells, gain, p])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _parts(row: SegmentationOutcome, measure: Measure, by: By) -> Mapping[str, Interval]:
    comparison: Comparison = getattr(row, measure)
    return comparison.per_class if by == "class" else comparison.per_label


def _text(interval: Interval, digits: int, *, sign: str = "") -> str:
    value, low, high = (format(number, f"{sign}.{digits}f") for number in interval)
    return f"{value} ({low} to {high})"
