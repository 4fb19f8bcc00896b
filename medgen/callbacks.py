"""The callbacks under the name that recipes use; see `medgen.training.callbacks`."""

from medgen.training.callbacks import BestCheckpoint, EvaluateGenerator, LogReconstructions, LogSamples, LogVariety

__all__ = ["BestCheckpoint", "EvaluateGenerator", "LogReconstructions", "LogSamples", "LogVariety"]
