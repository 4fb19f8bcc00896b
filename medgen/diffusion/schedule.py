"""Noise schedules, and conversions between x_0, noise, velocity and x_t."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from medgen.config import Config

BetaShape = Literal["linear", "scaled_linear", "cosine"]

_LEAST_VARIANCE = 1e-20  # keeps the logarithm finite at t = 0, where the posterior variance is 0


def _linear(timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """Ho et al. 2020, section 4."""
    return torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)


def _scaled_linear(timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """Linear in the square root: Rombach et al. 2022, latent diffusion."""
    return torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64) ** 2


def _cosine(timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """Nichol and Dhariwal 2021, eq. 17; both betas are ignored."""
    offset = 0.008
    position = torch.linspace(0, timesteps, timesteps + 1, dtype=torch.float64) / timesteps
    alpha_bar = torch.cos((position + offset) / (1 + offset) * torch.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(0, 0.999)


BETAS: Mapping[BetaShape, Callable[[int, float, float], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "cosine": _cosine,
}


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Config):
    """Arguments of a `NoiseSchedule`.

    Attributes:
        timesteps: Number of steps T.
        shape: Shape of the betas: ``linear``, ``scaled_linear`` (linear in the square root) or ``cosine``.
        beta_start: First beta, in (0, 1). Unused by ``cosine``.
        beta_end: Last beta, in (0, 1). Unused by ``cosine``.

    Raises:
        ValueError: If an argument is out of range or the shape is unknown.
    """

    timesteps: int = 1000
    shape: BetaShape = "cosine"
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.timesteps < 1:
            raise ValueError(f"timesteps is {self.timesteps}; a schedule needs at least one")
        if self.shape not in BETAS:
            raise ValueError(f"shape is {self.shape!r}; use one of {', '.join(map(repr, get_args(BetaShape)))}")
        if not (0 < self.beta_start < 1 and 0 < self.beta_end < 1):
            raise ValueError(f"beta_start {self.beta_start} and beta_end {self.beta_end} must lie between 0 and 1")


class NoiseSchedule(nn.Module):
    """Forward process x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t = 0 ... T-1.

    x_t at t = 0 has been diffused once already; t = -1 stands for the clean image. Tables are computed in float64 and
    kept as float32 buffers outside the state dict. Arguments are those of `ScheduleConfig`.

    Source: Ho et al. 2020, "Denoising diffusion probabilistic models"; names follow its equations.
    """

    betas: Tensor
    alphas: Tensor
    alpha_bar: Tensor
    alpha_bar_prev: Tensor
    sqrt_alpha_bar: Tensor
    sqrt_one_minus_alpha_bar: Tensor
    sqrt_recip_alpha_bar: Tensor
    sqrt_recip_alpha_bar_minus_one: Tensor
    posterior_weight_x_0: Tensor
    posterior_weight_x_t: Tensor
    posterior_variance: Tensor

    def __init__(
        self, timesteps: int = 1000, shape: BetaShape = "cosine", beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> None:
        super().__init__()
        ScheduleConfig(timesteps=timesteps, shape=shape, beta_start=beta_start, beta_end=beta_end)  # checks them
        betas = BETAS[shape](timesteps, beta_start, beta_end)
        alphas = 1 - betas
        alpha_bar = alphas.cumprod(0)
        alpha_bar_prev = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        tables = {
            "betas": betas,
            "alphas": alphas,
            "alpha_bar": alpha_bar,
            "alpha_bar_prev": alpha_bar_prev,
            "sqrt_alpha_bar": alpha_bar.sqrt(),
            "sqrt_one_minus_alpha_bar": (1 - alpha_bar).sqrt(),
            "sqrt_recip_alpha_bar": (1 / alpha_bar).sqrt(),
            "sqrt_recip_alpha_bar_minus_one": (1 / alpha_bar - 1).sqrt(),
            # eq. 6 and 7: mean and variance of q(x_{t-1} | x_t, x_0)
            "posterior_weight_x_0": betas * alpha_bar_prev.sqrt() / (1 - alpha_bar),
            "posterior_weight_x_t": (1 - alpha_bar_prev) * alphas.sqrt() / (1 - alpha_bar),
            "posterior_variance": betas * (1 - alpha_bar_prev) / (1 - alpha_bar),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.to(torch.float32), persistent=False)
        self._signal: list[float] = [*alpha_bar.tolist(), 1.0]  # the last entry is that of t = -1

    def __len__(self) -> int:
        return len(self._signal) - 1

    def signal(self, t: int) -> float:
        """alpha_bar at ``t`` in double precision; 1 at t = -1, the clean image."""
        if not -1 <= t < len(self):
            raise ValueError(f"t is {t}; this schedule has steps 0 to {len(self) - 1}, and -1 for the clean image")
        return self._signal[t]

    def timesteps(self, steps: int) -> list[int]:
        """Times that a sampler of ``steps`` steps visits, falling from T-1 to 0; T-1 alone for one step.

        Raises:
            ValueError: If ``steps`` is not between 1 and T.
        """
        if not 1 <= steps <= len(self):
            raise ValueError(f"steps is {steps}; this schedule allows 1 to {len(self)}")
        if steps == 1:
            return [len(self) - 1]
        return torch.linspace(0, len(self) - 1, steps, dtype=torch.int64).flip(0).tolist()

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Compute x_t from x_0 and eps, (B, ...), for times t (B,) int64."""
        return _at(self.sqrt_alpha_bar, t, x_0) * x_0 + _at(self.sqrt_one_minus_alpha_bar, t, x_0) * eps

    def x_0_from_eps(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Compute x_0 from x_t and its noise."""
        return _at(self.sqrt_recip_alpha_bar, t, x_t) * x_t - _at(self.sqrt_recip_alpha_bar_minus_one, t, x_t) * eps

    def eps_from_x_0(self, x_t: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        """Compute the noise from x_t and x_0."""
        recip = _at(self.sqrt_recip_alpha_bar, t, x_t)
        return (recip * x_t - x_0) / _at(self.sqrt_recip_alpha_bar_minus_one, t, x_t)

    def velocity(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Compute v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 of Salimans and Ho 2022."""
        return _at(self.sqrt_alpha_bar, t, x_0) * eps - _at(self.sqrt_one_minus_alpha_bar, t, x_0) * x_0

    def x_0_from_velocity(self, x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """Compute x_0 from x_t and its velocity."""
        return _at(self.sqrt_alpha_bar, t, x_t) * x_t - _at(self.sqrt_one_minus_alpha_bar, t, x_t) * v

    def eps_from_velocity(self, x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """Compute the noise from x_t and its velocity."""
        return _at(self.sqrt_one_minus_alpha_bar, t, x_t) * x_t + _at(self.sqrt_alpha_bar, t, x_t) * v

    def posterior_mean(self, x_t: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0), Ho et al. eq. 7."""
        return _at(self.posterior_weight_x_0, t, x_t) * x_0 + _at(self.posterior_weight_x_t, t, x_t) * x_t

    def posterior_log_variance(self, t: Tensor, like: Tensor, fraction: Tensor | float = 0.0) -> Tensor:
        """Log-variance of one reverse step, interpolated between its two bounds.

        Args:
            t: Time of each image, (B,) int64.
            like: Any tensor (B, ...) with the number of dimensions that the result should broadcast against.
            fraction: 0 for the variance of q(x_{t-1} | x_t, x_0), 1 for beta_t; a number or a tensor shaped as
                ``like``.

        Source: Nichol and Dhariwal 2021, eq. 15.
        """
        least = _at(self.posterior_variance, t, like).clamp(min=_LEAST_VARIANCE).log()
        most = _at(self.betas, t, like).clamp(min=_LEAST_VARIANCE).log()
        return fraction * most + (1 - fraction) * least


def _at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Look up entries ``t`` (B,) of a table, shaped (B, 1, ...) to broadcast against ``like`` (B, ...)."""
    return table[t].reshape(-1, *[1] * (like.dim() - 1))


def check_times(times: Sequence[int], schedule: NoiseSchedule) -> list[int]:
    """Raise a `ValueError` unless times fall strictly within the schedule; returns them as integers."""
    visited = [int(t) for t in times]
    falling = all(later < earlier for earlier, later in pairwise(visited))
    if not visited or not falling or visited[0] >= len(schedule) or visited[-1] < 0:
        raise ValueError(f"times must fall strictly within {len(schedule) - 1} to 0, not {visited[:5]} ...")
    return visited
