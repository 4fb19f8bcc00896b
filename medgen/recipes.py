"""Names in recipes and in the settings that earlier runs saved; see `medgen.training.recipes`."""

from medgen.training.recipes import AtomicCheckpointIO, LastCheckpoint

__all__ = ["AtomicCheckpointIO", "LastCheckpoint"]
