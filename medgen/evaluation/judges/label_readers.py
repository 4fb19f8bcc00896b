"""Classifiers of labels: logistic regressions on features of real images, which read the labels of other images."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from medgen.evaluation.judges.features import FeatureNetwork
from medgen.evaluation.sets import FeatureSet, known_and_positive, patients_of
from medgen.evaluation.statistics.roc import youden_threshold

if TYPE_CHECKING:
    from torch import Tensor

    from medgen.labels import LabelSpace


logger = logging.getLogger(__name__)

_FOLDS = 5
"""Parts of the cross-validation that chooses the regularisation."""


class LabelReaders:
    """Classifiers of the labels of images, trained on real images, one for each class or finding.

    Each is fitted to features of the network when it is first used, and kept.

    Raises:
        ValueError: If `train` has no labels, or labels are not classes or findings.
    """

    def __init__(self, train: FeatureSet, network: FeatureNetwork, space: LabelSpace) -> None:
        if space.kind not in ("single", "multi"):
            raise ValueError(f"labels are {space.kind!r}; whether a label appears is asked of classes and findings")
        _check_labels(train)
        self.train = train
        self.network = network
        self.space = space
        self._fitted: dict[int, LabelClassifier] = {}

    def usable(self, *tested: FeatureSet) -> Iterator[tuple[int, str, LabelClassifier]]:
        """Position, suffix of scores and classifier of each label with enough examples in all sets."""
        for part in tested:
            _check_labels(part)
        for position, suffix in _targets(self.space):
            rare = [
                part.name
                for part, enough in ((self.train, _FOLDS), *((part, 1) for part in tested))
                if self._fewest_patients(part, position) < enough
            ]
            if rare:
                where = " and ".join(rare)
                logger.warning(
                    "the label check of %s is left out: %s has too few images with or without it",
                    self.space.names[position],
                    where,
                )
                continue
            if position not in self._fitted:
                self._fitted[position] = LabelClassifier(*self.examples(self.train, position))
            yield position, suffix, self._fitted[position]

    def examples(self, part: FeatureSet, position: int) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
        """Features (m, D) of the images with a known label, whether each is positive (m,), and its patient (m,)."""
        assert part.labels is not None  # `usable` refuses sets without
        known, positive = known_and_positive(part.labels, position)
        return part.features[self.network.name][known], positive[known], patients_of(part)[known].numpy()

    def _fewest_patients(self, part: FeatureSet, position: int) -> int:
        """Number of patients with positive or with negative images, whichever is smaller."""
        _, positive, patients = self.examples(part, position)
        return min(len(np.unique(patients[positive.numpy() == kind])) for kind in (True, False))


def _check_labels(part: FeatureSet) -> None:
    if part.labels is None:
        raise ValueError(f"{part.name} has no labels")


def _targets(space: LabelSpace) -> Iterator[tuple[int, str]]:
    """Position in the label space and suffix of scores of each label; the second one stands for two classes."""
    if space.kind == "single" and len(space) == 2:
        yield 1, ""
    else:
        yield from ((i, f":{name}") for i, name in enumerate(space.names))


class LabelClassifier:
    """Ridge-penalised logistic regression on standardised features, tuned by cross-validation between patients.

    Features are (n, D); positive says whether each image shows the label, (n,) bool, or its class, (n,) int64.

    Raises:
        ImportError: If scikit-learn is missing.
    """

    def __init__(self, features: Tensor, positive: Tensor, patients: NDArray[np.int64]) -> None:
        try:
            from sklearn.linear_model import LogisticRegressionCV
            from sklearn.model_selection import StratifiedGroupKFold
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import StandardScaler
        except ImportError as error:
            raise ImportError('the label check needs scikit-learn; run: pip install "medgen[eval]"') from error
        scoring = "roc_auc" if len(positive.unique()) == 2 else "neg_log_loss"
        self.features, self.positive = features.numpy(), positive.numpy()
        self.folds = list(StratifiedGroupKFold(_FOLDS).split(self.features, self.positive, patients))
        model = LogisticRegressionCV(Cs=np.logspace(-5, 0, 6).tolist(), cv=self.folds, scoring=scoring, max_iter=500)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of defaults that this two-class use does not touch
            self.model = make_pipeline(StandardScaler(), model).fit(self.features, self.positive)

    def scores(self, features: Tensor) -> Tensor:
        """Log odds of the label, (n,), for features (n, D)."""
        return torch.from_numpy(self.model.decision_function(features.numpy()))

    def probabilities(self, features: Tensor) -> NDArray[np.float64]:
        """Probability of each class in the training set, (n, K), at least 1e-12."""
        found: NDArray[np.float64] = np.clip(self.model.predict_proba(features.numpy()), 1e-12, None)
        return found

    @cached_property
    def threshold(self) -> float:
        """Youden's threshold, from scores of training images that each fold's classifier had not seen.

        Strongly regularised classifiers differ in offset and scale of their scores by more than the classes do, so the
        scores of each fold are standardised by its own training images.
        """
        from sklearn.base import clone
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        strength = float(np.atleast_1d(self.model[-1].C_)[0])
        fresh = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))
        unseen = np.zeros(len(self.positive))
        for seen, left_out in self.folds:
            fold = clone(fresh).fit(self.features[seen], self.positive[seen])
            mean, spread = _mean_and_spread(fold.decision_function(self.features[seen]))
            unseen[left_out] = (fold.decision_function(self.features[left_out]) - mean) / spread
        mean, spread = _mean_and_spread(self.model.decision_function(self.features))
        return mean + spread * youden_threshold(torch.from_numpy(unseen), torch.from_numpy(self.positive))


def _mean_and_spread(scores: NDArray[np.float64]) -> tuple[float, float]:
    return float(scores.mean()), float(scores.std()) or 1.0
