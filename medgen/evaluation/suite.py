"""The checks of a report, by name: each takes a case and gives scores, figures and warnings."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch

from medgen.evaluation import utility
from medgen.evaluation.checks import Case, Check, Figure, Findings
from medgen.evaluation.classifier import train_classifier
from medgen.evaluation.comparisons import Outcome
from medgen.evaluation.conditional import inception_scores, label_aucs, label_prevalences
from medgen.evaluation.consistency_check import consistency_check, masks_obstacle
from medgen.evaluation.controls import class_distances, controls, zero_point
from medgen.evaluation.copies import near_copies
from medgen.evaluation.efficiency import efficiency
from medgen.evaluation.intervals import Interval, share
from medgen.evaluation.likelihood import likelihood
from medgen.evaluation.plots import dendrogram_plot, distances_plot, histogram_plot, intervals_plot
from medgen.evaluation.privacy import (
    authenticity,
    copying_z,
    memorisation_scores,
    nearest_pictures,
    nearest_training,
    pair_pictures,
    training_cells,
)
from medgen.evaluation.reconstruction import reconstruction
from medgen.evaluation.run import Opened, measurable, measure
from medgen.evaluation.saliency import border_share, mean_saliency, saliency_picture, without_borders, without_boxes
from medgen.evaluation.scores import Score, score
from medgen.evaluation.sets import FeatureSet, known_and_positive, patients_of
from medgen.evaluation.variety import LEAST_SIDE, lossless_bytes, mean_image, pair_similarity
from medgen.images import image_grid

if TYPE_CHECKING:
    from medgen.data.base import ImageDataModule

CLASS_LEAST = 20
"""Images a class needs on each side for numbers of its own."""


HOW_TO_LABEL = "a folder of images gets them from a samples.csv with the columns file and label"

CELL = 60
"""Images of each kind per cell of the training space, on average, where copies are tested for cell by cell."""


def _label_auc(case: Case) -> Findings:
    found = label_aucs(case.readers, case.generated, case.real)
    warnings = [
        f"{name.partition(':')[2] or 'the label'} is not recognised in generated images (AUC interval includes 0.5): "
        "the condition may be ignored"
        for name, item in found.items()
        if name.startswith("label_auc_generated") and item.low is not None and item.low <= 0.5
    ]
    return Findings(scores=list(found.values()), warnings=warnings)


def _prevalence(case: Case) -> Findings:
    found = label_prevalences(case.readers, case.generated, case.real)
    dropped = [
        name.partition(":")[2] or case.space.names[-1]
        for name, item in found.items()
        if name.startswith("prevalence_difference") and item.high is not None and item.high < 0
    ]
    warnings = [f"a classifier of real images sees {name} less often than in real images" for name in dropped]
    return Findings(scores=list(found.values()), warnings=warnings)


def _variety(case: Case) -> Findings:
    found = Findings()
    means, captions = [], []
    real, generated = dict(_classes(case, case.real)), dict(_classes(case, case.generated))
    common = [name for name in real if name in generated]
    if not common:  # one side has no labels: all images stand against all
        common, real, generated = [""], {"": torch.arange(case.real.n)}, {"": torch.arange(case.generated.n)}
    # The mean of fewer images is less blurred, so both sides have as many.
    counts = {name: min(len(real[name]), len(generated[name])) for name in common}
    fewer = any(counts[name] < len(real[name]) for name in common)
    beside = replace(case.real, name=f"{case.real.name}, as many as {case.generated.name}") if fewer else case.real
    for part, classes in ((case.generated, generated), (beside, real)):
        for name in common:
            count = counts[name]
            rows = classes[name][torch.randperm(len(classes[name]), generator=_generator(case))[:count]]
            suffix = f":{name}" if name else ""
            picture = mean_image(part.images, rows)
            means.append(picture)
            captions.append(f"{'generated' if part is case.generated else 'real'} {name}".strip())
            numbers: dict[str, float | Interval] = {
                f"mean_image_{suffix_of}_bytes{suffix}": float(size)
                for suffix_of, size in lossless_bytes(picture).items()
            }
            if min(picture.shape[-2:]) >= LEAST_SIDE and len(rows) > 1:
                numbers[f"ms_ssim{suffix}"] = pair_similarity(part.images, rows, seed=case.settings.seed)
            found.scores += [
                score(key, value, part, case.real, n_generated=count, n_real=count) for key, value in numbers.items()
            ]
    picture_grid = image_grid(
        torch.stack(means), columns=len(means) // 2 or 1, captions=captions, scale=max(1, 128 // means[0].shape[-1])
    )
    found.figures.append(
        Figure(
            name="mean_images",
            title="Mean images",
            caption="The mean image of each class. Sharp edges say that images resemble each other (mode collapse).",
            image=picture_grid,
            patients=min(counts.values()) < CLASS_LEAST,  # the mean of few images shows a patient
        )
    )
    return found


def _generator(case: Case) -> torch.Generator:
    return torch.Generator().manual_seed(case.settings.seed)


def _classes(case: Case, part: FeatureSet) -> list[tuple[str, torch.Tensor]]:
    """Names and rows of the classes or findings of a set; all rows under no name where there are none."""
    if part.labels is None or case.space.kind not in ("single", "multi"):
        return [("", torch.arange(part.n))]
    found = [(name, known_and_positive(part.labels, k)[1].nonzero()[:, 0]) for k, name in enumerate(case.space.names)]
    return [(name, rows) for name, rows in found if len(rows)]


def _per_class(case: Case) -> Findings:
    if case.generated.labels is None:
        raise ValueError(f"{case.generated.name} has no labels; {HOW_TO_LABEL}")
    found = Findings()
    real = dict(_classes(case, case.real))
    for name, rows in _classes(case, case.generated):
        sides = (case.generated.subset(rows), case.real.subset(real.get(name, rows[:0])))
        fewest = min(side.n for side in sides)
        if fewest < CLASS_LEAST:
            found.warnings.append(f"there are only {fewest} images of {name}: its own numbers are left out")
            continue
        scores = measure(*sides, case.judge, measurable(case.settings.metrics, fewest)).values()
        found.scores += [replace(item, name=f"{item.name}:{name}") for item in scores]
    return found


def _inception_score(case: Case) -> Findings:
    return Findings(scores=inception_scores(case.train, case.generated, case.real, case.judge, case.space))


def _controls(case: Case) -> Findings:
    found = Findings()
    settings = case.settings
    for control in controls(
        case.datamodule, case.judge, settings.metrics, n=case.generated.n, split=settings.split, seed=settings.seed
    ).values():
        found.scores += control.values()
    return found


def _zero_point(case: Case) -> Findings:
    settings = case.settings
    return Findings(scores=list(zero_point(case.real, case.judge, settings.metrics, seed=settings.seed).values()))


def _class_distances(case: Case) -> Findings:
    found = class_distances(case.generated, case.real, case.judge, case.space)
    warnings = []
    for i, name in enumerate(found.names):
        kind, _, label = name.partition(": ")
        if kind == "generated":
            real = {j: other for j, other in enumerate(found.names) if other.startswith("real: ")}
            nearest = min(real, key=lambda j: found.matrix[i, j])
            if real[nearest] != f"real: {label}":
                other = real[nearest].removeprefix("real: ")
                warnings.append(f"generated images of {label} lie nearer to real {other} than to their own class")
    scores = [
        score(
            f"class_distance:{a} to {b}",
            found.matrix[i, j],
            case.generated,
            case.real,
            case.judge,
            n_generated=found.n,
            n_real=found.n,
        )
        for (i, a), (j, b) in itertools.combinations(enumerate(found.names), 2)
    ]
    return Findings(
        scores=scores,
        figures=[
            Figure(
                name="class_distances",
                title="Classes by their Fréchet distances",
                caption="Multidimensional scaling: near on paper is near in distribution.",
                image=distances_plot(found.matrix, found.names),
            ),
            Figure(
                name="class_dendrogram",
                title="Which classes are alike",
                caption="Average linkage of the same distances.",
                image=dendrogram_plot(found.matrix, found.names),
            ),
        ],
        warnings=warnings,
    )


def _privacy(case: Case) -> Findings:
    found = Findings()
    # Images of one patient are not independent, which the test asks for.
    alone = torch.from_numpy(np.unique(patients_of(case.real).numpy(), return_index=True)[1])

    def cells(name: str) -> torch.Tensor | None:
        count = min(case.generated.n, len(alone)) // CELL
        vectors = (case.generated.features[name], case.real.features[name][alone])
        seed = case.settings.seed
        return training_cells(case.train.features[name], *vectors, count=count, seed=seed) if count > 1 else None

    for network in (case.judge, case.pixels):
        near = nearest_training(case.generated, case.train, case.real, network)
        found.scores += memorisation_scores(near, case.generated, case.real, network).values()
        space = case.train.features[network.name]
        z = copying_z(near.generated.distance, near.held_out.distance[alone], cells=cells(network.name))
        for part, neighbours in ((case.generated, near.generated), (case.real, near.held_out)):
            own = authenticity(neighbours, space)
            found.scores.append(score(f"authenticity_{network.slug}", share(own), part, case.train, network))
        if z == z:  # NaN with few images
            found.scores.append(score(f"copying_z_{network.slug}", z, case.generated, case.real, network))
        if z < -3:
            found.warnings.append(
                f"in {network.name}, generated images lie nearer to training images than unseen real ones do "
                f"(C_T = {z:.1f}): copies, or smoother and less varied images; look at the pairs"
            )
        found.figures += [
            Figure(
                name=f"nearest_train_{network.slug}",
                title=f"Nearest training images, {network.name}",
                caption="The generated images nearest to a training image, each beside it.",
                image=nearest_pictures(near, case.generated, case.train),
                patients=True,
            ),
            Figure(
                name=f"distances_to_train_{network.slug}",
                title=f"Distances to the nearest training image, {network.name}",
                caption="Copies would make a hump at the left of what unseen real images show.",
                image=histogram_plot(
                    {
                        "generated": near.generated.distance.double().numpy(),
                        "unseen real": near.held_out.distance.double().numpy(),
                    },
                    label="distance",
                ),
            ),
        ]
    copies = near_copies(case.generated.images, case.train.images, case.real.images)
    flagged = torch.zeros(case.generated.n, dtype=torch.bool)
    flagged[copies.rows] = True
    found.scores.append(score("near_copies", share(flagged), case.generated, case.train))
    if len(copies.rows):
        found.warnings.append(f"{len(copies.rows)} generated images are near copies of training images")
        pairs = [(int(row), int(copies.index[row])) for row in copies.rows[:16]]
        found.figures.append(
            Figure(
                name="near_copies",
                title="Near copies",
                caption="Generated images that are a training image: moved, mirrored, turned or of other contrast.",
                image=pair_pictures(case.generated, case.train, pairs),
                patients=True,
            )
        )
    return found


def _utility(case: Case) -> Findings:
    setup = _setup(case)
    found = Findings()
    if len(setup.synthetic) < 2 * len(setup.train):
        found.warnings.append(
            f"utility: {len(setup.synthetic)} generated images beside {len(setup.train)} real training images; "
            "give a larger n to see what more of them are good for"
        )
    for title, name, outcomes in (
        ("Augmentation utility", "augmentation", utility.augmentation_utility(setup)),
        ("Feature-extraction utility", "features", utility.feature_utility(setup)),
        ("Trained on synthetic, tested on real", "gan_train", utility.gan_train(setup)),
        ("Trained on real, tested on synthetic", "gan_test", utility.gan_test(setup)),
    ):
        found.scores += _outcome_scores(case, name, outcomes)
        found.figures.append(
            Figure(
                name=f"utility_{name}",
                title=title,
                caption=_outcome_caption(outcomes, setup),
                image=intervals_plot({item.name: item.value for item in outcomes}, label="AUC", reference=None),
            )
        )
    return found


def _setup(case: Case) -> utility.UtilitySetup:
    """Real images in training, validation and test roles, and the generated ones."""
    return utility.UtilitySetup(
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


def _outcome_scores(case: Case, name: str, outcomes: Sequence[Outcome]) -> list[Score]:
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


def _outcome_caption(outcomes: Sequence[Outcome], setup: utility.UtilitySetup) -> str:
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


def _bias(case: Case) -> Findings:
    setup = _setup(case)
    classifier = train_classifier([setup.train], setup.val, setup.recipe, case.space, device=setup.device)
    found, pictures, captions = Findings(), [], []
    for k, label in enumerate(case.space.names):
        sides = (("real", setup.test), ("generated", setup.synthetic))
        if any(not bool(known_and_positive(data.labels[data.rows], k)[1].any()) for _, data in sides):
            found.warnings.append(f"saliency: {label} is missing on one side")
            continue
        for kind, data in sides:
            saliency = mean_saliency(classifier, data, k)
            mean = mean_image(data.images, data.rows[known_and_positive(data.labels[data.rows], k)[1]])
            pictures.append(saliency_picture(mean, saliency))
            captions.append(f"{kind} {label}")
            found.scores.append(
                score(
                    f"border_saliency_{kind}:{label}",
                    border_share(saliency),
                    case.generated if kind == "generated" else case.held_out("test"),
                    case.train,
                    judge=setup.recipe.network,
                    n_generated=int(known_and_positive(data.labels[data.rows], k)[1].sum()),
                )
            )
    if pictures:
        found.figures.append(
            Figure(
                name="saliency",
                title="Where a classifier looks",
                caption="Grad-CAM of a classifier trained on real images, averaged over each class, on the mean image.",
                image=image_grid(
                    torch.stack(pictures), columns=2, captions=captions, scale=max(1, 128 // pictures[0].shape[-1])
                ),
                patients=_few_real(case, setup.test.labels[setup.test.rows]),
            )
        )
    boxes = case.settings.hide
    hidden = "boxes" if boxes else "borders"
    where = "The given boxes" if boxes else "The outer 15 % on each side, where burned-in letters are,"
    bare = replace(setup, change=partial(without_boxes, boxes=boxes) if boxes else without_borders)
    for name, title, outcomes in (
        ("gan_train", "Trained on synthetic, tested on real", utility.gan_train(bare)),
        ("features", "Feature-extraction utility", utility.feature_utility(bare)),
    ):
        found.scores += _outcome_scores(case, f"{name}_without_{hidden}", outcomes)
        found.figures.append(
            Figure(
                name=f"utility_{name}_without_{hidden}",
                title=f"{title}, without {hidden}",
                caption=f"{where} were hidden. " + _outcome_caption(outcomes, bare),
                image=intervals_plot({item.name: item.value for item in outcomes}, label="AUC"),
            )
        )
    return found


def _few_real(case: Case, labels: torch.Tensor) -> bool:
    """Whether some class has so few real images that their mean shows a patient."""
    counts = [int(known_and_positive(labels, k)[1].sum()) for k in range(len(case.space.names))]
    return any(0 < count < CLASS_LEAST for count in counts)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A check and what it needs.

    Attributes:
        run: The check.
        labels: Whether it needs classes or findings.
        train: Whether it needs a train split apart from the compared one.
        generator: Whether it needs a generator, not only images.
        masks: Whether it needs data with masks, and a generator that takes such masks.
        packages: Modules it needs.
        shared: Whether it is about the real images, so that once does for all that are judged.
    """

    run: Check
    labels: bool = False
    train: bool = True
    generator: bool = False
    masks: bool = False
    packages: tuple[str, ...] = ()
    shared: bool = False


