"""Likelihood of images under the generator: memorised training images, and outliers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from medgen.evaluation.checks.case import Case, Check, Findings
from medgen.evaluation.scores import Meaning, score
from medgen.evaluation.sets import FeatureSet, batches, patients_of
from medgen.evaluation.statistics.intervals import bootstrap_mean
from medgen.evaluation.statistics.roc import roc_auc

ODD: Mapping[str, Callable[[Tensor], Tensor]] = {
    "upside down": lambda images: images.flip(-2),
    "negative": lambda images: 1 - images,
    "middle covered": lambda images: _covered(images),
}
"""Changes of held-out images, (B, C, H, W) in [0, 1], that make them outliers."""


def likelihood(case: Case) -> Findings:
    """Measure bits per dimension of held-out, training and generated images, and the AUC of outlier detection.

    Training images that are much likelier than held-out ones were memorised. Outliers are copies of held-out images,
    changed as `ODD` says.

    Source: Nalisnick et al. 2019, "Do deep generative models know what they don't know?": likely images need not be
    ordinary ones, so the outlier score is measured.
    """
    bits_of = getattr(case.generator, "bits_of", None)
    found = Findings()
    if bits_of is None:
        return found

    def measured(part: FeatureSet, change: Callable[[Tensor], Tensor] = lambda images: images) -> Tensor:
        slices = batches(part.images, range(part.n), case.settings.batch_size)
        return torch.cat([bits_of(change(images)).cpu() for images in slices])

    real = measured(case.real)
    sides = {"": (case.real, real), "_generated": (case.real, measured(case.generated))}
    if case.train_apart:
        sides["_train"] = case.train, measured(case.train)
    for suffix, (part, bits) in sides.items():
        found.scores.append(score(f"bits_per_dimension{suffix}", bootstrap_mean(bits), case.generated, part))
    patients = torch.as_tensor(patients_of(case.real))
    for name, change in ODD.items():
        auc = roc_auc(
            torch.cat([real, measured(case.real, change)]),
            torch.arange(2 * len(real)) >= len(real),
            groups=patients.repeat(2).numpy(),
        )
        found.scores.append(score(f"outlier_auc:{name}", auc, case.generated, case.real))
    return found


def _covered(images: Tensor) -> Tensor:
    """Cover the middle of images by a grey square, a third as high and wide."""
    height, width = images.shape[-2:]
    covered = images.clone()
    covered[..., height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = 0.5
    return covered


MEANINGS = {
    "bits_per_dimension": Meaning(
        "fidelity", "Bits per dimension", -1, "Bits per code of held-out images; fewer are likelier."
    ),
    "bits_per_dimension_train": Meaning(
        "privacy", "Bits per dimension of train", 0, "Far below that of held-out images, images were memorised."
    ),
    "bits_per_dimension_generated": Meaning(
        "fidelity", "Bits per dimension of generated images", 0, "The generator's own; compare with real images."
    ),
    "outlier_auc": Meaning(
        "fidelity", "AUC of odd images", 1, "Whether changed images cost more bits than untouched ones."
    ),
}

CHECK = Check(run=likelihood, train=False, generator=True, meanings=MEANINGS)
