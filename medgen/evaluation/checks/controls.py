"""Controls: the metrics of real training images, untouched and blurred, in place of generated ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from medgen.evaluation.checks.case import Case, Check, Findings
from medgen.evaluation.judges.features import FeatureNetwork
from medgen.evaluation.run import compare, measurable, measure
from medgen.evaluation.scores import Score
from medgen.evaluation.sets import RealImages, matched_labels

if TYPE_CHECKING:
    from medgen.data.base import ImageDataModule


logger = logging.getLogger(__name__)


def controls_check(case: Case) -> Findings:
    """Measure `controls` with the metrics of the report."""
    settings = case.settings
    found = controls(
        case.datamodule, case.judge, settings.metrics, n=case.generated.n, split=settings.split, seed=settings.seed
    )
    return Findings(scores=[score for control in found.values() for score in control.values()])


def controls(
    datamodule: ImageDataModule,
    network: FeatureNetwork,
    metrics: Sequence[str],
    *,
    n: int | None = None,
    split: str = "test",
    seed: int = 0,
) -> dict[str, dict[str, Score]]:
    """Scores of training images in place of generated ones: the best a model can hope for, and blurred, a poor one.

    There are `n` training images, by default as many as real ones in `split`, with labels distributed as there. Scores
    are by name, under ``train`` and ``train, blurred by 1 pixel``.
    """
    train, reference = RealImages(datamodule, "train"), RealImages(datamodule, split)
    images = pick_matched(train, reference, len(reference) if n is None else n, seed=seed)
    blurred = gaussian_blur(images, kernel_size=[9, 9], sigma=[1.0, 1.0])
    found = {}
    for name, control in (("train", images), ("train, blurred by 1 pixel", blurred.clamp(0, 1))):
        sets = compare(control, datamodule, [network], split=split, name=name)
        found[name] = measure(*sets, network, measurable(metrics, min(sets[0].n, sets[1].n)))
    return found


def pick_matched(images: RealImages, reference: RealImages, n: int, *, seed: int) -> Tensor:
    """Draw up to `n` images (m, C, H, W) without replacement; classes have the shares of the reference.

    A rare class may reduce their number; if less than half would be left, shares are not matched.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    rows = order[:n]
    if images.labels is not None and reference.labels is not None and images.labels.dim() == 1:
        share = {int(c): int((reference.labels == c).sum()) for c in reference.labels[reference.labels >= 0].unique()}
        there = {c: int((images.labels == c).sum()) for c in share}
        matched = min([n, *(there[c] * sum(share.values()) // share[c] for c in share)])
        if matched >= min(n, len(images)) / 2:
            wanted = matched_labels(reference.labels, matched)
            rows = torch.cat([order[images.labels[order] == c][: int((wanted == c).sum())] for c in share])
        else:
            logger.warning("training images of the controls do not have the reference's classes in its shares")
    return torch.cat([images[row : row + 1] for row in rows.tolist()])


CHECK = Check(run=controls_check, shared=True)