CHECKS: Mapping[str, Entry] = {
    "variety": Entry(run=_variety, train=False, packages=("imagecodecs",)),
    "controls": Entry(run=_controls, shared=True),
    "zero_point": Entry(run=_zero_point, train=False, shared=True),
    "class_distances": Entry(run=_class_distances, labels=True, train=False, packages=("matplotlib", "scipy")),
    "per_class": Entry(run=_per_class, labels=True, train=False),
    "inception_score": Entry(run=_inception_score, labels=True, packages=("sklearn",)),
    "label_auc": Entry(run=_label_auc, labels=True, packages=("sklearn",)),
    "prevalence": Entry(run=_prevalence, labels=True, packages=("sklearn",)),
    "consistency": Entry(run=consistency_check, generator=True, masks=True, packages=("scipy",)),
    "privacy": Entry(run=_privacy, packages=("matplotlib", "scipy", "sklearn")),
    "reconstruction": Entry(run=reconstruction, train=False, generator=True),
    "likelihood": Entry(run=likelihood, train=False, generator=True),
    "efficiency": Entry(run=efficiency, train=False, generator=True, packages=("matplotlib",)),
    "utility": Entry(run=_utility, labels=True, packages=("matplotlib", "scipy", "sklearn")),
    "bias": Entry(run=_bias, labels=True, packages=("matplotlib", "scipy", "sklearn")),
}
"""What a report holds beside the metrics on features."""


