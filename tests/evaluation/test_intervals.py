import numpy as np
import pytest
import torch

from medgen.evaluation.statistics import intervals
from medgen.evaluation.statistics.intervals import bootstrap, bootstrap_mean, share


def test_wilson_agrees_with_the_textbook():
    # Newcombe 1998, table I: 81 of 263
    value, low, high = share(torch.arange(263) < 81)
    assert (value, low, high) == pytest.approx((0.3080, 0.2553, 0.3662), abs=1e-4)


@pytest.mark.parametrize("hits", [0, 20])
def test_wilson_stays_inside_the_unit_interval(hits):
    value, low, high = share(torch.arange(20) < hits)
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0.1


def test_bootstrap_of_a_mean_has_the_width_of_the_normal_approximation():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    value, low, high = bootstrap_mean(values)
    assert value == pytest.approx(float(values.mean()))
    assert (high - low) / (2 * 1.96 * float(values.std()) / 20) == pytest.approx(1, abs=0.1)


def test_images_of_one_patient_count_as_one():
    values = np.repeat(np.random.default_rng(0).normal(size=40), 10)
    patients = np.repeat(np.arange(40), 10)

    def width(groups):
        _, low, high = bootstrap(lambda counts: counts @ values / counts.sum(1), groups)
        return high - low

    assert width(patients) > 2.5 * width(np.arange(400))


def test_resamples_that_allow_no_number_are_left_out():
    truth = np.array([1, 0, 0, 0])
    _, low, high = bootstrap(lambda counts: np.where(counts @ truth > 0, 1.0, np.nan), np.arange(4))
    assert (low, high) == (1, 1)


def test_the_block_size_changes_nothing(monkeypatch):
    values = np.random.default_rng(0).normal(size=30)

    def mean():
        return bootstrap(lambda counts: counts @ values / counts.sum(1), np.arange(30), resamples=100)

    whole = mean()
    monkeypatch.setattr(intervals, "_BLOCK", 90)
    assert mean() == pytest.approx(whole)
