"""Privacy: near copies of training images, judged by how near unseen real images come to the training images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from medgen.evaluation.checks.case import Case, Check, Figure, Findings
from medgen.evaluation.judges.features import FeatureNetwork
from medgen.evaluation.report.plots import histogram_plot
from medgen.evaluation.scores import Meaning, Score, score
from medgen.evaluation.sets import FeatureSet, patients_of
from medgen.evaluation.statistics.distances import Neighbours, nearest
from medgen.evaluation.statistics.intervals import share
from medgen.evaluation.statistics.near_duplicates import near_duplicates
from medgen.evaluation.statistics.neighbour_radii import Moved, squared_radii
from medgen.images import image_grid

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

NEAR = 0.01
"""Quantile of held-out distances below which a generated image is suspiciously near."""

CELL = 60
"""Mean number of images of each kind per cell of the training space."""


def privacy(case: Case) -> Findings:
    """Search for copies of training images in the judge's features, in grey levels, and among details."""
    found = Findings()
    # One image per patient: the test needs independent images.
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
    copies = near_duplicates(case.generated.images, case.train.images, case.real.images)
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


@dataclass(frozen=True, kw_only=True)
class NearestTraining:
    """Nearest training image of each generated and each held-out real image, in one feature space.

    Held-out images are of other patients: the baseline without memorisation. `index` is the row of the train split.
    """

    generated: Neighbours
    held_out: Neighbours

    @property
    def threshold(self) -> Tensor:
        """The `NEAR` quantile of the held-out distances."""
        return self.held_out.distance.quantile(NEAR)

    @property
    def near_share(self) -> float:
        """Share of generated images below the threshold; about `NEAR` without copying."""
        return float((self.generated.distance < self.threshold).float().mean())

    @property
    def median_ratio(self) -> float:
        """Median distance of generated over that of held-out images; far below 1 suggests copying."""
        return float(self.generated.distance.median() / self.held_out.distance.median())


def nearest_training(
    generated: FeatureSet, train: FeatureSet, held_out: FeatureSet, network: FeatureNetwork
) -> NearestTraining:
    """Find nearest training images in the space of one network; ``pixels`` is grey levels at 64 pixels."""
    space = train.features[network.name]
    return NearestTraining(
        generated=nearest(generated.features[network.name], space),
        held_out=nearest(held_out.features[network.name], space),
    )


def authenticity(generated: Neighbours, train: Tensor) -> Tensor:
    """Test that generated images are no variants of a training image, (n,) bool, whose features are (m, D).

    A variant lies nearer to its nearest training image than that image's own nearest neighbour.

    Source: Alaa et al. 2022, "How faithful is your synthetic data?", section 4.
    """
    own = squared_radii(Moved(train, train.mean(0)), [1])[0]
    return generated.distance.square() >= own[generated.index]


def copying_z(generated: Tensor, held_out: Tensor, *, cells: Tensor | None = None, least: int = 20) -> float:
    """Statistic C_T: a z score below about -3 says that generated images crowd around training images.

    Distances to the nearest training image of generated, (n,), and of held-out real images, (m,), are compared by the
    Mann-Whitney test within each cell of the training space, and averaged with the shares of held-out images as
    weights. Cells, (n + m,) int64, generated images first, are left out if they have fewer than `least` of one kind;
    NaN if none is left. None makes one cell of all.

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
    """Divide a feature space by k-means on training images (m, D); number the cell of each other vector, in order."""
    from sklearn.cluster import KMeans

    cells = KMeans(count, n_init=1, random_state=seed).fit(train.numpy())
    return torch.from_numpy(cells.predict(torch.cat(others).numpy())).long()


def memorisation_scores(
    found: NearestTraining, generated: FeatureSet, held_out: FeatureSet, network: FeatureNetwork
) -> dict[str, Score]:
    """Scores ``nearest_train_ratio_NETWORK`` and ``near_train_share_NETWORK``; `real` is the held-out set."""
    values = {
        f"nearest_train_ratio_{network.slug}": found.median_ratio,
        f"near_train_share_{network.slug}": found.near_share,
    }
    return {name: score(name, value, generated, held_out, network) for name, value in values.items()}


def nearest_pictures(
    found: NearestTraining, generated: FeatureSet, train: FeatureSet, *, count: int = 8, columns: int = 4
) -> Image.Image:
    """Picture of the `count` generated images nearest to a training image, each beside it."""
    rows = found.generated.distance.argsort()[:count].tolist()
    return pair_pictures(generated, train, [(row, int(found.generated.index[row])) for row in rows], columns=columns)


def pair_pictures(
    generated: FeatureSet, train: FeatureSet, pairs: Sequence[tuple[int, int]], *, columns: int = 4
) -> Image.Image:
    """Picture of pairs of rows: sample | training image."""
    pictures, captions = [], []
    for row, match in pairs:
        pictures += [generated.images[row : row + 1], train.images[match : match + 1]]
        captions += [f"sample {row}", f"train {match}"]
    height = pictures[0].shape[-2]
    return image_grid(
        torch.cat(pictures), columns=2 * min(columns, len(pairs)), captions=captions, scale=max(1, 128 // height)
    )


MEANINGS = {
    "nearest_train_ratio": Meaning(
        "privacy", "Distance to train, against unseen", 0, "Median over that of unseen images; below 1 is nearer."
    ),
    "near_train_share": Meaning(
        "privacy", "Share nearer to train than 99 % of unseen", -1, "About 0.01 where nothing is copied."
    ),
    "authenticity": Meaning(
        "privacy", "Authenticity", 0, "Share of images that are no variants of a training image; compare with real."
    ),
    "copying_z": Meaning("privacy", "Copying (C_T)", 0, "A z score; below -3 images crowd around training images."),
    "near_copies": Meaning("privacy", "Near copies", -1, "Training images, also if moved, mirrored, turned or scaled."),
}

CHECK = Check(run=privacy, packages=("matplotlib", "scipy", "sklearn"), meanings=MEANINGS)
