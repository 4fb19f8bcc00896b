import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from medgen.diffusion.objective import DISTANCES, TARGETS, diffusion_loss, variance_loss
from medgen.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule(100)
T = torch.tensor([3, 50])


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(2, 3, 8, 8) * 2 - 1, torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize("objective", TARGETS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_a_perfect_prediction_costs_nothing(batch: tuple[Tensor, Tensor], objective: str, distance: str) -> None:
    x_0, eps = batch
    answer = {"eps": eps, "x_0": x_0, "v": SCHEDULE.velocity(x_0, eps, T)}[objective]
    loss = diffusion_loss(lambda *_: [answer], x_0, T, eps, SCHEDULE, prediction_type=objective, distance=distance)
    assert loss.total == 0


@pytest.mark.parametrize(("distance", "expected"), [("l1", 2.0), ("mse", 4.0), ("huber", 1.5)])
def test_distance_of_a_prediction_that_is_two_off(batch: tuple[Tensor, Tensor], distance: str, expected: float) -> None:
    x_0, eps = batch
    loss = diffusion_loss(lambda *_: [eps + 2], x_0, T, eps, SCHEDULE, distance=distance)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.terms["l1"].item() == pytest.approx(2, rel=1e-5)
    assert loss.terms["mse"].item() == pytest.approx(4, rel=1e-5)


def test_lower_heads_are_compared_with_averaged_targets_and_weigh_half(batch: tuple[Tensor, Tensor]) -> None:
    x_0, eps = batch
    heads = [eps + 3, avg_pool2d(eps, 2) + 6, avg_pool2d(eps, 4) + 12]
    loss = diffusion_loss(lambda *_: heads, x_0, T, eps, SCHEDULE)
    assert loss.total.item() == pytest.approx((3 + 6 / 2 + 12 / 4) / 1.75, rel=1e-5)


def test_network_sees_the_noisy_image(batch: tuple[Tensor, Tensor]) -> None:
    x_0, eps = batch
    seen: list[Tensor] = []
    diffusion_loss(lambda x_t, t, _: [(seen.append(x_t), x_t)[1]], x_0, T, eps, SCHEDULE)
    torch.testing.assert_close(seen, [SCHEDULE.add_noise(x_0, eps, T)])


def test_self_conditioning_gives_the_first_estimate_without_its_gradient(batch: tuple[Tensor, Tensor]) -> None:
    x_0, eps = batch
    scale = torch.tensor(1.0, requires_grad=True)
    given: list[Tensor | None] = []

    def network(x_t: Tensor, t: Tensor, estimate: Tensor | None) -> list[Tensor]:
        given.append(estimate)
        return [eps * scale]

    diffusion_loss(network, x_0, T, eps, SCHEDULE, self_conditioning=True)
    assert given[0] is None
    assert given[1] is not None
    assert not given[1].requires_grad
    torch.testing.assert_close(given[1], x_0, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_variance_is_cheapest_where_it_is_right() -> None:
    # Around a mean that is off by d, the best variance is the posterior's plus d squared
    t, off = torch.tensor([60]), 0.5
    x_0, x_t = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.3)
    fractions = torch.linspace(-1, 3, 4001)
    costs = [variance_loss(SCHEDULE, x_t, x_0, x_0 + off, t, fraction.reshape(1, 1, 1, 1)) for fraction in fractions]
    best = fractions[torch.stack(costs).argmin()]
    learned = SCHEDULE.posterior_log_variance(t, x_t, best.item()).exp().item()
    expected = SCHEDULE.posterior_variance[60] + (SCHEDULE.posterior_weight_x_0[60] * off) ** 2
    assert learned == pytest.approx(expected.item(), rel=1e-3)


def test_learned_variance_does_not_teach_the_prediction(batch: tuple[Tensor, Tensor]) -> None:
    x_0, eps = batch
    prediction, spread = (eps + 1).requires_grad_(), torch.zeros_like(eps).requires_grad_()
    loss = diffusion_loss(lambda *_: [torch.cat([prediction, spread], 1)], x_0, T, eps, SCHEDULE)
    (gradient,) = torch.autograd.grad(loss.total, prediction, retain_graph=True)
    torch.testing.assert_close(gradient, torch.full_like(eps, 1 / eps.numel()))
    assert torch.autograd.grad(loss.total, spread)[0].abs().sum() > 0
    assert loss.terms["variance_fraction"] == 0.5


def test_variance_far_below_its_bounds_keeps_gradients_finite(batch: tuple[Tensor, Tensor]) -> None:
    x_0, eps = batch
    spread = torch.full_like(eps, -9.0).requires_grad_()
    loss = diffusion_loss(lambda *_: [torch.cat([eps, spread], 1)], x_0, torch.tensor([0, 40]), eps, SCHEDULE)
    loss.total.backward()
    assert spread.grad is not None
    assert spread.grad.isfinite().all()


def test_published_variance_does_not_depend_on_the_prediction(batch: tuple[Tensor, Tensor]) -> None:
    x_0, eps = batch

    def term(prediction: Tensor, mean: str) -> float:
        output = [torch.cat([prediction, torch.zeros_like(eps)], 1)]
        return diffusion_loss(lambda *_: output, x_0, T, eps, SCHEDULE, variance_mean=mean).terms["variance"].item()

    assert term(eps, "truth") == pytest.approx(term(eps + 1, "truth"))
    assert term(eps + 1, "estimate") > term(eps, "estimate")


def test_unknown_distance_is_refused(batch: tuple[Tensor, Tensor]) -> None:
    x_0, eps = batch
    with pytest.raises(ValueError, match="distance is 'l3'; use one of 'l1'"):
        diffusion_loss(lambda *_: [eps], x_0, T, eps, SCHEDULE, distance="l3")  # type: ignore[arg-type]


def test_half_precision_outputs_are_compared_in_full(batch: tuple[Tensor, Tensor]) -> None:
    x_0, eps = batch
    loss = diffusion_loss(lambda *_: [eps.bfloat16()], x_0, T, eps, SCHEDULE, distance="mse")
    torch.testing.assert_close(loss.total, (eps.bfloat16().float() - eps).square().mean())
