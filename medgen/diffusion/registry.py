"""Samplers by name."""

from __future__ import annotations

from medgen.diffusion.samplers import SAMPLERS, Sampler
from medgen.diffusion.schedulers import diffusers_sampler


def find_sampler(name: str) -> Sampler:
    """Return a sampler of `SAMPLERS`, or one that runs a diffusers scheduler (`medgen.diffusion.schedulers`).

    Raises:
        ValueError: If the name is unknown; the message lists the known ones.
        ImportError: If the name is not in `SAMPLERS` and diffusers is not installed.
    """
    return SAMPLERS[name] if name in SAMPLERS else diffusers_sampler(name)
