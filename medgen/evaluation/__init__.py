"""Evaluation of synthetic images, shared by the command line and the training callbacks.

Rooms: `metrics` compare feature vectors, `checks` measure everything else, `judges` are the networks both use,
`statistics` their arithmetic, `report` writes the page and `study` asks human readers.
"""

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
