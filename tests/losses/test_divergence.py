import pytest
import torch
from torch.distributions import Normal

from medgen.losses.divergence import kl_divergence


@pytest.mark.parametrize("shape", [(3, 32), (3, 2, 4, 4)])
def test_divergence_of_a_gaussian_from_the_standard_one(shape):
    mean, variance = 0.5, 0.3
    found = kl_divergence(torch.full(shape, mean), torch.full(shape, variance).log())
    each = torch.distributions.kl_divergence(Normal(mean, variance**0.5), Normal(0.0, 1.0)).item()
    assert found.tolist() == pytest.approx([32 * each] * 3, rel=1e-5)


def test_the_standard_gaussian_has_none():
    assert kl_divergence(torch.zeros(2, 5), torch.zeros(2, 5)).tolist() == [0, 0]
