"""What a number means on the data at hand: the same metrics on real training images, untouched and blurred."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from medgen.evaluation.features import FeatureNetwork
from medgen.evaluation.frechet import frechet_distance
from medgen.evaluation.run import compare, measurable, measure
from medgen.evaluation.scores import Score
from medgen.evaluation.sets import FeatureSet, RealImages, known_and_positive, matched_labels
from medgen.labels import LabelSpace

if TYPE_CHECKING:
    from medgen.data.base import ImageDataModule


logger = logging.getLogger(__name__)

HALF = "half of the real images against the other"


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
        found[name] = measure(*sets, network, measurable(metrics, min(sets[0].n, sets[1].n)))
    return found


def halves_by_patient(images: RealImages, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of two halves of a real set that share no patient, with classes in equal shares where there are some.

    Source: Segal et al. 2021, "Evaluating the clinical realism of synthetic chest X-rays generated using progressively
    growing GANs": the distance of two halves is the zero point of a metric on these data.
    """
    random = np.random.default_rng(seed)
    patients = np.array(images.patients) if images.patients else np.arange(len(images))
    classes = np.zeros(len(patients), dtype=np.int64)
    if images.labels is not None:  # of findings, the first that is present
        labels = images.labels if images.labels.dim() == 1 else (images.labels == 1).int().argmax(1)
        classes = labels.numpy()
    names, first, sizes = np.unique(patients, return_index=True, return_counts=True)
    side = np.zeros(len(names), dtype=bool)
    balance = 0  # images of the first half less those of the second
    for label in np.unique(classes):
        members = random.permutation(np.flatnonzero(classes[first] == label))
        for member in sorted(members, key=lambda m: -sizes[m]):  # large patients first: small ones even out the rest
            side[member] = balance <= 0
            balance += sizes[member] if side[member] else -sizes[member]
    chosen = side[np.searchsorted(names, patients)]
    return torch.from_numpy(np.flatnonzero(chosen)), torch.from_numpy(np.flatnonzero(~chosen))


def zero_point(real: FeatureSet, network: FeatureNetwork, metrics: Sequence[str], *, seed: int = 0) -> dict[str, Score]:
    """Scores of one half of a real set against the other; what perfect images of half the number would get."""
    assert isinstance(real.images, RealImages)
    halves = zip((HALF, "the other half"), halves_by_patient(real.images, seed=seed), strict=True)
    one, other = (real.subset(rows, name) for name, rows in halves)
    return measure(one, other, network, measurable(metrics, min(one.n, other.n)))


@dataclass(frozen=True, kw_only=True)
class ClassDistances:
    """Fréchet distances between all classes of the real and of the generated images.

    Attributes:
        names: The sets, ``real: CLASS`` and ``generated: CLASS``.
        matrix: Distances, symmetric, (K, K).
        n: Images of each set.
    """

    names: list[str]
    matrix: NDArray[np.float64]
    n: int


def class_distances(
    generated: FeatureSet, real: FeatureSet, network: FeatureNetwork, space: LabelSpace, *, least: int = 20
) -> ClassDistances:
    """How far classes lie apart, and whether a generated class lies nearest to its own.

    Sets are cut to the size of the smallest, since the distance depends on it; classes with fewer than `least` images
    on either side are left out.

    Raises:
        ValueError: If fewer than two classes are left.

    Source: Segal et al. 2021: distances of classes to one another, by multidimensional scaling and dendrogram.
    """
    sets = {}
    for k, name in enumerate(space.names):
        for kind, part in (("real", real), ("generated", generated)):
            if part.labels is not None:
                _, positive = known_and_positive(part.labels, k)
                sets[f"{kind}: {name}"] = part.features[network.name][positive]
    small = {name.partition(": ")[2] for name, vectors in sets.items() if len(vectors) < least}
    sets = {name: vectors for name, vectors in sets.items() if name.partition(": ")[2] not in small}
    if len(sets) < 2:
        raise ValueError(f"fewer than two classes have {least} images on each side")
    n = min(len(vectors) for vectors in sets.values())
    generator = torch.Generator().manual_seed(0)
    picked = [vectors[torch.randperm(len(vectors), generator=generator)[:n]].double() for vectors in sets.values()]
    moments = [(vectors.mean(0), vectors.T.cov()) for vectors in picked]
    matrix = np.zeros((len(sets), len(sets)))
    for i, j in itertools.combinations(range(len(sets)), 2):
        matrix[i, j] = matrix[j, i] = max(0.0, float(frechet_distance(*moments[i], *moments[j])))
    return ClassDistances(names=list(sets), matrix=matrix, n=n)


def pick_matched(images: RealImages, reference: RealImages, n: int, *, seed: int) -> Tensor:
    """Up to `n` images (m, C, H, W) drawn without replacement; with classes, in the shares of the reference.

    Fewer come only where a class has not enough; where that would leave less than half, shares are given up instead.
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
