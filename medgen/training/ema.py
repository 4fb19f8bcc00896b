"""Decay of the moving average of weights as a function of training progress."""

from __future__ import annotations


def ema_decay(
    step: int,
    *,
    power: float = 2 / 3,
    inv_gamma: float = 1.0,
    update_after_step: int = 0,
    min_value: float = 0.0,
    max_value: float = 0.9999,
) -> float:
    """Compute an inverse-power ramp: 0, 0, 0.37, ..., 0.99 at step 1000.

    Args:
        step: Number of optimiser steps so far.
        power: Exponent; 2/3 suits runs of a million steps, 3/4 shorter ones.
        inv_gamma: Factor that stretches the ramp.
        update_after_step: Steps before the ramp starts; the decay is 0 until then.
        min_value: Smallest decay after the start.
        max_value: Largest decay.

    Source: the published code; 1 - (1 + step / inv_gamma)^-power, as in K. Crowson's k-diffusion.
    """
    since_start = step - update_after_step - 1
    if since_start <= 0:
        return 0.0
    decay: float = 1 - (1 + since_start / inv_gamma) ** -power
    return max(min_value, min(decay, max_value))


def warmup_decay(step: int, *, max_value: float) -> float:
    """Compute the ramp (1 + n) / (10 + n) after n steps, up to `max_value`."""
    return min(max_value, (1 + step) / (10 + step))


def half_life_decay(images_seen: int, batch_size: int, kimg: float, rampup: float | None) -> float:
    """Compute the decay of one step for a half-life in images.

    Args:
        images_seen: Images before the step.
        batch_size: Images of the step, over all processes.
        kimg: Half-life of the average, in thousands of images.
        rampup: Largest half-life as a share of all images so far; None for no limit.

    Source: Karras et al. 2020, "Training generative adversarial networks with limited data", appendix C.
    """
    half_life = 1000 * kimg if rampup is None else min(1000 * kimg, images_seen * rampup)
    return float(0.5 ** (batch_size / max(half_life, 1e-8)))
