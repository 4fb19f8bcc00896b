"""Train and eval mode of networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; each submodule gets back its own, so that a frozen part stays as it was."""
    with same_modes(module):
        module.eval()
        yield


@contextmanager
def same_modes(module: nn.Module) -> Iterator[None]:
    """Each submodule is in the mode it was in when this ends."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
