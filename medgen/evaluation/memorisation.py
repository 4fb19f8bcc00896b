"""Is a generated image a copy of a patient? Nearest training images, against how near unseen real images come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from medgen.evaluation.distances import Neighbours, nearest
from medgen.evaluation.features import FeatureNetwork
from medgen.evaluation.run import Score, score
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
    """The generated images nearest to a training image, each beside it: sample | nearest training image.

    Args:
        found: What `nearest_training` found.
        generated: The generated images.
        train: The training images.
        count: How many pairs, the nearest first.
        columns: Pairs per row.
    """
    rows = found.generated.distance.argsort()[:count].tolist()
    pairs, captions = [], []
    for row in rows:
        match = int(found.generated.index[row])
        pairs += [generated.images[row : row + 1], train.images[match : match + 1]]
        captions += [f"sample {row}", f"train {found.generated.distance[row]:.3g}"]
    height = pairs[0].shape[-2]
    return image_grid(torch.cat(pairs), columns=2 * columns, captions=captions, scale=max(1, 128 // height))
