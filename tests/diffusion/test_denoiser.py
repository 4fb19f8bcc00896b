import pytest
import torch
from torch import Tensor

from medgen.diffusion.denoiser import NetworkDenoiser, guided
from medgen.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule(100)
X, T = torch.randn(2, 3, 4, 4), torch.tensor([5, 60])


class LabelNetwork:
    """Says its label (0 for none) in every pixel and, if wanted, minus that as its variance; counts its calls."""

    def __init__(self, variance: bool = False) -> None:
        self.variance = variance
        self.batches: list[int] = []

    def __call__(self, x_t: Tensor, t: Tensor, label: Tensor | None, x_0: Tensor | None) -> Tensor:
        self.batches.append(len(x_t))
        value = torch.zeros(len(x_t)) if label is None else label.float().reshape(len(x_t), -1).amax(1)
        value = torch.where(value.isnan() | (value < 0), 0.0, value).reshape(-1, 1, 1, 1).expand_as(x_t)
        return torch.cat([value, -value], dim=1) if self.variance else value


@pytest.mark.parametrize("objective", ["eps", "x_0", "v"])
def test_every_objective_gives_the_same_estimate_for_a_perfect_network(objective: str) -> None:
    x_0, eps = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    answer = {"eps": eps, "x_0": x_0, "v": SCHEDULE.velocity(x_0, eps, T)}[objective]
    denoise = NetworkDenoiser(lambda x_t, t, _: answer, SCHEDULE, prediction_type=objective)  # type: ignore[arg-type]
    estimate = denoise(SCHEDULE.add_noise(x_0, eps, T), T)
    torch.testing.assert_close(estimate.x_0, x_0, atol=1e-4, rtol=0)
    torch.testing.assert_close(estimate.eps, eps, atol=1e-4, rtol=0)
    assert estimate.variance is None


def test_clipping_holds_the_clean_image_but_not_the_noise() -> None:
    estimate = NetworkDenoiser(lambda x_t, t, _: 9 * x_t, SCHEDULE, clip=True)(X, T)
    assert estimate.x_0.abs().max() <= 1
    assert torch.equal(estimate.eps, 9 * X)


def test_second_half_of_the_channels_is_the_variance() -> None:
    estimate = NetworkDenoiser(lambda x_t, t, _: torch.cat([x_t, x_t - x_t - 1], 1), SCHEDULE)(X, T)
    assert torch.equal(estimate.eps, X)
    assert estimate.variance is not None
    assert torch.equal(estimate.variance, torch.zeros_like(X))


def test_wrong_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="4 channels for an x_t of 3"):
        NetworkDenoiser(lambda x_t, t, _: torch.zeros(2, 4, 4, 4), SCHEDULE)(X, T)


def test_unknown_objective_is_refused() -> None:
    with pytest.raises(ValueError, match="prediction_type is 'score'; use one of 'eps'"):
        NetworkDenoiser(lambda x_t, t, _: x_t, SCHEDULE, prediction_type="score")(X, T)  # type: ignore[arg-type]


def test_self_conditioning_gives_the_network_its_last_estimate() -> None:
    given: list[Tensor | None] = []

    def network(x_t: Tensor, t: Tensor, x_0: Tensor | None) -> Tensor:
        given.append(x_0)
        return x_t

    denoise = NetworkDenoiser(network, SCHEDULE, self_conditioning=True)
    first = denoise(X, T)
    denoise(X, T)
    assert given[0] is None
    assert given[1] is first.x_0


def test_without_self_conditioning_the_network_never_gets_an_estimate() -> None:
    given: list[Tensor | None] = []
    denoise = NetworkDenoiser(lambda x_t, t, x_0: (given.append(x_0), x_t)[1], SCHEDULE)
    denoise(X, T)
    denoise(X, T)
    assert given == [None, None]


def test_guidance_goes_beyond_the_label_in_one_double_batch() -> None:
    network = LabelNetwork()
    prediction = guided(network, torch.tensor([1, 2]), weight=3.0)(X, T, None)
    assert prediction[:, 0, 0, 0].tolist() == [3.0, 6.0]
    assert network.batches == [4]


def test_guidance_moves_away_from_a_negative_label() -> None:
    prediction = guided(LabelNetwork(), torch.tensor([1, 2]), weight=3.0, negative=torch.tensor([2, 2]))(X, T, None)
    assert prediction[:, 0, 0, 0].tolist() == [-1.0, 2.0]


def test_guidance_leaves_out_conditions_given_as_vectors() -> None:
    prediction = guided(LabelNetwork(), torch.tensor([[0.0, 1.0], [0.0, 2.0]]), weight=2.0)(X, T, None)
    assert prediction[:, 0, 0, 0].tolist() == [2.0, 4.0]


def test_guidance_takes_the_learned_variance_from_the_pass_with_the_label() -> None:
    output = guided(LabelNetwork(variance=True), torch.tensor([1, 2]), weight=3.0)(X, T, X)
    assert output[:, :3, 0, 0].unique(dim=1).flatten().tolist() == [3.0, 6.0]
    assert output[:, 3:, 0, 0].unique(dim=1).flatten().tolist() == [-1.0, -2.0]


@pytest.mark.parametrize(("label", "weight"), [(torch.tensor([1, 2]), 1.0), (None, 8.0)])
def test_nothing_to_guide_runs_one_pass(label: Tensor | None, weight: float) -> None:
    network = LabelNetwork()
    guided(network, label, weight=weight)(X, T, None)
    assert network.batches == [2]


def test_negative_label_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="negative has shape"):
        guided(LabelNetwork(), torch.tensor([1, 2]), weight=2, negative=torch.tensor([1]))


def test_a_half_precision_network_takes_full_precision_steps() -> None:
    labels = torch.tensor([1, 2])
    network = guided(lambda x_t, t, label, x_0: x_t.bfloat16(), labels, weight=3.0)
    estimate = NetworkDenoiser(network, SCHEDULE)(X, T)
    assert estimate.x_0.dtype == estimate.eps.dtype == torch.float32
