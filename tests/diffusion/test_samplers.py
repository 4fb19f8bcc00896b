from functools import partial

import pytest
import torch

from medgen.diffusion.registry import find_sampler
from medgen.diffusion.samplers import SAMPLERS, ancestral, ddim
from medgen.diffusion.schedule import NoiseSchedule
from medgen.noise import NoiseSource
from tests.diffusion.gaussian import Fixed, GaussianDenoiser, without_variance

SHAPE = (1, 32, 32)


@pytest.fixture(params=["scaled_linear", "cosine"])
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return NoiseSchedule(1000, request.param, 0.002, 0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("eta", "steps"), [(0.0, 300), (0.5, 500), (1.0, 1000)])
def test_ddim_reaches_the_distribution_of_the_data(schedule: NoiseSchedule, eta: float, steps: int) -> None:
    images = ddim(GaussianDenoiser(schedule), NoiseSource(0, range(16)), SHAPE, schedule, steps=steps, eta=eta)
    assert images.mean().item() == pytest.approx(0.3, abs=0.02)
    assert images.std().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
def test_ancestral_sampling_reaches_the_distribution_of_the_data(schedule: NoiseSchedule) -> None:
    denoise = partial(without_variance, GaussianDenoiser(schedule))
    images = ancestral(denoise, NoiseSource(0, range(16)), SHAPE, schedule, steps=1000)
    assert images.mean().item() == pytest.approx(0.3, abs=0.02)
    assert images.std().item() == pytest.approx(0.5, abs=0.02)


def test_ancestral_sampling_uses_the_learned_variance() -> None:
    # With ten coarse steps the smaller bound loses variance; the true one, which this denoiser knows, does not
    schedule = NoiseSchedule(10, "linear", 0.05, 0.9)
    denoise = GaussianDenoiser(schedule)
    exact = ancestral(denoise, NoiseSource(0, range(64)), SHAPE, schedule, steps=10)
    narrow = ancestral(partial(without_variance, denoise), NoiseSource(0, range(64)), SHAPE, schedule, steps=10)
    last_step = (
        denoise.std**2 * (1 - schedule.signal(0)) / (denoise.std**2 * schedule.signal(0) + 1 - schedule.signal(0))
    )
    expected = (denoise.std**2 - last_step) ** 0.5  # the last step returns a mean, without its own spread
    assert exact.std().item() == pytest.approx(expected, abs=0.005)
    assert narrow.std().item() < expected - 0.05


def test_full_noise_ddim_equals_ancestral_sampling_for_any_spacing(schedule: NoiseSchedule) -> None:
    denoise = partial(without_variance, GaussianDenoiser(schedule))
    images = [
        sampler(denoise, NoiseSource(0, range(2)), SHAPE, schedule, steps=25)
        for sampler in (SAMPLERS["ddim"], ancestral)
    ]
    torch.testing.assert_close(*images, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(name: str, schedule: NoiseSchedule) -> None:
    sample = partial(SAMPLERS[name], GaussianDenoiser(schedule), shape=SHAPE, schedule=schedule, steps=12)
    together, alone = sample(noise=NoiseSource(7, range(4))), sample(noise=NoiseSource(7, [2]))
    torch.testing.assert_close(together[2:3], alone, atol=1e-6, rtol=0)


def test_deterministic_ddim_draws_only_the_start() -> None:
    schedule = NoiseSchedule(100)
    noise = Fixed(torch.randn(2, 3, 4, 4))
    ddim(GaussianDenoiser(schedule), noise, (3, 4, 4), schedule, steps=5, eta=0)
    assert noise.draws == []


def test_one_step_returns_the_estimate_from_pure_noise() -> None:
    schedule, start = NoiseSchedule(100), torch.randn(2, 1, 4, 4)
    denoise = GaussianDenoiser(schedule)
    for sampler in SAMPLERS.values():
        images = sampler(denoise, Fixed(start), (1, 4, 4), schedule, steps=1)
        torch.testing.assert_close(images, denoise(start, torch.tensor([99, 99])).x_0)


def test_own_times_are_the_ones_visited() -> None:
    schedule, seen = NoiseSchedule(100), []

    def denoise(x_t: torch.Tensor, t: torch.Tensor):
        seen.append(t.tolist())
        return GaussianDenoiser(schedule)(x_t, t)

    for sampler in SAMPLERS.values():
        seen.clear()
        sampler(denoise, NoiseSource(0, range(2)), (1, 4, 4), schedule, times=[70, 20, 3])
        assert seen == [[70, 70], [20, 20], [3, 3]]


def test_samplers_take_volumes() -> None:
    schedule = NoiseSchedule(100)
    for sampler in SAMPLERS.values():
        assert sampler(GaussianDenoiser(schedule), NoiseSource(0, [0]), (1, 4, 5, 6), schedule, steps=3).shape == (
            1,
            1,
            4,
            5,
            6,
        )


def test_eta_out_of_range_is_refused() -> None:
    schedule = NoiseSchedule(100)
    with pytest.raises(ValueError, match="eta is 2; use 0"):
        ddim(GaussianDenoiser(schedule), NoiseSource(0, [0]), (1, 4, 4), schedule, steps=5, eta=2)


def test_samplers_are_found_by_name() -> None:
    assert find_sampler("ddim") is ddim
