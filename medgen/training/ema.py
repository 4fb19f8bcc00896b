"""Decay of the average of weights, by the number of steps."""

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
    """Decay of the moving average of weights at an optimiser step; a `ema_decay` of `GenerativeModule`.

    The average follows the weights closely at first and slowly later: 0, 0, 0.37, ..., 0.99 at step 1000.

    Args:
        step: Number of optimiser steps made before this one.
        power: How fast the decay approaches 1; 2/3 suits runs of a million steps, 3/4 shorter ones.
        inv_gamma: Steps over which the warm-up is stretched.
        update_after_step: Steps before the average starts to lag behind the weights.
        min_value: Smallest decay once it has started.
        max_value: Largest decay.

    Source: the published code; 1 - (1 + step / inv_gamma)^-power, as in K. Crowson's k-diffusion.
    """
    since_start = step - update_after_step - 1
    if since_start <= 0:
        return 0.0
    decay: float = 1 - (1 + since_start / inv_gamma) ** -power
    return max(min_value, min(decay, max_value))
