"""What a denoising network is trained to minimise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor
from torch.nn.functional import gaussian_nll_loss, huber_loss, interpolate, l1_loss, mse_loss

from medgen.diffusion.denoiser import PredictionType, estimate_x_0, split_variance
from medgen.diffusion.schedule import NoiseSchedule

Distance = Literal["l1", "mse", "huber"]
VarianceMean = Literal["estimate", "truth"]

DISTANCES: Mapping[Distance, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1_loss,
    "mse": mse_loss,
    "huber": huber_loss,
}

TARGETS: Mapping[PredictionType, Callable[[NoiseSchedule, Tensor, Tensor, Tensor], Tensor]] = {
    "eps": lambda schedule, x_0, eps, t: eps,
    "x_0": lambda schedule, x_0, eps, t: x_0,
    "v": NoiseSchedule.velocity,
}


class MultiscaleNetwork(Protocol):
    """A network whose label has been settled, with all its output heads."""

    def __call__(self, x_t: Tensor, t: Tensor, x_0: Tensor | None) -> Sequence[Tensor]:
        """Predictions, full resolution first; the first has twice the channels with learned variance."""
        ...


class DiffusionLoss(NamedTuple):
    """A training loss and what it is made of.

    Attributes:
        total: What to descend, a scalar.
        terms: Detached scalars to log: ``l1`` and ``mse`` of the full-resolution prediction whatever is minimised, and
            with learned variance ``variance`` and ``variance_fraction``.
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
    """Training loss of one batch: the prediction at all scales and, if the network learns it, the variance.

    Every head weighs half as much as the one above it, against a target averaged down to its size.

    Args:
        network: Network with its label settled; twice the channels of ``x_0`` means learned variance.
        x_0: Clean latents or images in [-1, 1], (B, C, ...).
        t: Time of each, (B,) int64.
        eps: Standard normal noise in the shape of ``x_0``.
        schedule: The forward process.
        prediction_type: What the network predicts.
        distance: How its error is measured.
        clip: Hold estimates of x_0 in [-1, 1], as sampling will.
        self_conditioning: Let the network look at its own first estimate, which gets no gradient (Chen et al. 2022).
        variance_mean: What the learned variance is measured around: the network's own estimate of x_0, or, for networks
            that predict the noise, the true x_0 (clipped, if ``clip``) as in the published Medfusion code.

    Returns:
        The loss and its terms.

    Raises:
        ValueError: If there is no such prediction type or distance.

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
    """Weighted mean of the distances of all heads, full resolution first: weights 1, 1/2, 1/4 ... over their sum.

    Args:
        predictions: (B, C, ...), each at its own size.
        target: (B, C, ...) at the size of the first; averaged down to that of the others.
        distance: Scalar distance of two tensors of one shape.
    """
    weights = [0.5**level for level in range(len(predictions))]
    losses = [distance(p, interpolate(target, size=p.shape[2:], mode="area")) for p in predictions]
    return torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).sum() / sum(weights)


def variance_loss(
    schedule: NoiseSchedule, x_t: Tensor, x_0: Tensor, estimate: Tensor, t: Tensor, fraction: Tensor
) -> Tensor:
    """How badly the learned variance describes one reverse step: the part of the variational bound that trains it.

    The divergence of the true from the learned reverse step, in nats per pixel, and at t = 0 the negative
    log-likelihood of x_0, up to a constant.

    Args:
        schedule: The forward process.
        x_t: Noisy images, (B, C, ...).
        x_0: Clean images, (B, C, ...).
        estimate: Estimate of the clean images, (B, C, ...). Detach it, so that only the variance learns from this.
        t: Time of each image, (B,) int64.
        fraction: Where the variance lies between its bounds, (B, C, ...).

    Returns:
        The mean over pixels and images, a scalar.

    Source: Nichol and Dhariwal 2021, "Improved denoising diffusion probabilistic models", section 3.1.
    """
    log_variance = schedule.posterior_log_variance(t, x_t, fraction)
    true_log_variance = schedule.posterior_log_variance(t, x_t)
    first = (t == 0).reshape(-1, *[1] * (x_t.dim() - 1))
    surprise = gaussian_nll_loss(estimate, x_0, log_variance.exp(), reduction="none")
    error = schedule.posterior_mean(x_t, x_0, t) - schedule.posterior_mean(x_t, estimate, t)
    log_variance = torch.where(first, true_log_variance, log_variance)  # an overflow here would spoil all gradients
    difference = true_log_variance - log_variance
    divergence = (difference.exp() - 1 - difference + error.square() * (-log_variance).exp()) / 2
    return torch.where(first, surprise, divergence).mean()
