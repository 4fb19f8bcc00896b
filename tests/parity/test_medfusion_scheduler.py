"""The noise schedule against the official GaussianNoiseScheduler."""

import pytest
import torch
from torch import Tensor

from medgen.diffusion.schedule import NoiseSchedule
from tests.parity.conftest import Case, cases
from tests.parity.medfusion_pipeline import build_schedule

BUFFERS = {
    "betas": "betas",
    "alphas": "alphas",
    "alphas_cumprod": "alpha_bar",
    "alphas_cumprod_prev": "alpha_bar_prev",
    "sqrt_alphas_cumprod": "sqrt_alpha_bar",
    "sqrt_one_minus_alphas_cumprod": "sqrt_one_minus_alpha_bar",
    "sqrt_recip_alphas_cumprod": "sqrt_recip_alpha_bar",
    "sqrt_recipm1_alphas_cumprod": "sqrt_recip_alpha_bar_minus_one",
    "posterior_mean_coef1": "posterior_weight_x_0",
    "posterior_mean_coef2": "posterior_weight_x_t",
    "posterior_variance": "posterior_variance",
}

pytestmark = pytest.mark.parametrize("case", cases("medfusion_scheduler"))


@pytest.fixture
def schedule(case: Case) -> NoiseSchedule:
    return build_schedule(case.kwargs)


def estimate_x_0(case: Case, schedule: NoiseSchedule, clip: bool) -> Tensor:
    x_0 = schedule.x_0_from_eps(case.inputs["x_t"], case.inputs["x_T"], case.inputs["t"])
    return x_0.clamp(-1, 1) if clip else x_0


def test_every_table_equals_the_official_one(case: Case, schedule: NoiseSchedule) -> None:
    tables = {name.removeprefix("buffer_") for name in case.outputs if name.startswith("buffer_")}
    assert tables == {*BUFFERS, "timesteps_array"}
    for official, ours in BUFFERS.items():
        case.check(f"buffer_{official}", getattr(schedule, ours))


def test_visiting_every_time_equals_the_official_order(case: Case, schedule: NoiseSchedule) -> None:
    assert schedule.timesteps(len(schedule)) == case.outputs["buffer_timesteps_array"].flip(0).tolist()


def test_noisy_image_equals_the_official_one(case: Case, schedule: NoiseSchedule) -> None:
    case.check("estimate_x_t", schedule.add_noise(case.inputs["x_0"], case.inputs["x_T"], case.inputs["t"]))


@pytest.mark.parametrize("clip", [False, True])
def test_estimates_of_image_and_noise_equal_the_official_ones(case: Case, schedule: NoiseSchedule, clip: bool) -> None:
    x_0 = case.inputs["x_0"].clamp(-1, 1) if clip else case.inputs["x_0"]
    case.check(f"estimate_x_0_clip{clip:d}", estimate_x_0(case, schedule, clip))
    case.check(f"estimate_x_T_clip{clip:d}", schedule.eps_from_x_0(case.inputs["x_t"], x_0, case.inputs["t"]))


def test_posterior_equals_the_official_one(case: Case, schedule: NoiseSchedule) -> None:
    t, x_t = case.inputs["t"], case.inputs["x_t"]
    case.check("mean_t", schedule.posterior_mean(x_t, case.inputs["x_0"], t))
    case.check("logvar_min", schedule.posterior_log_variance(t, x_t))
    case.check("logvar_max", schedule.posterior_log_variance(t, x_t, 1.0))
    halfway = (schedule.posterior_variance[t] + schedule.betas[t]) / 2
    case.check("var_half_nolog", halfway.reshape(-1, *[1] * (x_t.dim() - 1)))


@pytest.mark.parametrize("clip", [False, True])
def test_one_reverse_step_equals_the_official_one(case: Case, schedule: NoiseSchedule, clip: bool) -> None:
    t, x_t, noise = case.inputs["t"], case.inputs["x_t"], case.inputs["noise"]

    def step(x_0: Tensor, fraction: float) -> Tensor:
        std = (schedule.posterior_log_variance(t, x_t, fraction) / 2).exp()
        std = torch.where((t > 0).reshape(std.shape), std, 0)
        return schedule.posterior_mean(x_t, x_0, t) + std * noise

    given = case.inputs["x_0"].clamp(-1, 1) if clip else case.inputs["x_0"]
    case.check(f"prior_from_x_0_clip{clip:d}", step(given, 0.0))
    for fraction in (0, 1):
        x_0 = estimate_x_0(case, schedule, clip)
        case.check(f"prior_from_x_T_clip{clip:d}_vs{fraction}", step(x_0, float(fraction)))


def test_one_cold_step_equals_the_official_one(case: Case, schedule: NoiseSchedule) -> None:
    # Exchanges the noise of time t in x_t for that of t - 1 (Bansal et al. 2022, "Cold diffusion", algorithm 2)
    t, x_t = case.inputs["t"], case.inputs["x_t"]
    x_0 = estimate_x_0(case, schedule, clip=False)
    eps = schedule.eps_from_x_0(x_t, estimate_x_0(case, schedule, clip=True), t)
    before = schedule.add_noise(x_0, eps, (t - 1).clamp(min=0))
    before = torch.where((t > 0).reshape(-1, *[1] * (x_t.dim() - 1)), before, x_0)
    case.check("cold_prior_from_x_T", x_t - schedule.add_noise(x_0, eps, t) + before)
