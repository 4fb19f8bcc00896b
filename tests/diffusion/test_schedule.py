import pytest
import torch

from medgen.diffusion.schedule import BETAS, NoiseSchedule, check_times


@pytest.fixture(params=list(BETAS))
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return NoiseSchedule(100, request.param, 0.001, 0.02)


def test_signal_falls_from_clean_to_nearly_nothing(schedule: NoiseSchedule) -> None:
    signal = [schedule.signal(t) for t in range(-1, len(schedule))]
    assert signal[0] == 1
    assert signal == sorted(signal, reverse=True)


def test_noise_and_clean_image_are_recovered_from_their_mixture(schedule: NoiseSchedule) -> None:
    x_0, eps, t = torch.randn(4, 2, 5, 5), torch.randn(4, 2, 5, 5), torch.tensor([0, 10, 40, 60])
    x_t, v = schedule.add_noise(x_0, eps, t), schedule.velocity(x_0, eps, t)
    torch.testing.assert_close(schedule.x_0_from_eps(x_t, eps, t), x_0, atol=1e-4, rtol=0)
    torch.testing.assert_close(schedule.eps_from_x_0(x_t, x_0, t), eps, atol=1e-4, rtol=0)
    torch.testing.assert_close(schedule.x_0_from_velocity(x_t, v, t), x_0, atol=1e-5, rtol=0)
    torch.testing.assert_close(schedule.eps_from_velocity(x_t, v, t), eps, atol=1e-5, rtol=0)


def test_posterior_agrees_with_bayes_rule_for_a_gaussian_image() -> None:
    # q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x_0): precisions and weighted means add
    schedule, t = NoiseSchedule(50, "linear", 0.01, 0.2), 20
    x_t, x_0 = 0.7, -0.4
    beta, before = schedule.betas[t].item(), schedule.signal(t - 1)
    precision = (1 - beta) / beta + 1 / (1 - before)
    mean = ((1 - beta) ** 0.5 * x_t / beta + before**0.5 * x_0 / (1 - before)) / precision
    times, like = torch.tensor([t]), torch.zeros(1, 1, 1, 1)
    assert schedule.posterior_mean(like + x_t, like + x_0, times).item() == pytest.approx(mean, rel=1e-5)
    assert schedule.posterior_log_variance(times, like).exp().item() == pytest.approx(1 / precision, rel=1e-5)


def test_variance_fraction_one_gives_beta(schedule: NoiseSchedule) -> None:
    t = torch.tensor([0, 3, 99])
    log_variance = schedule.posterior_log_variance(t, torch.zeros(3, 1), 1.0)
    torch.testing.assert_close(log_variance.exp().flatten(), schedule.betas[t])


def test_times_fall_from_the_last_step_to_the_first() -> None:
    schedule = NoiseSchedule(1000, "linear")
    assert schedule.timesteps(4) == [999, 666, 333, 0]
    assert schedule.timesteps(1000) == list(range(999, -1, -1))


def test_one_step_starts_from_pure_noise() -> None:
    assert NoiseSchedule(1000, "linear").timesteps(1) == [999]


@pytest.mark.parametrize("steps", [0, 101])
def test_impossible_number_of_steps_is_refused(schedule: NoiseSchedule, steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps is {steps}; this schedule allows 1 to 100"):
        schedule.timesteps(steps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timesteps": 0}, "timesteps is 0"),
        ({"shape": "sqrt"}, "shape is 'sqrt'; use one of 'linear'"),
        ({"beta_end": 1.5}, "beta_end 1.5"),
    ],
)
def test_impossible_schedule_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("times", [[], [3, 5], [4, 4], [100, 3], [3, -1]])
def test_own_times_must_fall_within_the_schedule(schedule: NoiseSchedule, times: list[int]) -> None:
    with pytest.raises(ValueError, match="times must fall strictly within 99 to 0"):
        check_times(times, schedule)


def test_signal_outside_the_schedule_is_refused(schedule: NoiseSchedule) -> None:
    with pytest.raises(ValueError, match="t is 100"):
        schedule.signal(100)


def test_schedule_adds_nothing_to_a_checkpoint(schedule: NoiseSchedule) -> None:
    assert schedule.state_dict() == {}
