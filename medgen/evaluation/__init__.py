"""Evaluation of synthetic images, for the command line and for the callbacks of training."""

from medgen.evaluation.judges.features import FeatureNetwork
from medgen.evaluation.judges.networks import FEATURES, feature_network
from medgen.evaluation.metrics import METRICS
from medgen.evaluation.metrics.base import FeatureMetric
from medgen.evaluation.metrics.frechet import FrechetDistance, FrechetDistanceToInfinity
from medgen.evaluation.metrics.kernel_distance import KernelDistance
from medgen.evaluation.metrics.precision_recall import DensityCoverage, PrecisionRecall

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
