"""Is a generated image a copy of a patient? Nearest training images, against how near unseen real images come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from medgen.evaluation.balls import Moved, squared_radii
from medgen.evaluation.distances import Neighbours, nearest
from medgen.evaluation.features import FeatureNetwork
from medgen.evaluation.scores import Score, score
from medgen.evaluation.sets import FeatureSet
from medgen.images import image_grid

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

NEAR = 0.01
"""Quantile of the held-out distances below which a generated image counts as suspiciously near."""


@dataclass(frozen=True, kw_only=True)
class NearestTraining:
    """The nearest training image of each generated and of each held-out real image, in one feature space.

    Attributes:
        generated: Neighbours of the generated images; `index` is the row of the train split.
        held_out: Neighbours of real images of other patients: the distances that are not memorisation.
    """

    generated: Neighbours
    held_out: Neighbours

    @property
    def threshold(self) -> Tensor:
        """Distance that all but the nearest `NEAR` of the held-out images exceed."""
        return self.held_out.distance.quantile(NEAR)

    @property
    def near_share(self) -> float:
        """Share of generated images below the threshold; about `NEAR` for a model that copies nothing."""
        return float((self.generated.distance < self.threshold).float().mean())

    @property
    def median_ratio(self) -> float:
        """Median distance of generated images by that of held-out ones; well below 1 suggests copying."""
        return float(self.generated.distance.median() / self.held_out.distance.median())


def nearest_training(
    generated: FeatureSet, train: FeatureSet, held_out: FeatureSet, network: FeatureNetwork
) -> NearestTraining:
    """Nearest training images in the space of one network; ``pixels`` is the space of grey levels at 64 pixels."""
    space = train.features[network.name]
    return NearestTraining(
        generated=nearest(generated.features[network.name], space),
        held_out=nearest(held_out.features[network.name], space),
    )


def authenticity(generated: Neighbours, train: Tensor) -> Tensor:
    """Whether each generated image is no mere variant of a training image, (n,) bool.

    It is one where it lies nearer to its nearest training image than that image's own nearest neighbour.

    Args:
        generated: Nearest training image of each generated one.
        train: Features of the training images, (m, D).

    Source: Alaa et al. 2022, "How faithful is your synthetic data?", section 4.
    """
    own = squared_radii(Moved(train, train.mean(0)), [1])[0]
    return generated.distance.square() >= own[generated.index]


def copying_z(generated: Tensor, held_out: Tensor, *, cells: Tensor | None = None, least: int = 20) -> float:
    """The C_T statistic: a z score below about -3 says that generated images crowd around training images.

    Within each cell of the training space the distances of generated images to their nearest training image are ranked
    among those of held-out real images (Mann-Whitney); cells count by their share of held-out images.

    Args:
        generated: Distance of each generated image to its nearest training image, (n,).
        held_out: The same for held-out real images, (m,).
        cells: Cell of each generated, then of each held-out image, (n + m,) int64; None makes one cell of all.
        least: Cells with fewer images of one kind are left out; NaN if none is left.

    Source: Meehan et al. 2020, "A non-parametric test to detect data-copying in generative models", eq. 3.
    """
    from scipy.stats import mannwhitneyu

    n, m = len(generated), len(held_out)
    where = torch.zeros(n + m, dtype=torch.int64) if cells is None else cells
    total, weight = 0.0, 0.0
    for cell in where.unique():
        a, b = generated[where[:n] == cell], held_out[where[n:] == cell]
        if min(len(a), len(b)) < least:
            continue
        u = float(mannwhitneyu(a.numpy(), b.numpy()).statistic)
        spread = math.sqrt(len(a) * len(b) * (len(a) + len(b) + 1) / 12)
        total += len(b) * (u - len(a) * len(b) / 2) / spread
        weight += len(b)
    return total / weight if weight else float("nan")


def training_cells(train: Tensor, *others: Tensor, count: int, seed: int = 0) -> Tensor:
    """Cells of a feature space, found by k-means on training images: the cell of each other vector, set by set.

    Args:
        train: Features of the training images, (m, D).
        *others: Vectors to be placed, (n, D) each.
        count: Number of cells.
        seed: First centres.
    """
    from sklearn.cluster import KMeans

    cells = KMeans(count, n_init=1, random_state=seed).fit(train.numpy())
    return torch.from_numpy(cells.predict(torch.cat(others).numpy())).long()


def memorisation_scores(
    found: NearestTraining, generated: FeatureSet, held_out: FeatureSet, network: FeatureNetwork
) -> dict[str, Score]:
    """Summary: ``nearest_train_ratio_NETWORK`` and ``near_train_share_NETWORK``; the baseline set is `real`."""
    values = {
        f"nearest_train_ratio_{network.slug}": found.median_ratio,
        f"near_train_share_{network.slug}": found.near_share,
    }
    return {name: score(name, value, generated, held_out, network) for name, value in values.items()}


def nearest_pictures(
    found: NearestTraining, generated: FeatureSet, train: FeatureSet, *, count: int = 8, columns: int = 4
) -> Image.Image:
    """The generated images nearest to a training image, each beside it.

    Args:
        found: What `nearest_training` found.
        generated: The generated images.
        train: The training images.
        count: How many pairs, the nearest first.
        columns: Pairs per row.
    """
    rows = found.generated.distance.argsort()[:count].tolist()
    return pair_pictures(generated, train, [(row, int(found.generated.index[row])) for row in rows], columns=columns)


def pair_pictures(
    generated: FeatureSet, train: FeatureSet, pairs: Sequence[tuple[int, int]], *, columns: int = 4
) -> Image.Image:
    """Pairs of rows as pictures: sample | training image."""
    pictures, captions = [], []
    for row, match in pairs:
        pictures += [generated.images[row : row + 1], train.images[match : match + 1]]
        captions += [f"sample {row}", f"train {match}"]
    height = pictures[0].shape[-2]
    return image_grid(
        torch.cat(pictures), columns=2 * min(columns, len(pairs)), captions=captions, scale=max(1, 128 // height)
    )
