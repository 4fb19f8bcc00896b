"""Gaussian latents."""

from __future__ import annotations

from torch import Tensor


def reparameterise(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """Turn standard normal noise into a sample of N(mean, exp(log_variance)); all tensors have one shape.

    Source: Kingma and Welling 2014, "Auto-encoding variational Bayes", section 2.4.
    """
    return mean + (0.5 * log_variance).exp() * noise
