"""Training and evaluation mode of networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, and restore the mode of each submodule afterwards."""
    with same_modes(module):
        module.eval()
        yield


@contextmanager
def same_modes(module: nn.Module) -> Iterator[None]:
    """Restore the mode of each submodule afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
