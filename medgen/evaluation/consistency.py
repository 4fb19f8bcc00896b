"""Whether synthetic images show the label map that they were asked for, and keep it when their style changes.

A segmentation network that was trained on real images reads the synthetic ones. It errs on real images as well, so its
agreement with the masks asked for is set in relation to its agreement with the masks of real images.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.evaluation.intervals import Interval, bootstraps
from medgen.evaluation.segmentation import (
    SegmentedImages,
    SegmenterModule,
    class_means,
    overlaps,
    patient_dice,
    patient_means,
    patient_scores,
)
from medgen.evaluation.sets import ImageSet, batches


class Agreement(NamedTuple):
    """A network's label maps against the masks, with 95 % intervals over patients.

    Attributes:
        synthetic: Of synthetic images, against the masks they were asked for.
        real: Of real images, against theirs.
        ratio: Synthetic over real; a patient who is on both sides is drawn on both. NaN where the real value is 0.
    """

    synthetic: Interval
    real: Interval
    ratio: Interval


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """Whether synthetic images show the masks they were asked for, as a network of real images sees it.

    Attributes:
        dice: Mean over classes of Dice; with a ratio of 1 synthetic images show their masks as clearly as real ones.
        hausdorff: The same for the 95 % Hausdorff distance in pixels, where a larger ratio is worse.
        dice_per_class: Dice of each class.
        hausdorff_per_class: Hausdorff distance of each class.
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
    """Dice and Hausdorff distance between the masks asked for and what a network of real images sees.

    Args:
        segmenter: A network trained on real images of other patients, which saw no synthetic ones.
        synthetic: Generated images with the masks they were asked for. Their groups are the patients whose masks these
            are, with the same numbers as in `real`; other numbers stand for other patients.
        real: Real images with their masks; best those whose masks were drawn from, else of the same split.
        class_names: Names of the classes, the background first.
        batch_size: Images seen together.

    Returns:
        Dice over all pixels of a patient and mean distances over the patient's images, then means over patients, then
        classes; classes that one side's masks lack are left out.

    Raises:
        ValueError: If the sides differ in size, have no class in common, or masks hold classes that the network does
            not know.

    Source: the scores of a segmentation network on synthesised images, as Park et al. 2019, "Semantic image synthesis
    with spatially-adaptive normalization", section 4, take them; their ratio to those on real images is our own.
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
    """Over classes, then of each, for values of synthetic and real images (2, P, K)."""

    def statistic(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        synthetic, real = (class_means(counts, side) for side in values)
        ratio = np.divide(synthetic, real, out=np.full_like(real, np.nan), where=real > 0)
        return np.concatenate([synthetic, real, ratio], axis=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where all real values are 0 there is no ratio
        intervals = bootstraps(statistic, np.arange(values.shape[1]))
    count = len(intervals) // 3
    return [Agreement(*intervals[k::count]) for k in range(count)]


@dataclass(frozen=True, kw_only=True)
class StyleAgreement:
    """What a change of style changes, with 95 % intervals over patients.

    Attributes:
        dice: Mean over classes of Dice between a network's label maps of the images in the two styles, over all pixels
            of a patient; 1 where the style leaves the anatomy alone.
        dice_per_class: Dice of each class but the background, in their order; NaN where the network sees none.
        intensity: How far the intensities of the one image must move to be those of the other, on average over its
            pixels (1-D Wasserstein distance), in the range of the images; 0 where the style changes nothing.
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
    """Whether another style changes the intensities of images and not what a segmentation network sees in them.

    Args:
        segmenter: A network trained on real images.
        images_a: Images in one style, (n, C, H, W) in [0, 1].
        images_b: Images of the same masks in another style, in the same order.
        groups: The patient of each mask, (n,) int64; None where masks are independent.
        batch_size: Images seen together.

    Raises:
        ValueError: If shapes differ, or groups are not one for each image.
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
    """1-D Wasserstein distance of the intensities of each two images, mean over channels, (n,).

    With as many pixels on both sides it is the mean difference of the sorted intensities.

    Args:
        images_a: (n, C, H, W).
        images_b: The same.

    Source: Vallender 1974, "Calculation of the Wasserstein distance between probability distributions on the line".
    """
    a, b = (images.flatten(2).double().sort(-1).values for images in (images_a, images_b))
    return (a - b).abs().mean((1, 2))
