import pytest
import torch

from medgen.evaluation.metrics.precision_recall import DensityCoverage, PrecisionRecall, crowding, precision_recall
from medgen.evaluation.statistics import distances


def line(*positions):
    return torch.tensor(positions, dtype=torch.float32)[:, None]


def brute_force(real, generated, k):
    """Equations 1 to 3 of the paper, read out loud."""

    def share_inside(queries, manifold):
        distance = torch.cdist(manifold.double(), manifold.double())
        radius = distance.sort(dim=1).values[:, k]  # column 0 is the point itself
        return sum(bool((torch.cdist(q[None].double(), manifold.double())[0] <= radius).any()) for q in queries) / len(
            queries
        )

    return share_inside(generated, real), share_inside(real, generated)


def test_points_on_a_line_give_the_counted_shares():
    real = line(0, 1, 2, 3)  # k = 1: every ball has radius 1, together they cover [-1, 4]
    generated = line(4, 6, 9, 12)  # radii 2, 2, 3, 3: they cover [2, 15]
    precision, recall = precision_recall(real, generated, k=1)
    assert precision.item() == 1 / 4  # only 4 lies in [-1, 4]
    assert recall.item() == 2 / 4  # 2 and 3 lie in [2, 15]


def test_a_set_against_itself_is_perfect():
    points = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    assert [value.item() for value in precision_recall(points, points)] == [1, 1]


def test_mode_collapse_costs_recall_and_not_precision():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(200, 2, generator=generator)
    collapsed = 0.05 * torch.randn(200, 2, generator=generator)
    precision, recall = precision_recall(real, collapsed)
    assert precision > 0.95
    assert recall < 0.05


def test_noise_costs_precision_and_not_recall():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(200, 2, generator=generator)
    noisy = 10 * torch.randn(200, 2, generator=generator)
    precision, recall = precision_recall(real, noisy)
    assert precision < 0.2
    assert recall > 0.9


@pytest.mark.parametrize("k", [1, 3, 5])
def test_shares_equal_a_brute_force_count(k):
    generator = torch.Generator().manual_seed(k)
    real, generated = torch.randn(60, 4, generator=generator), torch.randn(45, 4, generator=generator) * 0.8 + 0.3
    assert [v.item() for v in precision_recall(real, generated, k=k)] == pytest.approx(brute_force(real, generated, k))


@pytest.mark.parametrize("k", [3, 5])
def test_shares_equal_those_of_torch_fidelity(k):
    peer = pytest.importorskip("torch_fidelity.metric_prc", reason="torch-fidelity is not installed")
    generator = torch.Generator().manual_seed(0)
    real, generated = torch.rand(300, 64, generator=generator), torch.rand(200, 64, generator=generator) * 0.9
    expected = peer.calculate_precision_recall_full(generated, real, neighborhood=k)
    assert [v.item() for v in precision_recall(real, generated, k=k)] == pytest.approx(expected, abs=1e-4)


def test_the_block_size_does_not_change_the_result(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    real, generated = torch.randn(50, 3, generator=generator), torch.randn(70, 3, generator=generator)
    whole = precision_recall(real, generated)
    monkeypatch.setattr(distances, "_BLOCK", 100)
    assert precision_recall(real, generated) == whole


def test_f1_is_the_harmonic_mean():
    metric = PrecisionRecall(1, ks=[1])
    metric.update(line(0, 1, 2, 3), real=True)
    metric.update(line(4, 6), real=False)
    metric.update(line(9, 12), real=False)
    assert metric.compute()["f1_k1"].item() == pytest.approx(2 * (1 / 4) * (1 / 2) / (1 / 4 + 1 / 2))


def test_f1_of_sets_far_apart_is_zero():
    metric = PrecisionRecall(1, ks=[1])
    metric.update(line(0, 1), real=True)
    metric.update(line(100, 101), real=False)
    numbers = metric.compute()
    assert numbers["precision_k1"] == numbers["recall_k1"] == numbers["f1_k1"] == 0


def test_a_set_too_small_for_k_is_refused():
    with pytest.raises(ValueError, match="generated set has 3 images; k = 3 neighbours need at least 4"):
        precision_recall(torch.zeros(10, 2), torch.zeros(3, 2), k=3)


def test_density_and_coverage_of_points_on_a_line():
    real = line(0, 1, 2, 3, 4, 20, 21)  # k = 1: radius 1 each
    generated = line(2.5, 3.5, 20.25)
    hits = crowding(real, generated, k=1)
    assert hits.crowd.tolist() == [2, 2, 2]  # balls of 2 and 3, of 3 and 4, of 20 and 21
    assert hits.reached.tolist() == [False, False, True, True, True, True, True]


def test_an_outlier_inflates_precision_but_not_density():
    generator = torch.Generator().manual_seed(0)
    real = torch.cat([torch.randn(100, 2, generator=generator), torch.tensor([[30.0, 0.0]])])
    beside = 15 + 0.1 * torch.randn(100, 2, generator=generator)
    numbers = {}
    for metric in (PrecisionRecall(2, ks=[5]), DensityCoverage(2)):
        metric.update(real, real=True)
        metric.update(beside, real=False)
        numbers |= {name: float(value) for name, value in metric.compute().items()}
    assert numbers["precision_k5"] > 0.9  # the ball of the outlier is huge
    assert numbers["density"] < 0.25
    assert numbers["coverage"] < 0.05


def test_real_images_have_density_and_coverage_near_one():
    generator = torch.Generator().manual_seed(0)
    metric = DensityCoverage(4)
    for real in (True, False):
        metric.update(torch.randn(600, 4, generator=generator), real=real)
    numbers = metric.compute()
    assert numbers["density"].item() == pytest.approx(1, abs=0.1)
    assert numbers["coverage"].item() == pytest.approx(1 - 1 / 2**5, abs=0.03)  # eq. 7 of the paper
    assert numbers["density_low"] < numbers["density"] < numbers["density_high"]