def obstacle(name: str, judged: Opened, datamodule: ImageDataModule, split: str) -> Exception | None:
    """Why a check cannot be made, or None.

    Args:
        name: Name of the check.
        judged: What is judged.
        datamodule: The real data.
        split: The real images.
    """
    entry, kind = CHECKS[name], datamodule.label_space.kind
    if entry.train and "train" in split.split("+"):
        return ValueError(f"split is {split!r}; {name} compares with training images, so leave train out of split")
    if entry.train and "train" not in datamodule.table.splits:
        return ValueError(f"the data have no train split; {name} needs it")
    if entry.labels and kind not in ("single", "multi"):
        return ValueError(f"the data's labels are {kind!r}; {name} asks for classes")
    if entry.labels and judged.labels is None:
        return ValueError(f"the images have no labels, which {name} needs; {HOW_TO_LABEL}")
    if entry.generator and judged.generator is None:
        return ValueError(f"{name} needs a generator, but images were given")
    if entry.masks and judged.generator and (reason := masks_obstacle(judged.generator, datamodule)):
        return ValueError(f"{name} needs masks that the generator can be asked for, but {reason}")
    if missing := [module for module in entry.packages if find_spec(module) is None]:
        return ImportError(f'{name} needs {", ".join(missing)}; run: pip install "medgen[eval]"')
    return None
