"""Consistency of images with the label maps they were generated from, before and after a change of style.

A segmentation network trained on real images segments the synthetic ones. It errs on real images as well, so its
agreement with the requested masks is compared with its agreement with the masks of real images.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.evaluation.checks.case import Case, Check, Figure, Findings
from medgen.evaluation.judges.segmentation import (
    SegmentedImages,
    SegmenterModule,
    class_means,
    overlaps,
    patient_dice,
    patient_means,
    patient_scores,
    segmented_images,
    train_segmenter,
)
from medgen.evaluation.scores import Meaning, Score, score
from medgen.evaluation.sets import ImageSet, StoredImages, batches, translated_labels
from medgen.evaluation.statistics.intervals import Interval, bootstraps
from medgen.generator import Generator
from medgen.images import coloured, image_grid

if TYPE_CHECKING:
    from medgen.data.base import ImageDataModule

RATIO_LEAST = 0.9
"""Ratio of Dice on synthetic to Dice on real images, below which a report warns."""
REAL_LEAST = 0.5
"""Dice on real images, below which the network is no judge."""
STYLE_LEAST = 0.95
"""Dice between two styles of the same masks, below which a report warns."""
EXAMPLES = 4
"""Masks in the picture."""

_JUDGE = "segmentation U-Net"


def map_classes(generator: Generator) -> tuple[str, ...]:
    """Classes of the label maps that a generator takes, the background first; empty for other generators.

    Unlabelled pixels are a class of their own if the generator has learned to paint them.
    """
    names = tuple(getattr(generator.config, "mask_names", ()))
    return (*names, "don't care") if getattr(generator.config, "dont_care", False) else names


def masks_obstacle(generator: Generator, datamodule: ImageDataModule) -> str:
    """Reason why a generator cannot paint the masks of these data; empty if it can."""
    need = "masks that the generator can be asked for, but"
    if datamodule.mask_classes is None:
        return f"{need} the data have no masks; give mask_classes, and for a table mask_column"
    if not (names := map_classes(generator)):
        return f"{need} {generator.source or type(generator).__name__} takes no masks"
    if len(names) != datamodule.mask_classes:
        return (
            f"{need} the data's masks have {datamodule.mask_classes} classes, the generator's {len(names)} "
            f"({', '.join(names)}); give masks of the same classes"
        )
    return ""


def consistency_check(case: Case) -> Findings:
    """Measure `consistency` of one image per real mask, and `style_agreement` with a second image of each.

    A segmentation network learns from the real training images. Styles are random or, if all labels are known, drawn
    for the label of the mask's image. The second image has another style, unless the options fix the style.
    """
    generator, settings = case.generator, case.settings
    names = map_classes(generator)
    real = segmented_images(case.datamodule, settings.split)
    segmenter = train_segmenter(
        [segmented_images(case.datamodule, "train")],
        settings.segmenter,
        len(names),
        device=case.judge.mean.device,
        seed=settings.seed,
    )
    masks = real.masks[0 : len(real)]
    options = {name: value for name, value in case.options.items() if name not in ("mask", "instances")}
    labels = _labels(case, generator)
    has_styles = getattr(generator.config, "style", "none") != "none" and "style" not in options
    with tempfile.TemporaryDirectory(prefix="medgen-masks-") as folder:

        def drawn(seed: int) -> StoredImages:
            images = _Painted(generator, masks, labels, seed, options)
            return StoredImages(images, len(masks), Path(folder) / f"{seed}.raw", batch_size=settings.batch_size)

        synthetic = replace(real, images=drawn(settings.seed))
        shown = consistency(segmenter, synthetic, real, names, batch_size=settings.batch_size)
        found = Findings(
            scores=_scores(case, shown, len(masks)),
            figures=[_figure(segmenter, synthetic, masks, settings.seed)],
            warnings=_warnings(shown),
        )
        if has_styles:
            other = drawn(settings.seed + 1)
            agreement = style_agreement(
                segmenter, synthetic.images, other, groups=real.groups, batch_size=settings.batch_size
            )
            found.scores += [
                score(name, value, case.generated, case.real, judge=_JUDGE, n_generated=2 * len(masks))
                for name, value in (("style_dice", agreement.dice), ("style_intensity", agreement.intensity))
            ]
            if agreement.dice.value < STYLE_LEAST:
                found.warnings.append(
                    "a style may change the anatomy: two styles of the same masks have a Dice of "
                    f"{agreement.dice.value:.2f} for a segmentation network of real images, below {STYLE_LEAST}"
                )
    return found


@dataclass(frozen=True)
class _Painted:
    """One image of each mask, independent of the slicing."""

    generator: Generator
    masks: Tensor
    labels: Tensor | None
    seed: int
    options: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, rows: slice) -> Tensor:
        masks = self.masks[rows]
        return self.generator.sample(
            len(masks),
            None if self.labels is None else self.labels[rows],
            seed=self.seed,
            first_index=rows.indices(len(self))[0],
            batch_size=len(masks),
            **self.options,
            mask=masks,
        )


def _labels(case: Case, generator: Generator) -> Tensor | None:
    """Label of each real image in the generator's label space; None unless all are known."""
    labels = case.real.labels
    if labels is None or generator.label_space.kind == "none":
        return None
    known = labels >= 0 if labels.dim() == 1 else labels.isfinite()
    return translated_labels(labels, case.space, generator.label_space) if bool(known.all()) else None


