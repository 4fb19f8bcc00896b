"""Does the asked-for label appear? A classifier trained on real images reads the labels of generated ones."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from medgen.evaluation.features import FeatureNetwork
from medgen.evaluation.intervals import bootstrap
from medgen.evaluation.prevalence import prevalence, youden_threshold
from medgen.evaluation.roc import roc_auc
from medgen.evaluation.scores import Score, score
from medgen.evaluation.sets import FeatureSet, known_and_positive, patients_of

if TYPE_CHECKING:
    from torch import Tensor

    from medgen.labels import LabelSpace


logger = logging.getLogger(__name__)

_FOLDS = 5
"""Parts of the cross-validation that chooses the regularisation."""


class LabelReaders:
    """Classifiers that tell the labels of images, learned from real training images, one for each class or finding.

    Each is a logistic regression on the network's features, its strength of regularisation chosen by cross-validation
    between patients. It is fitted when it is first asked for, and kept.

    Args:
        train: Real training images.
        network: The feature network of all sets.
        space: What the labels mean.

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
        self._fitted: dict[int, _LogisticRegression] = {}

    def usable(self, *tested: FeatureSet) -> Iterator[tuple[int, str, _LogisticRegression]]:
        """Position, suffix of scores and classifier of each label that all sets have enough images with and without."""
        for part in tested:
            _check_labels(part)
        for position, suffix in _targets(self.space):
            rare = [
                part.name
                for part, enough in ((self.train, _FOLDS), *((part, 1) for part in tested))
                if _fewest_patients(part, self.network, position) < enough
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
                features, positive = _examples(self.train, self.network, position)
                self._fitted[position] = _LogisticRegression(features, positive, _patients(self.train, position))
            yield position, suffix, self._fitted[position]


def label_aucs(readers: LabelReaders, generated: FeatureSet, real: FeatureSet) -> dict[str, Score]:
    """How well classifiers trained on real images tell the labels of generated and of held-out real images.

    Args:
        readers: The classifiers.
        generated: Generated images with the labels that were asked for.
        real: Held-out real images, for comparison: a model can hardly show a label more clearly than they do.

    Returns:
        ``label_auc_generated`` and ``label_auc_real`` with 95 % intervals; with more than two classes one of each per
        class or finding, its name behind a colon. `Score.real` is what the classifier learned from. Classes with too
        few images in one of the sets are left out, with a warning.

    Raises:
        ValueError: If a set has no labels.
        ImportError: If scikit-learn is missing.
    """
    found = {}
    for position, suffix, reader in readers.usable(generated, real):
        for kind, part in (("generated", generated), ("real", real)):
            features, positive = _examples(part, readers.network, position)
            auc = roc_auc(reader.scores(features), positive, groups=_patients(part, position))
            name = f"label_auc_{kind}{suffix}"
            found[name] = score(name, auc, part, readers.train, readers.network)
    return found


def label_prevalences(readers: LabelReaders, generated: FeatureSet, real: FeatureSet) -> dict[str, Score]:
    """How often the same classifiers see each label in generated and in held-out real images.

    Returns:
        ``prevalence_generated``, ``prevalence_real`` and ``prevalence_difference`` with 95 % intervals, named like
        those of `label_aucs`. A label whose difference lies below 0 is dropped by the generator, where the labels that
        were asked for are distributed as the real ones.

    Source: Segal et al. 2021, "Evaluating the clinical realism of synthetic chest X-rays generated using progressively
    growing GANs", figure 6.
    """
    found = {}
    train, network = readers.train, readers.network
    for _, suffix, reader in readers.usable():
        answers = [reader.scores(part.features[network.name]) >= reader.threshold for part in (real, generated)]
        result = prevalence(answers[0], answers[1], patients=patients_of(real))
        for kind, interval, part in (
            ("real", result.real, real),
            ("generated", result.generated, generated),
            ("difference", result.difference, generated),
        ):
            name = f"prevalence_{kind}{suffix}"
            found[name] = score(name, interval, part, train if kind != "difference" else real, network)
    return found


def inception_scores(
    train: FeatureSet, generated: FeatureSet, real: FeatureSet, network: FeatureNetwork, space: LabelSpace
) -> list[Score]:
    """How clearly a classifier of real images recognises the images, and how evenly the classes come.

    The classifier is a multinomial logistic regression of the data's own classes on the network's features: those of
    ImageNet, which the paper took, say little of medical images. The largest possible value is the number of classes.

    Returns:
        ``inception_score`` of the generated and of the real images, with bootstrap intervals; none but for classes.

    Source: Salimans et al. 2016, "Improved techniques for training GANs", section 4.
    """
    if space.kind != "single" or train.labels is None:
        return []
    known = train.labels >= 0
    patients = patients_of(train)[known].numpy()
    classifier = _LogisticRegression(train.features[network.name][known], train.labels[known], patients)
    scores = []
    for part in (generated, real):
        posterior = classifier.probabilities(part.features[network.name])

        def statistic(counts: NDArray[np.float64], p: NDArray[np.float64] = posterior) -> NDArray[np.float64]:
            share = counts / counts.sum(1, keepdims=True)
            marginal = share @ p
            found: NDArray[np.float64] = np.exp(share @ (p * np.log(p)).sum(1) - (marginal * np.log(marginal)).sum(1))
            return found

        scores.append(score("inception_score", bootstrap(statistic, patients_of(part).numpy()), part, train, network))
    return scores


def _check_labels(part: FeatureSet) -> None:
    if part.labels is None:
        raise ValueError(f"{part.name} has no labels")


def _targets(space: LabelSpace) -> Iterator[tuple[int, str]]:
    """What is told from the rest: position in the label space, and how its scores are called."""
    if space.kind == "single" and len(space) == 2:
        yield 1, ""
    else:
        yield from ((i, f":{name}") for i, name in enumerate(space.names))


def _examples(part: FeatureSet, network: FeatureNetwork, position: int) -> tuple[Tensor, Tensor]:
    """Features of the images with a known label, and whether each shows the class or finding."""
    assert part.labels is not None  # checked by `LabelReaders`
    known, positive = known_and_positive(part.labels, position)
    return part.features[network.name][known], positive[known]


def _fewest_patients(part: FeatureSet, network: FeatureNetwork, position: int) -> int:
    """How many patients have images with, and how many without the class or finding: the fewer of the two."""
    _, positive = _examples(part, network, position)
    patients = _patients(part, position)
    return min(len(np.unique(patients[positive.numpy() == kind])) for kind in (True, False))


def _patients(part: FeatureSet, position: int) -> NDArray[np.int64]:
    assert part.labels is not None
    known, _ = known_and_positive(part.labels, position)
    return patients_of(part)[known].numpy()


class _LogisticRegression:
    """Ridge-penalised logistic regression on standardised features; no patient is in two folds of its tuning."""

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
        return torch.from_numpy(self.model.decision_function(features.numpy()))

    def probabilities(self, features: Tensor) -> NDArray[np.float64]:
        """Of each class that there is, (n, K); none is 0."""
        found: NDArray[np.float64] = np.clip(self.model.predict_proba(features.numpy()), 1e-12, None)
        return found

    @cached_property
    def threshold(self) -> float:
        """Youden's threshold from scores of training images that each fold's classifier had not seen.

        Strongly regularised classifiers differ in offset and scale of their scores by more than the classes do, so the
        scores of each are measured from the mean of its own training images, in their standard deviations.
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
