"""Utility: classifiers trained with and on synthetic images, tested on real patients.

Each repetition leaves out a part of the real training patients, but the generator has learned from all of them. For an
unbiased answer, train it on the patients of a repetition only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.evaluation.checks.case import Case, Check, Figure, Findings
from medgen.evaluation.judges.classifier import (
    Change,
    ClassifierModule,
    ClassifierRecipe,
    LabelledImages,
    macro_auc,
    train_classifier,
    usable_labels,
)
from medgen.evaluation.judges.short_training import CLASSICAL
from medgen.evaluation.report.plots import intervals_plot
from medgen.evaluation.scores import Meaning, Score, score
from medgen.evaluation.statistics.comparisons import Outcome, compare_ways, folds_without_one
from medgen.evaluation.statistics.intervals import RESAMPLES, Interval, bootstraps
from medgen.evaluation.statistics.roc import weighted_areas
from medgen.labels import LabelSpace

_AREAS = 10**7
"""Images times resamples of an interval: large sets get fewer resamples, to save time."""

Way = Callable[[LabelledImages, int], ClassifierModule]
"""Trains a classifier, given the real training images of a repetition and its seed."""


def utility(case: Case) -> Findings:
    """Measure all ways of using the generated images."""
    setup = utility_setup(case)
    found = Findings()
    if len(setup.synthetic) < 2 * len(setup.train):
        found.warnings.append(
            f"utility: {len(setup.synthetic)} generated images beside {len(setup.train)} real training images; "
            "give a larger n to see what more of them are good for"
        )
    for title, name, outcomes in (
        ("Augmentation utility", "augmentation", augmentation_utility(setup)),
        ("Feature-extraction utility", "features", feature_utility(setup)),
        ("Trained on synthetic, tested on real", "gan_train", gan_train(setup)),
        ("Trained on real, tested on synthetic", "gan_test", gan_test(setup)),
    ):
        add_outcomes(found, case, name, title, outcomes, setup)
    return found


def add_outcomes(
    found: Findings, case: Case, name: str, title: str, outcomes: Sequence[Outcome], setup: UtilitySetup, note: str = ""
) -> None:
    """Add scores of outcomes, and a plot of them; the note stands before its caption."""
    found.scores += outcome_scores(case, name, outcomes)
    caption, rows = note + outcome_caption(outcomes, setup), {item.name: item.value for item in outcomes}
    image = intervals_plot(rows, label="AUC")
    found.figures.append(Figure(name=f"utility_{name}", title=title, caption=caption, image=image))


def utility_setup(case: Case) -> UtilitySetup:
    """Build the setup of a report."""
    return UtilitySetup(
        train=case.labelled(case.train),
        val=case.labelled(case.held_out("val")),
        test=case.labelled(case.held_out("test")),
        synthetic=case.labelled(case.generated),
        recipe=case.settings.recipe,
        label_space=case.space,
        folds=case.settings.folds,
        seeds=case.settings.seeds,
        device=case.judge.mean.device,
    )


def outcome_scores(case: Case, name: str, outcomes: Sequence[Outcome]) -> list[Score]:
    """Scores of outcomes under ``utility_NAME``, and of their tests under ``p_of_NAME``."""
    judge, test = case.settings.recipe.network, case.held_out("test")
    scores = []
    for item in outcomes:
        numbers: dict[str, float | Interval] = {f"utility_{name}:{item.name}": item.value}
        numbers |= {f"utility_{name}:{item.name}: {label}": auc for label, auc in item.per_label.items()}
        if item.p == item.p:  # NaN where there was no test
            numbers[f"p_of_{name}:{item.name} against {item.baseline}"] = item.p
        scores += [
            score(key, value, case.generated, test, judge=judge, n_generated=item.synthetic)
            for key, value in numbers.items()
        ]
    return scores


def outcome_caption(outcomes: Sequence[Outcome], setup: UtilitySetup) -> str:
    """Caption with the test of each way against its baseline."""
    pairs = setup.folds * setup.seeds
    ways = sum(bool(item.baseline) for item in outcomes)
    tests = "; ".join(
        f"{item.name}: {'p = ' + format(item.p, '.3f') if item.p == item.p else 'no test'} against {item.baseline}"
        for item in outcomes
        if item.baseline
    )
    text = (
        f"Area under the ROC curve of {setup.recipe.network}, mean of {pairs} repetitions on other "
        "training patients; 95 % bootstrap intervals over test patients. The generator may have learned from the "
        "patients that a repetition leaves out."
    )
    if not tests:
        return text
    least = min(1.0, ways * 2 / 2**pairs)
    return f"{text} Wilcoxon signed-rank, Holm-corrected (no p can be below {least:.3f} here): {tests}."


@dataclass(frozen=True, kw_only=True)
class UtilitySetup:
    """Data and settings of all utility measurements.

    Attributes:
        train: Real training images.
        val: Real validation images, for weights and thresholds.
        test: Real test images.
        synthetic: Generated images with the labels they were requested with.
        recipe: Training of the classifiers.
        label_space: Classes or findings.
        folds: Parts of the real training patients, of which each repetition leaves one out.
        seeds: Repetitions of each fold.
        change: Applied to all images, such as hiding the borders.
    """

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages
    synthetic: LabelledImages
    recipe: ClassifierRecipe
    label_space: LabelSpace
    folds: int = 8
    seeds: int = 1
    change: Change | None = None
    device: torch.device | str = "cpu"
    _trained: dict[tuple[str, int], ClassifierModule] = field(init=False, repr=False, default_factory=dict)

    def repetitions(self) -> list[tuple[LabelledImages, int]]:
        """Real images of each repetition, without one fold of patients, and its seed."""
        labels, groups = (part[self.train.rows] for part in (self.train.labels, self.train.groups))
        classes = labels if labels.dim() == 1 else (labels == 1).int().argmax(1)  # findings: by the first present
        rows = folds_without_one(classes, groups, self.folds, seeds=self.seeds)
        return [(self.train.subset(part), seed) for part, seed in rows]

    def fit(
        self,
        name: str,
        seed: int,
        train: Sequence[LabelledImages],
        *,
        val: LabelledImages | None = None,
        start: ClassifierModule | None = None,
        recipe: ClassifierRecipe | None = None,
    ) -> ClassifierModule:
        """Train a classifier, once for each name and seed."""
        if (name, seed) not in self._trained:
            self._trained[name, seed] = train_classifier(
                train,
                val or self.val,
                recipe or self.recipe,
                self.label_space,
                start=start,
                change=self.change,
                device=self.device,
                seed=seed,
            )
        return self._trained[name, seed]

    def real(self, real: LabelledImages, seed: int) -> ClassifierModule:
        """Train on the real images of a repetition."""
        return self.fit("real", seed, [real])

    def as_many(self, real: LabelledImages) -> int:
        """Number of images on either side of GAN-train; a fifth of the synthetic ones is for validation."""
        return min(len(real), len(self.synthetic) - len(self.synthetic) // 5)

    def equally_many_real(self, real: LabelledImages, seed: int) -> ClassifierModule:
        """Train on as many real images as `synthetic_only` has synthetic ones."""
        n = self.as_many(real)
        return self.real(real, seed) if n == len(real) else self.fit("fewer real", seed, [real.drawn(n, seed)])

    def synthetic_only(self, real: LabelledImages, seed: int) -> ClassifierModule:
        """Train on synthetic images, as many as real ones in a repetition, validated on others of them."""
        order = torch.randperm(len(self.synthetic), generator=torch.Generator().manual_seed(seed))
        n = self.as_many(real)
        train, val = self.synthetic.subset(order[:n]), self.synthetic.subset(order[-(len(self.synthetic) // 5) :])
        return self.fit("synthetic only", seed, [train], val=val)


def augmentation_utility(setup: UtilitySetup, ratios: Sequence[float] = (0.25, 0.5, 1.0, 2.0)) -> list[Outcome]:
    """Compare real images, classical augmentation, and synthetic images at several ratios to real ones.

    Ratios for which more than a tenth of the synthetic images are missing are left out.

    Source: "The beauty or the beast: which aspect of synthetic medical images deserves our focus?", data augmentation
    utility.
    """
    classical = replace(setup.recipe, augment=CLASSICAL)
    ways: dict[str, Way] = {
        "real": setup.real,
        "real + classical": lambda real, seed: setup.fit("classical", seed, [real], recipe=classical),
    }

    def mixed(real: LabelledImages, seed: int, *, ratio: float) -> ClassifierModule:
        return setup.fit(f"mixed {ratio:g}", seed, [real, setup.synthetic.drawn(round(ratio * len(real)), seed)])

    most = max(len(real) for real, _ in setup.repetitions())
    seen = {}
    for ratio in ratios:
        if 0.9 * ratio * most <= len(setup.synthetic):
            name = f"real + {ratio:g} x synthetic"
            ways[name] = partial(mixed, ratio=ratio)
            seen[name] = min(round(ratio * most), len(setup.synthetic))
    return _compare(setup, ways, seen)


def feature_utility(setup: UtilitySetup) -> list[Outcome]:
    """Compare features of synthetic and of real images, each with a last layer trained on half of the real images.

    Source: "The beauty or the beast: which aspect of synthetic medical images deserves our focus?", feature extraction
    utility.
    """

    def last_layer(real: LabelledImages, seed: int, *, name: str, features: Way) -> ClassifierModule:
        return setup.fit(name, seed, [real.drawn(len(real) // 2, seed)], start=features(real, seed))

    return _compare(
        setup,
        {
            "real features": partial(last_layer, name="real features", features=setup.real),
            "synthetic features": partial(last_layer, name="synthetic features", features=setup.synthetic_only),
        },
        {"synthetic features": _most_synthetic(setup)},
    )


def gan_train(setup: UtilitySetup) -> list[Outcome]:
    """Compare training on synthetic images only with training on equally many real ones; test on real images.

    The synthetic side is validated on other synthetic images.

    Source: Shmelkov et al. 2018, "How good is my GAN?", section 3.1.
    """
    if len(setup.synthetic) < 10:
        raise ValueError(
            f"there are {len(setup.synthetic)} labelled synthetic images; training on them needs at least 10"
        )
    ways: dict[str, Way] = {"real": setup.equally_many_real, "synthetic only": setup.synthetic_only}
    return _compare(setup, ways, {"synthetic only": _most_synthetic(setup)})


def gan_test(setup: UtilitySetup) -> list[Outcome]:
    """Train on real images, test on real and on synthetic ones.

    Source: Shmelkov et al. 2018, "How good is my GAN?", section 3.2.
    """
    found: dict[str, list[Tensor]] = {"real test images": [], "synthetic images": []}
    tests = {"real test images": setup.test, "synthetic images": setup.synthetic}
    for real, seed in setup.repetitions():
        classifier = setup.real(real, seed)
        for name, test in tests.items():
            found[name].append(classifier.scores(test, change=setup.change))
    outcomes = [_outcome(name, scores, tests[name], setup.label_space) for name, scores in found.items()]
    return [outcomes[0], replace(outcomes[1], synthetic=len(setup.synthetic))]


def _most_synthetic(setup: UtilitySetup) -> int:
    """Largest number of synthetic training images in `UtilitySetup.synthetic_only`."""
    return max(setup.as_many(real) for real, _ in setup.repetitions())


def _compare(setup: UtilitySetup, ways: dict[str, Way], synthetic: Mapping[str, int]) -> list[Outcome]:
    def scored(way: Way, real: LabelledImages, seed: int) -> Tensor:
        return way(real, seed).scores(setup.test, change=setup.change)

    outcomes = compare_ways(
        {name: partial(scored, way) for name, way in ways.items()},
        setup.repetitions(),
        partial(_outcome, test=setup.test, space=setup.label_space),
    )
    return [replace(item, synthetic=synthetic.get(item.name, 0)) for item in outcomes]


def _outcome(name: str, scores: Sequence[Tensor], test: LabelledImages, space: LabelSpace) -> Outcome:
    labels, groups = test.labels[test.rows], test.groups[test.rows].numpy()
    usable = list(usable_labels(labels, len(space)))
    two_classes = space.kind == "single" and len(space) == 2
    if not usable:
        raise ValueError(f"no class has test images with and without it among {', '.join(space.names)}")
    usable = usable[:1] if two_classes else usable  # of two classes, both have the same area
    areas = [
        (known.numpy(), [weighted_areas(run[known, k], positive[known]) for run in scores])
        for k, known, positive in usable
    ]

    def statistic(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean over classes, then each class; means over runs, (r, 1 + classes)."""
        each = np.stack([np.mean([area(counts[:, known]) for area in runs], axis=0) for known, runs in areas], axis=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a resample may lack a class: the others count
            return np.concatenate([np.nanmean(each, axis=1, keepdims=True), each], axis=1)

    enough = int(np.clip(_AREAS // len(groups), 200, RESAMPLES))
    value, *per_class = bootstraps(statistic, groups, resamples=enough)
    return Outcome(
        name=name,
        value=value,
        per_label={} if two_classes else {space.names[k]: auc for (k, *_), auc in zip(usable, per_class, strict=True)},
        runs=tuple(macro_auc(run, labels) for run in scores),
    )


P_MEANING = "Wilcoxon's signed-rank test of the repetitions, Holm-corrected."

MEANINGS = {
    "utility_augmentation": Meaning(
        "utility", "Augmentation", 1, "AUC on real test patients after training on what the row says."
    ),
    "utility_features": Meaning(
        "utility", "Feature extraction", 1, "AUC of these features with a last layer trained on real images."
    ),
    "utility_gan_train": Meaning(
        "utility", "GAN-train", 1, "AUC on real test patients after training on generated, or as many real images."
    ),
    "utility_gan_test": Meaning(
        "utility", "GAN-test", 1, "AUC of a classifier of real images on the requested labels."
    ),
    "p_of": Meaning("utility", "p of the difference", 0, P_MEANING),
}

CHECK = Check(run=utility, labels=True, packages=("matplotlib", "scipy", "sklearn"), meanings=MEANINGS)
