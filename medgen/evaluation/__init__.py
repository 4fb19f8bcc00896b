"""Evaluation of synthetic images: one registry of metrics, the same code for the command line and for training."""

from __future__ import annotations

from collections.abc import Mapping

from medgen.evaluation.features import FeatureNetwork
from medgen.evaluation.frechet import FrechetDistance, FrechetDistanceToInfinity
from medgen.evaluation.kernel_distance import KernelDistance
from medgen.evaluation.manifolds import DensityCoverage, PrecisionRecall
from medgen.evaluation.metric import FeatureMetric
from medgen.evaluation.networks import FEATURES, feature_network

METRICS: Mapping[str, type[FeatureMetric]] = {
    "frechet_distance": FrechetDistance,
    "frechet_distance_to_infinity": FrechetDistanceToInfinity,
    "kernel_distance": KernelDistance,
    "precision_recall": PrecisionRecall,
    "density_coverage": DensityCoverage,
}

__all__ = [
    "FEATURES",
    "METRICS",
    "DensityCoverage",
    "FeatureMetric",
    "FeatureNetwork",
    "FrechetDistance",
    "FrechetDistanceToInfinity",
    "KernelDistance",
    "PrecisionRecall",
    "feature_network",
]
