"""Divergence of the distributions that autoencoders encode images as."""

from __future__ import annotations

from torch import Tensor


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence of N(mean, variance) from N(0, 1) in nats, summed over each code.

    Args:
        mean: (B, ...).
        log_variance: In the shape of ``mean``.

    Returns:
        (B,) float32, 0 for a standard normal distribution.

    Source: Kingma and Welling 2014, "Auto-encoding variational Bayes", appendix B.
    """
    mean, log_variance = mean.float(), log_variance.float()
    return (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1) / 2
