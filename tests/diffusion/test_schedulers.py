import sys

import pytest
import torch

from medgen.diffusion.denoiser import Estimate
from medgen.diffusion.registry import find_sampler
from medgen.diffusion.schedule import NoiseSchedule
from medgen.diffusion.schedulers import REFUSED, SHORT_NAMES, diffusers_sampler
from medgen.noise import NoiseSource
from tests.diffusion.gaussian import GaussianDenoiser

pytest.importorskip("diffusers", reason="the samplers of diffusers need medgen[diffusers]")
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers and numpy 2

CLASS_NAMES = ["DDIMScheduler", "DDPMScheduler", "DPMSolverSinglestepScheduler"]
PUBLISHED = NoiseSchedule(1000, "scaled_linear", 0.002, 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHORT_NAMES, *CLASS_NAMES])
def test_every_scheduler_reaches_the_distribution_of_the_data(name: str) -> None:
    denoise = GaussianDenoiser(PUBLISHED, std=1.0)
    images = find_sampler(name)(denoise, NoiseSource(0, range(16)), (1, 32, 32), PUBLISHED, steps=100)
    assert images.mean().item() == pytest.approx(0.3, abs=0.03)
    assert images.std().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("name", ["dpm++", "unipc"])
@pytest.mark.parametrize("std", [0.3, 1.0, 2.0])
def test_twenty_steps_of_a_fast_solver_keep_the_spread_of_the_data(name: str, std: float) -> None:
    denoise = GaussianDenoiser(PUBLISHED, std=std)
    images = find_sampler(name)(denoise, NoiseSource(0, range(16)), (1, 32, 32), PUBLISHED, steps=20)
    assert images.std().item() == pytest.approx(std, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHORT_NAMES, *CLASS_NAMES])
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    def sample(indices: list[int]) -> torch.Tensor:
        return find_sampler(name)(GaussianDenoiser(PUBLISHED), NoiseSource(5, indices), (1, 4, 4), PUBLISHED, steps=8)

    together = sample([0, 1, 2, 3])
    torch.testing.assert_close(together[2:3], sample([2]), atol=1e-5, rtol=0)
    assert not torch.equal(together[1], together[2])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpm++_sde", "euler_ancestral", "kdpm2_ancestral", "sa", "DDPMScheduler"])
def test_stochastic_schedulers_draw_different_noise_for_every_image(name: str) -> None:
    class SameStart(NoiseSource):
        def normal(self, *shape: int) -> torch.Tensor:
            drawn = super().normal(*shape)
            return drawn if shape == (4,) else drawn[:1].expand_as(drawn)

    images = find_sampler(name)(GaussianDenoiser(PUBLISHED), SameStart(0, range(2)), (1, 4, 4), PUBLISHED, steps=8)
    assert (images[0] - images[1]).abs().max() > 0.01


def test_steps_that_round_to_the_same_time_are_taken_twice() -> None:
    schedule = NoiseSchedule(50, "cosine")
    images = find_sampler("dpm++")(
        GaussianDenoiser(schedule), NoiseSource(0, range(4)), (1, 16, 16), schedule, steps=40
    )
    assert images.isfinite().all()


def test_clipping_in_the_denoiser_reaches_the_images() -> None:
    def denoise(x_t: torch.Tensor, t: torch.Tensor) -> Estimate:
        estimate = GaussianDenoiser(PUBLISHED, std=3.0)(x_t, t)
        return estimate._replace(x_0=estimate.x_0.clamp(-1, 1))

    images = find_sampler("dpm++")(denoise, NoiseSource(0, range(4)), (1, 8, 8), PUBLISHED, steps=10)
    assert images.abs().max() <= 1 + 1e-3


def test_timestep_spacing_changes_where_the_steps_are() -> None:
    def times(spacing: str) -> list[int]:
        seen: list[int] = []

        def denoise(x_t: torch.Tensor, t: torch.Tensor) -> Estimate:
            seen.append(int(t[0]))
            return GaussianDenoiser(PUBLISHED)(x_t, t)

        sampler = diffusers_sampler("DDIMScheduler", timestep_spacing=spacing)  # type: ignore[arg-type]
        sampler(denoise, NoiseSource(0, [0]), (1, 4, 4), PUBLISHED, steps=4)
        return seen

    assert times("linspace") == [999, 666, 333, 0]
    assert times("trailing") == [999, 749, 499, 249]
    assert times("leading") == [750, 500, 250, 0]


def test_short_names_are_taken_in_any_case() -> None:
    assert callable(find_sampler("UniPC"))


@pytest.mark.parametrize("name", ["ddmi", "DDMIScheduler", "FlowMatchEulerDiscreteScheduler", "UNet2DModel", *REFUSED])
def test_a_scheduler_that_cannot_serve_is_refused_with_the_names_that_can(name: str) -> None:
    with pytest.raises(ValueError, match=rf"sampler '{name}'.*'ddim', 'ancestral', 'dpm\+\+'"):
        find_sampler(name)


def test_an_option_the_scheduler_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="HeunDiscreteScheduler has no option solver_order"):
        diffusers_sampler("heun", solver_order=3)


def test_too_many_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="steps is 1001"):
        find_sampler("dpm++")(GaussianDenoiser(PUBLISHED), NoiseSource(0, [0]), (1, 4, 4), PUBLISHED, steps=1001)


def test_missing_diffusers_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r'pip install "medgen\[diffusers\]"'):
        find_sampler("dpm++")
