"""Inception score with a classifier of the data's own classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medgen.evaluation.checks.case import Case, Check, Findings
from medgen.evaluation.judges.features import FeatureNetwork
from medgen.evaluation.judges.label_readers import LabelClassifier
from medgen.evaluation.scores import Meaning, Score, score
from medgen.evaluation.sets import FeatureSet, patients_of
from medgen.evaluation.statistics.intervals import bootstrap
from medgen.labels import LabelSpace


def inception_score(case: Case) -> Findings:
    """Measure `inception_scores`."""
    return Findings(scores=inception_scores(case.train, case.generated, case.real, case.judge, case.space))


def inception_scores(
    train: FeatureSet, generated: FeatureSet, real: FeatureSet, network: FeatureNetwork, space: LabelSpace
) -> list[Score]:
    """Inception score: high if a classifier is sure of each image and sees all classes equally often.

    The classifier is a multinomial logistic regression of the data's own classes on the network's features; the
    ImageNet classes of the paper say little about medical images. The upper limit is the number of classes. There are
    scores of the generated and of the real images, with bootstrap intervals; none for labels other than classes.

    Source: Salimans et al. 2016, "Improved techniques for training GANs", section 4.
    """
    if space.kind != "single" or train.labels is None:
        return []
    known = train.labels >= 0
    patients = patients_of(train)[known].numpy()
    classifier = LabelClassifier(train.features[network.name][known], train.labels[known], patients)
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


MEANINGS = {
    "inception_score": Meaning(
        "fidelity", "Inception score", 1, "How clear the class of each image, and how even all classes are."
    ),
}

CHECK = Check(run=inception_score, labels=True, packages=("sklearn",), meanings=MEANINGS)
