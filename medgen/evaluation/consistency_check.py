"""The check of a report that asks whether images show the label maps that a generator was given."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from medgen.evaluation.checks import Case, Figure, Findings
from medgen.evaluation.consistency import Consistency, StyleAgreement, consistency, style_agreement
from medgen.evaluation.scores import Score, score
from medgen.evaluation.segmentation import SegmentedImages, SegmenterModule, train_segmenter
from medgen.evaluation.sets import StoredImages, translated_labels
from medgen.generator import Generator
from medgen.images import coloured, image_grid

if TYPE_CHECKING:
    from PIL import Image

    from medgen.data.base import ImageDataModule

RATIO_LEAST = 0.9
"""Dice on synthetic images by that on real ones, below which a report warns."""
REAL_LEAST = 0.5
"""Dice on real images, below which a report says that the network is no judge."""
STYLE_LEAST = 0.95
"""Dice of two styles of the same masks, below which a report warns."""
EXAMPLES = 4
"""Masks that the picture shows."""

_JUDGE = "segmentation U-Net"


def map_classes(generator: Generator) -> tuple[str, ...]:
    """Classes of the label maps that a generator takes, the background first; none where it takes no maps.

    Where nobody said what is there is a class like the others: the generator has learned to paint it.
    """
    names = tuple(getattr(generator.config, "mask_names", ()))
    return (*names, "don't care") if getattr(generator.config, "dont_care", False) else names


def masks_obstacle(generator: Generator, datamodule: ImageDataModule) -> str:
    """Why a generator cannot be asked for the masks of these data; empty where it can."""
    if datamodule.mask_classes is None:
        return "the data have no masks; give mask_classes, and for a table mask_column"
    if not (names := map_classes(generator)):
        return f"{generator.source or type(generator).__name__} takes no masks"
    if len(names) != datamodule.mask_classes:
        return (
            f"the data's masks have {datamodule.mask_classes} classes, the generator's {len(names)} "
            f"({', '.join(names)}); give masks of the same classes"
        )
    return ""


def consistency_check(case: Case) -> Findings:
    """Whether the images of real masks show these masks, and whether another style leaves the anatomy alone.

    A segmentation network learns from the real training images. It then sees one image of each mask of the compared
    real images, in a style drawn at random or, where all labels are known, drawn for the label of the mask's image.
    Generators with styles draw every mask a second time in another style, unless a style is asked for.
    """
    generator = case.opened.generator
    assert generator is not None  # `medgen.evaluation.suite` asks for one
    settings, names = case.settings, map_classes(generator)
    real = case.segmented(settings.split)
    segmenter = train_segmenter(
        [case.segmented("train")], settings.segmenter, len(names), device=case.judge.mean.device, seed=settings.seed
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
            found.warnings += _style_warnings(agreement)
    return found


@dataclass(frozen=True)
class _Painted:
    """One image of each mask, the same for any slicing."""

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
    """What each real image is of, in the generator's label space; None where that is not known of all of them."""
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
            if item.real.value > 0:  # no distance at all is the best there can be, and has no ratio
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
    if not ratio < RATIO_LEAST:
        return found
    return [
        *found,
        "images show their masks less clearly than real ones do: a segmentation network of real images finds a Dice of "
        f"{synthetic:.2f} on them, {real:.2f} on real ones (ratio {ratio:.2f}, below {RATIO_LEAST})",
    ]


def _style_warnings(agreement: StyleAgreement) -> list[str]:
    if not agreement.dice.value < STYLE_LEAST:
        return []
    return [
        "a style may change the anatomy: two styles of the same masks have a Dice of "
        f"{agreement.dice.value:.2f} for a segmentation network of real images, below {STYLE_LEAST}"
    ]


def _figure(segmenter: SegmenterModule, synthetic: SegmentedImages, masks: Tensor, seed: int) -> Figure:
    shown = masks.flatten(1).any(1).nonzero()[:, 0]  # a mask of background alone says nothing
    order = torch.randperm(len(shown), generator=torch.Generator().manual_seed(seed))
    images, asked = synthetic.read(shown[order[:EXAMPLES]].tolist())
    maps = [coloured(part, segmenter.classes) for part in (asked, segmenter.masks(images))]
    rows = torch.stack([maps[0], images.expand(-1, 3, -1, -1), maps[1]], 1)
    return Figure(
        name="consistency",
        title="Masks, and what images of them show",
        caption="In each row a mask of a real patient, the image drawn of it, and what a segmentation network of real "
        "images sees in that. Drawn by a fixed seed from the masks that show more than background.",
        image=_grid(rows.flatten(0, 1), ("mask", "image", "seen")),
        patients=True,
    )


def _grid(pictures: Tensor, columns: Sequence[str]) -> Image.Image:
    captions = list(columns) * (len(pictures) // len(columns))
    return image_grid(pictures, columns=len(columns), captions=captions, scale=max(1, 128 // pictures.shape[-1]))
