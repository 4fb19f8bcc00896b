"""Metrics on two sets of feature vectors: one file each, one line in `METRICS`."""

from __future__ import annotations

from collections.abc import Mapping

from medgen.evaluation.metrics.base import FeatureMetric
from medgen.evaluation.metrics.frechet import FrechetDistance, FrechetDistanceToInfinity
from medgen.evaluation.metrics.kernel_distance import KernelDistance
from medgen.evaluation.metrics.precision_recall import DensityCoverage, PrecisionRecall

METRICS: Mapping[str, type[FeatureMetric]] = {
    "frechet_distance": FrechetDistance,
    "frechet_distance_to_infinity": FrechetDistanceToInfinity,
    "kernel_distance": KernelDistance,
    "precision_recall": PrecisionRecall,
    "density_coverage": DensityCoverage,
}
