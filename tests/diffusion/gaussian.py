"""A problem with a known answer: independent Gaussian pixels, whose best denoiser is a line."""

from dataclasses import dataclass

import torch
from torch import Tensor

from medgen.diffusion.denoiser import Estimate
from medgen.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True)
class GaussianDenoiser:
    """The best possible denoiser of pixels drawn from N(mean, std^2)."""

    schedule: NoiseSchedule
    mean: float = 0.3
    std: float = 0.5

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        alpha_bar = self.schedule.alpha_bar[t].reshape(-1, *[1] * (x_t.dim() - 1))
        variance = alpha_bar * self.std**2 + 1 - alpha_bar  # of x_t
        x_0 = self.mean + self.std**2 * alpha_bar.sqrt() / variance * (x_t - alpha_bar.sqrt() * self.mean)
        eps = (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
        # The variance of x_{t-1} given x_t adds what is not known about x_0: its place between the bounds, in log space
        spread = self.std**2 * (1 - alpha_bar) / variance
        true = self.schedule.posterior_variance[t].reshape(alpha_bar.shape)
        true = true + self.schedule.posterior_weight_x_0[t].reshape(alpha_bar.shape) ** 2 * spread
        least = self.schedule.posterior_log_variance(t, x_t)
        most = self.schedule.posterior_log_variance(t, x_t, 1.0)
        return Estimate(x_0, eps, ((true.log() - least) / (most - least)).expand_as(x_t))


def without_variance(denoiser: GaussianDenoiser, x_t: Tensor, t: Tensor) -> Estimate:
    return denoiser(x_t, t)._replace(variance=None)


class Fixed:
    """A noise source that hands out given tensors, in order."""

    def __init__(self, *draws: Tensor) -> None:
        self.draws = list(draws)

    def normal(self, *shape: int) -> Tensor:
        draw = self.draws.pop(0)
        assert draw.shape[1:] == torch.Size(shape)
        return draw
