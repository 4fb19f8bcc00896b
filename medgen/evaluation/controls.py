"""What a number means on the data at hand: the same metrics on real training images, untouched and blurred."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from medgen.evaluation.features import FeatureNetwork
from medgen.evaluation.run import Score, compare, measure
from medgen.evaluation.sets import RealImages, matched_labels

if TYPE_CHECKING:
    from medgen.data.base import ImageDataModule


def controls(
    datamodule: ImageDataModule,
    network: FeatureNetwork,
    metrics: Sequence[str],
    *,
    n: int | None = None,
    split: str = "test",
    seed: int = 0,
) -> dict[str, dict[str, Score]]:
    """Scores of training images in the place of generated ones: the best a model can hope for, and a poor one.

    Args:
        datamodule: The real data.
        network: The feature network.
        metrics: Names of `medgen.evaluation.METRICS`.
        n: Number of training images, with labels distributed as those of `split`; by default as many as `split` has,
            and never more than there are.
        split: The real images to compare with.
        seed: Chooses the training images.

    Returns:
        Scores by name under ``train`` and ``train, blurred by 1 pixel``.
    """
    train, reference = RealImages(datamodule, "train"), RealImages(datamodule, split)
    images = pick_matched(train, reference, len(reference) if n is None else n, seed=seed)
    blurred = gaussian_blur(images, kernel_size=[9, 9], sigma=[1.0, 1.0])
    found = {}
    for name, control in (("train", images), ("train, blurred by 1 pixel", blurred.clamp(0, 1))):
        sets = compare(control, datamodule, [network], split=split, name=name)
        found[name] = measure(*sets, network, metrics)
    return found


def pick_matched(images: RealImages, reference: RealImages, n: int, *, seed: int) -> Tensor:
    """Up to `n` images (m, C, H, W) drawn without replacement; with classes, in the shares of the reference.

    Fewer come only where a class has not enough.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    if images.labels is None or reference.labels is None or images.labels.dim() == 2:
        rows = order[:n]
    else:
        share = {int(c): int((reference.labels == c).sum()) for c in reference.labels[reference.labels >= 0].unique()}
        there = {c: int((images.labels == c).sum()) for c in share}
        n = min(n, *(there[c] * sum(share.values()) // share[c] for c in share))
        wanted = matched_labels(reference.labels, n)
        rows = torch.cat([order[images.labels[order] == c][: int((wanted == c).sum())] for c in share])
    return torch.cat([images[row : row + 1] for row in rows.tolist()])
