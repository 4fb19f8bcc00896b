import pytest
import torch

from medgen.nn.quantize import VectorQuantizer, nearest_code


@pytest.fixture
def quantizer():
    """Codes at the corners of a square."""
    quantizer = VectorQuantizer(4, 2, beta=0.25)
    quantizer.codebook.data = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    return quantizer


def as_latent(vectors):
    """Vectors (N, D) as the pixels of one latent (1, D, N, 1)."""
    return torch.tensor(vectors).T[None, :, :, None]


def test_each_vector_takes_its_nearest_code(quantizer):
    quantized = quantizer(as_latent([[0.1, 0.2], [0.9, -3.0], [0.6, 0.7]]))
    assert quantized.indices.tolist() == [[[0], [2], [3]]]
    torch.testing.assert_close(quantized.latent, as_latent([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]))


def test_ties_take_the_first_code():
    assert nearest_code(torch.tensor([[0.5]]), torch.tensor([[0.0], [1.0]])).item() == 0


def test_beta_weighs_the_commitment_term_only(quantizer):
    latent = as_latent([[0.0, 0.4]]).requires_grad_()
    quantized = quantizer(latent)
    mean_square = 0.4**2 / 2
    assert quantized.loss.item() == pytest.approx(1.25 * mean_square)
    quantized.loss.backward()
    torch.testing.assert_close(latent.grad, 0.25 * as_latent([[0.0, 0.4]]))  # 2 * 0.4 / 2 values, times beta
    torch.testing.assert_close(quantizer.codebook.grad[0], torch.tensor([0.0, -0.4]))


def test_gradients_pass_straight_through(quantizer):
    latent = as_latent([[0.3, 0.2], [0.8, 0.9]]).requires_grad_()
    weight = torch.randn_like(latent)
    (quantizer(latent).latent * weight).sum().backward()
    torch.testing.assert_close(latent.grad, weight)


def test_lookup_inverts_quantisation_of_volumes():
    quantizer = VectorQuantizer(8, 3)
    quantized = quantizer(torch.randn(2, 3, 2, 4, 5))
    assert quantized.indices.shape == (2, 2, 4, 5)
    torch.testing.assert_close(quantizer.lookup(quantized.indices), quantized.latent)