def _scores(case: Case, shown: Consistency, count: int) -> list[Score]:
    found = []
    for measure, overall, per_class in (
        ("dice", shown.dice, shown.dice_per_class),
        ("hausdorff", shown.hausdorff, shown.hausdorff_per_class),
    ):
        for suffix, item in {"": overall, **{f":{name}": item for name, item in per_class.items()}}.items():
            name = f"consistency_{measure}"
            numbers = {name: item.synthetic}
            if item.real.value > 0:  # a real distance of 0 has no ratio
                numbers[f"{name}_ratio"] = item.ratio
            found += [
                score(f"{key}{suffix}", value, case.generated, case.real, judge=_JUDGE, n_generated=count)
                for key, value in numbers.items()
            ]
            found.append(score(f"{name}_real{suffix}", item.real, case.real, case.real, judge=_JUDGE))
    return found


def _warnings(shown: Consistency) -> list[str]:
    synthetic, real, ratio = (part.value for part in shown.dice)
    if real == 0:
        return ["a segmentation network of real images finds nothing of the masks in real images: train it longer"]
    found = []
    if real < REAL_LEAST:
        found.append(
            f"the segmentation network has a Dice of {real:.2f} on real images, too little to judge others by: "
            "train it longer (--segmenter.steps)"
        )
    if ratio < RATIO_LEAST:
        found.append(
            "images show their masks less clearly than real ones do: a segmentation network of real images finds a "
            f"Dice of {synthetic:.2f} on them, {real:.2f} on real ones (ratio {ratio:.2f}, below {RATIO_LEAST})"
        )
    return found


