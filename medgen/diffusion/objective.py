"""Training losses of denoising networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import gaussian_nll_loss, huber_loss, interpolate, l1_loss, mse_loss

from medgen.diffusion.denoiser import PredictionType, estimate_x_0, split_variance
from medgen.diffusion.schedule import NoiseSchedule

Distance = Literal["l1", "mse", "huber"]
VarianceMean = Literal["estimate", "truth"]

DISTANCES: Mapping[Distance, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1_loss, "mse": mse_loss, "huber": huber_loss}

TARGETS: Mapping[PredictionType, Callable[[NoiseSchedule, Tensor, Tensor, Tensor], Tensor]] = {
    "eps": lambda schedule, x_0, eps, t: eps,
    "x_0": lambda schedule, x_0, eps, t: x_0,
    "v": NoiseSchedule.velocity,
}


MultiscaleNetwork = Callable[[Tensor, Tensor, Tensor | None], Sequence[Tensor]]
"""Called as ``network(x_t, t, x_0)``; gives the predictions of all output heads, full resolution first, of which the
first one has twice the channels with learned variance."""


class DiffusionLoss(NamedTuple):
    """A training loss and its terms.

    Attributes:
        total: Scalar to minimise.
        terms: Detached scalars to log: ``l1`` and ``mse`` of the full-resolution prediction for any distance, and with
            learned variance ``variance`` and ``variance_fraction``.
    """

    total: Tensor
    terms: dict[str, Tensor]


def diffusion_loss(
    network: MultiscaleNetwork,
    x_0: Tensor,
    t: Tensor,
    eps: Tensor,
    schedule: NoiseSchedule,
    *,
    prediction_type: PredictionType = "eps",
    distance: Distance = "l1",
    clip: bool = False,
    self_conditioning: bool = False,
    variance_mean: VarianceMean = "estimate",
) -> DiffusionLoss:
    """Training loss of one batch: the error of all output heads and, if the network learns it, the variance.

    Args:
        network: Network with a fixed label; twice the channels of ``x_0`` mean learned variance.
        x_0: Clean latents or images in [-1, 1], (B, C, ...).
        t: Time of each image, (B,) int64.
        eps: Standard normal noise in the shape of ``x_0``.
        schedule: Forward process.
        prediction_type: Quantity that the network predicts.
        distance: Error of a prediction.
        clip: Clamp estimates of x_0 to [-1, 1], as in sampling.
        self_conditioning: Pass the network its own first estimate, without gradients (Chen et al. 2022).
        variance_mean: Mean around which the learned variance is measured: the network's estimate of x_0, or, for
            networks that predict the noise, the true x_0 (clipped, if ``clip``) as in the published Medfusion code.

    Raises:
        ValueError: If the prediction type or distance is unknown.

    Source: Ho et al. 2020, eq. 14; Salimans and Ho 2022 for v; Nichol and Dhariwal 2021, eq. 16 for the variance.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance is {distance!r}; use one of {', '.join(map(repr, get_args(Distance)))}")
    channels = x_0.shape[1]
    x_t = schedule.add_noise(x_0, eps, t)
    first_estimate = None
    if self_conditioning:
        with torch.no_grad():
            first, _ = split_variance(network(x_t, t, None)[0].to(x_0.dtype), channels)
            first_estimate = estimate_x_0(schedule, x_t, first, t, prediction_type, clip=clip)
    full, *lower = (output.to(x_0.dtype) for output in network(x_t, t, first_estimate))  # from mixed precision
    prediction, variance = split_variance(full, channels)
    estimate = estimate_x_0(schedule, x_t, prediction.detach(), t, prediction_type, clip=clip)
    target = TARGETS[prediction_type](schedule, x_0, eps, t)

    terms = {"l1": l1_loss(prediction.detach(), target), "mse": mse_loss(prediction.detach(), target)}
    total = multiscale_mean([prediction, *lower], target, DISTANCES[distance])
    if variance is not None:
        if variance_mean == "truth" and prediction_type == "eps":
            estimate = estimate_x_0(schedule, x_t, eps, t, prediction_type, clip=clip)
        spread = variance_loss(schedule, x_t, x_0, estimate, t, variance)
        total = total + spread
        terms |= {"variance": spread.detach(), "variance_fraction": variance.detach().mean()}
    return DiffusionLoss(total, terms)


def multiscale_mean(
    predictions: Sequence[Tensor], target: Tensor, distance: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Weighted mean of the distances of all predictions, full resolution first, with weights 1, 1/2, 1/4 ...

    The target has the size of the first prediction and is averaged down to that of the others.
    """
    weights = [0.5**level for level in range(len(predictions))]
    losses = [distance(p, interpolate(target, size=p.shape[2:], mode="area")) for p in predictions]
    return torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).sum() / sum(weights)


def variance_loss(
    schedule: NoiseSchedule, x_t: Tensor, x_0: Tensor, estimate: Tensor, t: Tensor, fraction: Tensor
) -> Tensor:
    """Variational bound of one reverse step, as a loss of the learned variance.

    This is the divergence of the true from the learned reverse step, in nats per pixel, and at t = 0 the negative
    log-likelihood of x_0, up to a constant; averaged over pixels and images.

    Args:
        schedule: Forward process.
        x_t: Noisy images, (B, C, ...).
        x_0: Clean images, (B, C, ...).
        estimate: Estimate of the clean images, (B, C, ...); detach it to train the variance only.
        t: Time of each image, (B,) int64.
        fraction: Position of the variance between its bounds, (B, C, ...).

    Source: Nichol and Dhariwal 2021, "Improved denoising diffusion probabilistic models", section 3.1.
    """
    log_variance = schedule.posterior_log_variance(t, x_t, fraction)
    true_log_variance = schedule.posterior_log_variance(t, x_t)
    first = (t == 0).reshape(-1, *[1] * (x_t.dim() - 1))
    nll = gaussian_nll_loss(estimate, x_0, log_variance.exp(), reduction="none")
    error = schedule.posterior_mean(x_t, x_0, t) - schedule.posterior_mean(x_t, estimate, t)
    log_variance = torch.where(
        first, true_log_variance, log_variance
    )  # avoids an overflow, which would make gradients NaN
    difference = true_log_variance - log_variance
    divergence = (difference.exp() - 1 - difference + error.square() * (-log_variance).exp()) / 2
    return torch.where(first, nll, divergence).mean()
