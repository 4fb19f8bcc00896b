import math

import torch

from medgen.nn.embedding import ClassEmbedding, ConditionEmbedding, sinusoidal_embedding


def test_frequencies_fall_from_one_to_one_over_the_longest_period():
    t = torch.tensor([3])
    expected = [math.sin(3), math.sin(0.3), math.sin(0.03), math.cos(3), math.cos(0.3), math.cos(0.03)]
    torch.testing.assert_close(sinusoidal_embedding(t, 6, max_period=100)[0], torch.tensor(expected))


def test_cosines_can_come_first():
    t = torch.tensor([0, 5])
    sines_first = sinusoidal_embedding(t, 8)
    assert torch.equal(sinusoidal_embedding(t, 8, cosine_first=True), sines_first.roll(4, dims=1))


def test_odd_width_ends_in_zero():
    embedded = sinusoidal_embedding(torch.tensor([7]), 5)
    assert embedded.shape == (1, 5)
    assert embedded[0, -1] == 0


def test_unknown_class_is_the_zero_vector_and_others_differ():
    vectors = ClassEmbedding(3, 4)(torch.tensor([-1, 0, 2]))
    assert torch.equal(vectors[0], torch.zeros(4))
    assert not torch.equal(vectors[1], vectors[2])


def test_row_without_known_values_is_the_zero_vector():
    vectors = ConditionEmbedding(2, 4)(torch.tensor([[math.nan, math.nan], [0.0, math.nan]]))
    assert torch.equal(vectors[0], torch.zeros(4))
    assert vectors[1].abs().sum() > 0


def test_unknown_value_differs_from_zero():
    vectors = ConditionEmbedding(2, 4)(torch.tensor([[1.0, math.nan], [1.0, 0.0]]))
    assert not torch.allclose(vectors[0], vectors[1])


def test_unknown_values_leave_gradients_finite():
    embedding = ConditionEmbedding(2, 4)
    embedding(torch.tensor([[math.nan, 1.0], [math.nan, math.nan]])).sum().backward()
    assert all(p.grad.isfinite().all() for p in embedding.parameters())