def _figure(segmenter: SegmenterModule, synthetic: SegmentedImages, masks: Tensor, seed: int) -> Figure:
    shown = masks.flatten(1).any(1).nonzero()[:, 0]  # leave out masks of background alone
    order = torch.randperm(len(shown), generator=torch.Generator().manual_seed(seed))
    images, asked = synthetic.read(shown[order[:EXAMPLES]].tolist())
    maps = [coloured(part, segmenter.classes) for part in (asked, segmenter.masks(images))]
    rows = torch.stack([maps[0], images.expand(-1, 3, -1, -1), maps[1]], 1)
    return Figure(
        name="consistency",
        title="Masks, and what images of them show",
        caption="In each row a mask of a real patient, the image drawn of it, and what a segmentation network of real "
        "images sees in that. Drawn by a fixed seed from the masks that show more than background.",
        image=image_grid(
            rows.flatten(0, 1),
            columns=3,
            captions=["mask", "image", "seen"] * len(rows),
            scale=max(1, 128 // rows.shape[-1]),
        ),
        patients=True,
    )


class Agreement(NamedTuple):
    """Agreement of predicted label maps with masks, of synthetic and real images, with 95 % intervals over patients.

    The ratio of synthetic to real, of which patients are resampled together, is NaN if the real value is 0.
    """

    synthetic: Interval
    real: Interval
    ratio: Interval


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """Agreement of images with their masks, as seen by a segmentation network trained on real images.

    At a ratio of 1 of `dice`, synthetic images show their masks as clearly as real ones; of `hausdorff`, the mean 95 %
    Hausdorff distance in pixels, a larger ratio is worse.
    """

    dice: Agreement
    hausdorff: Agreement
    dice_per_class: Mapping[str, Agreement]
    hausdorff_per_class: Mapping[str, Agreement]


def consistency(
    segmenter: SegmenterModule,
    synthetic: SegmentedImages,
    real: SegmentedImages,
    class_names: Sequence[str],
    *,
    batch_size: int = 16,
) -> Consistency:
    """Measure Dice and Hausdorff distance between masks and the label maps a network predicts on their images.

    Dice is over all pixels of a patient, distances are means over the patient's images; then follow means over patients
    and over classes. Classes that the masks of one side lack are left out.

    Args:
        segmenter: A network trained on real images of other patients.
        synthetic: Generated images with the requested masks; groups are numbers of the masks' patients, as in `real`.
        real: Real images with their masks, best those that `synthetic` was drawn from.
        class_names: Names of the classes, the background first.
        batch_size: Images processed together.

    Raises:
        ValueError: If the sides differ in size, have no class in common, or have classes unknown to the network.

    Source: the scores of a segmentation network on synthesised images are those of Park et al. 2019, "Semantic image
    synthesis with spatially-adaptive normalization", section 4; their ratio to those on real images is our own.
    """
    if len(class_names) != segmenter.classes:
        raise ValueError(
            f"class_names has {len(class_names)} names; the network has {segmenter.classes} classes, the background "
            "among them"
        )
    sizes = [tuple(part.read([0])[0].shape[1:]) for part in (synthetic, real)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"synthetic images are {sizes[0]}, real ones {sizes[1]} (channels, height, width); bring them to one size"
        )
    sides = [patient_scores(segmenter, part, batch_size=batch_size) for part in (synthetic, real)]
    patients = torch.cat([side.patients for side in sides]).unique()
    found = []
    for name in ("dice", "hausdorff"):
        values = torch.full((2, len(patients), segmenter.classes - 1), torch.nan, dtype=torch.float64)
        for aligned, side in zip(values, sides, strict=True):
            aligned[torch.searchsorted(patients, side.patients)] = getattr(side, name)
        shown = values.isfinite().any(1).all(0)
        if not bool(shown.any()):
            raise ValueError("synthetic and real masks have no class in common but the background")
        names = [label for label, known in zip(class_names[1:], shown.tolist(), strict=True) if known]
        overall, *each = _agreements(values[..., shown])
        found.append((overall, dict(zip(names, each, strict=True))))
    (overlap, overlaps), (distance, distances) = found
    return Consistency(dice=overlap, hausdorff=distance, dice_per_class=overlaps, hausdorff_per_class=distances)


def _agreements(values: Tensor) -> list[Agreement]:
    """Agreement over classes, then of each class, for values of synthetic and real images (2, P, K)."""

    def statistic(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        synthetic, real = (class_means(counts, side) for side in values)
        ratio = np.divide(synthetic, real, out=np.full_like(real, np.nan), where=real > 0)
        return np.concatenate([synthetic, real, ratio], axis=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no ratio where all real values are 0
        intervals = bootstraps(statistic, np.arange(values.shape[1]))
    count = len(intervals) // 3
    return [Agreement(*intervals[k::count]) for k in range(count)]


@dataclass(frozen=True, kw_only=True)
class StyleAgreement:
    """Effect of a change of style, with 95 % intervals over patients.

    Attributes:
        dice: Mean over classes of Dice between the label maps predicted in two styles; 1 if the anatomy stays.
        dice_per_class: Dice of each class but the background; NaN if the network predicts it nowhere.
        intensity: Mean `intensity_distance` between the styles, in the range of the images; 0 if nothing changes.
    """

    dice: Interval
    dice_per_class: tuple[Interval, ...]
    intensity: Interval


def style_agreement(
    segmenter: SegmenterModule,
    images_a: ImageSet | Tensor,
    images_b: ImageSet | Tensor,
    *,
    groups: Tensor | None = None,
    batch_size: int = 16,
) -> StyleAgreement:
    """Compare images (n, C, H, W) in [0, 1] of the same masks in two styles: predicted label maps and intensities.

    Images are in the same order; groups are the patients of the masks, (n,) int64, or None if masks are independent.

    Raises:
        ValueError: If shapes differ, or there is not one group for each image.
    """
    shapes = [(len(images), *images[0:1].shape[1:]) for images in (images_a, images_b)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"images_a is {shapes[0]}, images_b {shapes[1]}; give the same masks in two styles")
    if groups is not None and len(groups) != len(images_a):
        raise ValueError(f"groups has {len(groups)} entries for {len(images_a)} images; give one for each")
    rows, common, moved = range(len(images_a)), [], []
    for a, b in zip(batches(images_a, rows, batch_size), batches(images_b, rows, batch_size), strict=True):
        common.append(overlaps(segmenter.masks(a), segmenter.masks(b), segmenter.classes))
        moved.append(intensity_distance(a, b))
    patients = torch.arange(len(images_a)) if groups is None else groups
    distance = patient_means(torch.cat(moved)[:, None], patients)
    agreement = patient_dice(torch.cat(common), patients)

    def statistic(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([class_means(counts, distance)[:, 1:], class_means(counts, agreement)], axis=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a class may be seen in no image
        intensity, whole, *each = bootstraps(statistic, np.arange(len(agreement)))
    return StyleAgreement(dice=whole, dice_per_class=tuple(each), intensity=intensity)


def intensity_distance(images_a: Tensor, images_b: Tensor) -> Tensor:
    """1-D Wasserstein distance of the intensities of image pairs (n, C, H, W), mean over channels, (n,).

    With equally many pixels it is the mean difference of the sorted intensities.

    Source: Vallender 1974, "Calculation of the Wasserstein distance between probability distributions on the line".
    """
    a, b = (images.flatten(2).double().sort(-1).values for images in (images_a, images_b))
    return (a - b).abs().mean((1, 2))


MEANINGS = {
    "consistency_dice": Meaning(
        "labels", "Dice of masks", 1, "How well a segmentation network of real images finds the requested masks."
    ),
    "consistency_dice_ratio": Meaning(
        "labels", "Dice of masks, by that of real", 0, "1 where images show their masks as clearly as real ones do."
    ),
    "consistency_hausdorff": Meaning(
        "labels", "Hausdorff distance of masks", -1, "Distance of that network's borders to the masks', in pixels."
    ),
    "consistency_hausdorff_ratio": Meaning(
        "labels", "Hausdorff distance, by that of real", 0, "1 where images place borders as well as real ones do."
    ),
    "style_dice": Meaning(
        "labels",
        "Dice of two styles",
        1,
        "Between that network's label maps of both; 1 where a style keeps the anatomy.",
    ),
    "style_intensity": Meaning(
        "labels", "Intensities of two styles", 0, "How far a style moves the intensities, in a range of 1."
    ),
}

CHECK = Check(run=consistency_check, generator=True, suits=masks_obstacle, packages=("scipy",), meanings=MEANINGS)
