"""Evaluation of synthetic images: one registry of metrics, the same code for the command line and for training."""

from __future__ import annotations

from collections.abc import Mapping

from medgen.evaluation.features import FEATURES, FeatureMetric, FeatureNetwork, feature_network
from medgen.evaluation.frechet import FrechetDistance
from medgen.evaluation.precision_recall import PrecisionRecall

METRICS: Mapping[str, type[FeatureMetric]] = {
    "frechet_distance": FrechetDistance,
    "precision_recall": PrecisionRecall,
}

__all__ = [
    "FEATURES",
    "METRICS",
    "FeatureMetric",
    "FeatureNetwork",
    "FrechetDistance",
    "PrecisionRecall",
    "feature_network",
]
