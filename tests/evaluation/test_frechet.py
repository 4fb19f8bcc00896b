import pytest
import torch
from torchmetrics.image.fid import _compute_fid

from medgen.evaluation.metrics.frechet import (
    FrechetDistance,
    FrechetDistanceToInfinity,
    frechet_distance,
    frechet_distance_to_infinity,
)


def gaussian(n, mean, scale, seed):
    """n points whose sample mean and covariance are exactly `mean` and diag(scale)^2."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, len(mean), generator=generator, dtype=torch.float64)
    points = points - points.mean(0)
    points = points @ torch.linalg.inv(torch.linalg.cholesky(points.T.cov())).T
    return points * torch.tensor(scale, dtype=torch.float64) + torch.tensor(mean, dtype=torch.float64)


def random_covariance(dim, rank, seed):
    factor = torch.randn(dim, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return factor @ factor.T / rank


def filled(real, generated):
    metric = FrechetDistance(real.shape[1])
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return metric


def test_two_gaussians_give_the_formula():
    metric = filled(gaussian(200, [0, 1], [1, 2], 0), gaussian(300, [3, 1], [4, 1], 1))
    expected = 3**2 + (4 - 1) ** 2 + (2 - 1) ** 2  # squared difference of the means and of the standard deviations
    assert metric.compute()["fd"].item() == pytest.approx(expected, rel=1e-9)


def test_correlated_gaussians_agree_with_torchmetrics():
    mean_a, mean_b = torch.zeros(12, dtype=torch.float64), torch.linspace(0, 1, 12, dtype=torch.float64)
    a, b = random_covariance(12, 40, 0), random_covariance(12, 40, 1)
    assert frechet_distance(mean_a, a, mean_b, b).item() == pytest.approx(_compute_fid(mean_a, a, mean_b, b).item())


def test_a_set_is_at_distance_zero_from_itself():
    points = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert filled(points, points).compute()["fd"].item() == pytest.approx(0, abs=1e-9)


def test_fewer_images_than_dimensions_give_a_finite_distance():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(10, 64, generator=generator) for _ in range(2))
    distance = filled(a, b).compute()["fd"].item()
    # With singular covariances the trace term is the nuclear norm of the product of the centred data matrices.
    a_centred, b_centred = ((x - x.mean(0)).double() / 3 for x in (a, b))
    cross = torch.linalg.matrix_norm(a_centred @ b_centred.T, "nuc")
    expected = (
        (a.mean(0) - b.mean(0)).double().square().sum()
        + a_centred.square().sum()
        + b_centred.square().sum()
        - 2 * cross
    )
    assert distance == pytest.approx(expected.item(), rel=1e-6)


def test_batches_of_any_size_give_the_same_distance():
    generator = torch.Generator().manual_seed(0)
    real, generated = torch.randn(40, 6, generator=generator), torch.rand(40, 6, generator=generator)
    in_parts = FrechetDistance(6)
    for start in range(0, 40, 7):
        in_parts.update(generated[start : start + 7], real=False)
        in_parts.update(real[start : start + 7], real=True)
    assert in_parts.compute()["fd"].item() == pytest.approx(filled(real, generated).compute()["fd"].item(), rel=1e-12)


def test_a_large_mean_does_not_drown_a_small_spread():
    narrow, wide = gaussian(500, [1000, 0], [0.01, 1], 0), gaussian(500, [1000, 0], [0.02, 1], 1)
    assert filled(narrow, wide).compute()["fd"].item() == pytest.approx(0.01**2, rel=1e-3)


def test_one_image_is_refused():
    with pytest.raises(ValueError, match="generated set has 1 images"):
        filled(torch.randn(5, 4), torch.randn(1, 4)).compute()


def test_nan_features_are_refused():
    with pytest.raises(ValueError, match="NaN or infinity"):
        FrechetDistance(4).update(torch.full((2, 4), torch.nan), real=True)


def test_vectors_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 5\); expected \(B, 4\)"):
        FrechetDistance(4).update(torch.zeros(2, 5), real=True)


def test_followed_to_infinity_few_images_come_nearer_to_the_truth():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(20_000, 8, generator=generator, dtype=torch.float64)
    found = []
    for _ in range(8):
        generated = torch.randn(200, 8, generator=generator, dtype=torch.float64)  # of the same distribution
        plain = filled(real, generated).compute()["fd"].item()
        found.append((plain, frechet_distance_to_infinity(real, generated).item()))
    plain, infinite = torch.tensor(found).mean(0).tolist()
    assert plain > 0.08
    assert abs(infinite) < plain / 4


def test_too_few_images_for_a_line_are_refused():
    metric = FrechetDistanceToInfinity(6)
    metric.update(torch.randn(50, 6), real=True)
    metric.update(torch.randn(19, 6), real=False)
    with pytest.raises(ValueError, match="generated set has 19 images; FrechetDistanceToInfinity needs at least 20"):
        metric.compute()
