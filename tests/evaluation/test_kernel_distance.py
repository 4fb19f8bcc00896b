import numpy as np
import pytest
import torch
from torchmetrics.image.kid import KernelInceptionDistance

from medgen.evaluation import KernelDistance
from medgen.evaluation.metrics.kernel_distance import kernel_distance


def sets(n=60, m=45, dim=16, shift=0.3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, dim, generator=generator), torch.randn(m, dim, generator=generator) + shift


def test_equals_torchmetrics_on_the_same_features():
    real, generated = sets(50, 50)
    peer = KernelInceptionDistance(torch.nn.Identity(), subsets=1, subset_size=50)
    peer.inception.num_features = 16
    peer.update(real, real=True)
    peer.update(generated, real=False)
    expected, _ = peer.compute()
    assert kernel_distance(real, generated, resamples=1).value == pytest.approx(float(expected), abs=1e-4)


def test_is_the_textbook_sum_over_pairs():
    real, generated = sets(7, 5, 3)

    def kernel(a, b):
        return (a @ b.T / 3 + 1).double() ** 3

    within = [
        (k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (kernel(real, real), kernel(generated, generated))
    ]
    expected = sum(within) - 2 * kernel(real, generated).mean()
    assert kernel_distance(real, generated).value == pytest.approx(float(expected), rel=1e-6)


def test_equal_distributions_are_at_zero_and_others_are_not():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 200, 8, generator=generator)
    same, other = kernel_distance(a, b), kernel_distance(a, b + 0.5)
    assert same.low < 0 < same.high
    assert other.low > 0


def test_blocks_change_nothing(monkeypatch):
    real, generated = sets()
    whole = kernel_distance(real, generated)
    monkeypatch.setattr("medgen.evaluation.metrics.kernel_distance._BLOCK", 100)
    assert np.allclose(kernel_distance(real, generated), whole)


def test_a_set_of_one_is_refused():
    metric = KernelDistance(4)
    metric.update(torch.zeros(5, 4), real=True)
    metric.update(torch.zeros(1, 4), real=False)
    with pytest.raises(ValueError, match="the generated set has 1 images; KernelDistance needs at least 2"):
        metric.compute()
