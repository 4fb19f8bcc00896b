"""Divergences of latent distributions."""

from __future__ import annotations

from torch import Tensor


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of N(mean, variance) from N(0, 1) in nats, summed over each image: (B,) float32.

    Source: Kingma and Welling 2014, "Auto-encoding variational Bayes", appendix B.
    """
    mean, log_variance = mean.float(), log_variance.float()
    return (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1) / 2
