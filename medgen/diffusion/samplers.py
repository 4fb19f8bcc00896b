"""Samplers: pure functions of a denoiser, noise and a schedule; see `medgen.diffusion.registry` for those by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from medgen.diffusion.denoiser import Denoiser
from medgen.diffusion.schedule import NoiseSchedule, check_times
from medgen.noise import Noise


def ddim(
    denoise: Denoiser,
    noise: Noise,
    shape: Sequence[int],
    schedule: NoiseSchedule,
    *,
    steps: int = 150,
    eta: float = 1.0,
    times: Sequence[int] | None = None,
) -> Tensor:
    """Sample by DDIM: deterministic given x_T at eta = 0, as noisy as ancestral sampling at eta = 1.

    Args:
        denoise: Estimates the clean image and the noise in x_t.
        noise: Random streams of the images, for x_T and then for every step that adds noise.
        shape: Shape of one image, such as (C, H, W).
        schedule: Forward process.
        steps: Number of calls of ``denoise``, evenly spread over the schedule.
        eta: Share of the noise added back at each step, 0 to 1.
        times: Times to visit instead of ``steps``, strictly falling.

    Returns:
        Images (B, *shape) in the range of the training data.

    Raises:
        ValueError: If steps, eta or times are out of range.

    Source: Song et al. 2021, "Denoising diffusion implicit models", eq. 12 and 16.
    """
    check_eta(eta)
    visited = schedule.timesteps(steps) if times is None else check_times(times, schedule)
    x = noise.normal(*shape)
    for t, t_next in pairwise([*visited, -1]):
        signal, signal_next = schedule.signal(t), schedule.signal(t_next)
        estimate = denoise(x, _per_image(t, x))
        sigma = eta * math.sqrt((1 - signal / signal_next) * (1 - signal_next) / (1 - signal))  # eq. 16
        x = math.sqrt(signal_next) * estimate.x_0 + math.sqrt(1 - signal_next - sigma**2) * estimate.eps  # eq. 12
        if sigma > 0:
            x = x + sigma * noise.normal(*shape)
    return x


def check_eta(eta: float) -> None:
    """Raise a `ValueError` if `eta` is not between 0 and 1."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; use 0 (deterministic) to 1 (as noisy as ancestral sampling)")


def ancestral(
    denoise: Denoiser,
    noise: Noise,
    shape: Sequence[int],
    schedule: NoiseSchedule,
    *,
    steps: int = 1000,
    times: Sequence[int] | None = None,
) -> Tensor:
    """Sample q(x_{t-1} | x_t, x_0) step by step, with the learned variance if there is one.

    If there are fewer steps than in the schedule, they are spread evenly, with the betas of the shorter chain
    (Nichol and Dhariwal 2021, section 4). Arguments, result and errors are those of `ddim`.

    Source: Ho et al. 2020, "Denoising diffusion probabilistic models", algorithm 2.
    """
    visited = schedule.timesteps(steps) if times is None else check_times(times, schedule)
    x = noise.normal(*shape)
    for t, t_next in pairwise([*visited, -1]):
        signal, signal_next = schedule.signal(t), schedule.signal(t_next)
        beta = 1 - signal / signal_next
        estimate = denoise(x, _per_image(t, x))
        weight_x_0 = math.sqrt(signal_next) * beta / (1 - signal)  # eq. 7
        weight_x_t = math.sqrt(1 - beta) * (1 - signal_next) / (1 - signal)
        x = weight_x_0 * estimate.x_0 + weight_x_t * x
        if t_next >= 0:
            least, most = math.log(beta * (1 - signal_next) / (1 - signal)), math.log(beta)
            if estimate.variance is None:
                x = x + math.exp(least / 2) * noise.normal(*shape)
            else:
                log_variance = estimate.variance * most + (1 - estimate.variance) * least
                x = x + (log_variance / 2).exp() * noise.normal(*shape)
    return x


def _per_image(t: int, x: Tensor) -> Tensor:
    return torch.full((x.shape[0],), t, device=x.device, dtype=torch.int64)


Sampler = Callable[..., Tensor]
"""Called as ``sampler(denoise, noise, shape, schedule, steps=...)``; some take more keywords."""

SAMPLERS: Mapping[str, Sampler] = {"ddim": ddim, "ancestral": ancestral}
