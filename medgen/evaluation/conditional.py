"""Does the asked-for label appear? A classifier trained on real images reads the labels of generated ones."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from medgen.evaluation.features import FeatureNetwork
from medgen.evaluation.run import Score, score
from medgen.evaluation.sets import FeatureSet

if TYPE_CHECKING:
    from torch import Tensor

    from medgen.labels import LabelSpace


logger = logging.getLogger(__name__)

_FOLDS = 5
"""Parts of the cross-validation that chooses the regularisation."""


@dataclass(frozen=True, kw_only=True)
class Auc:
    """Area under the ROC curve: 0.5 is chance, 1 is perfect.

    Attributes:
        value: The area.
        low: Lower end of its 95 % bootstrap interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def roc_auc(scores: Tensor, positive: Tensor, *, resamples: int = 2000, seed: int = 0) -> Auc:
    """Area under the ROC curve with a percentile bootstrap interval, positives and negatives resampled apart.

    Args:
        scores: Larger where the classifier thinks positive, (n,).
        positive: The truth, (n,) bool.
        resamples: Bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: If there is no positive or no negative image.

    Source: Hanley and McNeil 1982, "The meaning and use of the area under a ROC curve": the share of pairs in order.
    """
    levels, ranks = np.unique(scores.double().numpy(), return_inverse=True)
    truth = positive.numpy()
    above, below = ranks[truth], ranks[~truth]
    if not len(above) or not len(below):
        raise ValueError(
            f"a ROC curve needs images of both kinds; there are {len(above)} positive, {len(below)} negative"
        )

    def area(above: NDArray[np.int64], below: NDArray[np.int64]) -> float:
        higher, lower = (np.bincount(part, minlength=len(levels)) for part in (above, below))
        wins = np.cumsum(lower) - 0.5 * lower  # a tie is half a win
        return float(higher @ wins / (len(above) * len(below)))

    random = np.random.default_rng(seed)
    resampled = [area(random.choice(above, len(above)), random.choice(below, len(below))) for _ in range(resamples)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Auc(value=area(above, below), low=float(low), high=float(high))


def label_aucs(
    train: FeatureSet, generated: FeatureSet, real: FeatureSet, network: FeatureNetwork, space: LabelSpace
) -> dict[str, Score]:
    """How well a classifier trained on real images tells the labels of generated and of held-out real images.

    The classifier is a logistic regression on the network's features, one per class or finding, its strength of
    regularisation chosen by cross-validation on the training images.

    Args:
        train: Real training images.
        generated: Generated images with the labels that were asked for.
        real: Held-out real images, for comparison: a model can hardly show a label more clearly than they do.
        network: The feature network of the sets.
        space: What the labels mean.

    Returns:
        ``label_auc_generated`` and ``label_auc_real`` with 95 % intervals; with more than two classes one of each per
        class or finding, its name behind a colon. `Score.real` is what the classifier learned from. Classes with too
        few images in one of the sets are left out, with a warning.

    Raises:
        ValueError: If a set has no labels, or labels are not classes or findings.
        ImportError: If scikit-learn is missing.
    """
    if space.kind not in ("single", "multi"):
        raise ValueError(f"labels are {space.kind!r}; whether a label appears is asked of classes and findings")
    for part in (train, generated, real):
        if part.labels is None:
            raise ValueError(f"{part.name} has no labels")
    found = {}
    for position, suffix in _targets(space):
        rare = [
            part.name
            for part, enough in ((train, _FOLDS), (generated, 1), (real, 1))
            if _examples(part, network, position)[1].long().bincount(minlength=2).min() < enough
        ]
        if rare:
            logger.warning(
                "label_auc of %s is left out: %s has too few images with or without it",
                space.names[position],
                " and ".join(rare),
            )
            continue
        classifier = _LogisticRegression(*_examples(train, network, position))
        for kind, part in (("generated", generated), ("real", real)):
            features, positive = _examples(part, network, position)
            auc = roc_auc(classifier.scores(features), positive)
            name = f"label_auc_{kind}{suffix}"
            found[name] = score(name, auc.value, part, train, network, interval=(auc.low, auc.high))
    return found


def _targets(space: LabelSpace) -> Iterator[tuple[int, str]]:
    """What is told from the rest: position in the label space, and how its scores are called."""
    if space.kind == "single" and len(space) == 2:
        yield 1, ""
    else:
        yield from ((i, f":{name}") for i, name in enumerate(space.names))


def _examples(part: FeatureSet, network: FeatureNetwork, position: int) -> tuple[Tensor, Tensor]:
    """Features of the images with a known label, and whether each shows the class or finding."""
    labels = part.labels
    assert labels is not None  # checked by the only caller
    if labels.dim() == 1:
        known, positive = labels >= 0, labels == position
    else:
        known, positive = labels[:, position].isfinite(), labels[:, position] == 1
    return part.features[network.name][known], positive[known]


class _LogisticRegression:
    """Ridge-penalised logistic regression on standardised features."""

    def __init__(self, features: Tensor, positive: Tensor) -> None:
        try:
            from sklearn.linear_model import LogisticRegressionCV
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import StandardScaler
        except ImportError as error:
            raise ImportError('the label check needs scikit-learn; run: pip install "medgen[eval]"') from error
        model = LogisticRegressionCV(Cs=np.logspace(-5, 0, 6).tolist(), cv=_FOLDS, scoring="roc_auc", max_iter=500)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of defaults that this two-class use does not touch
            self.model = make_pipeline(StandardScaler(), model).fit(features.numpy(), positive.numpy())

    def scores(self, features: Tensor) -> Tensor:
        return torch.from_numpy(self.model.decision_function(features.numpy()))
