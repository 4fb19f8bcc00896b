import numpy as np
import pytest
import torch

from medgen.noise import NoiseSource, stream_seed


def test_an_image_gets_the_same_numbers_in_any_batch():
    whole = NoiseSource(5, range(4))
    part = NoiseSource(5, [2])
    for shape in ((3, 4), (7,)):
        assert torch.equal(whole.normal(*shape)[2:3], part.normal(*shape))
    assert torch.equal(whole.uniform(2)[2:3], part.uniform(2))


def test_seeds_and_indices_that_sum_alike_give_unrelated_numbers():
    drawn = [NoiseSource(seed, [index]).normal(1000)[0] for seed, index in ((0, 1), (1, 0), (0, 0), (1, 1))]
    correlations = torch.corrcoef(torch.stack(drawn)) - torch.eye(4)
    assert correlations.abs().max() < 0.15


def test_streams_go_on_from_call_to_call():
    noise = NoiseSource(0, [0])
    assert not torch.equal(noise.normal(5), noise.normal(5))


def test_numbers_are_standard_normal_and_uniform():
    noise = NoiseSource(0, range(20))
    normal, uniform = noise.normal(5000), noise.uniform(5000)
    assert abs(normal.mean()) < 0.01
    assert abs(normal.std() - 1) < 0.01
    assert (uniform.min(), uniform.max()) >= (0, 0)
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.01


def test_the_global_random_state_is_neither_used_nor_changed():
    torch.manual_seed(0)
    first = NoiseSource(1, [0]).normal(3)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(1)
    assert torch.equal(NoiseSource(1, [0]).normal(3), first)


def test_its_length_is_the_batch_size():
    assert len(NoiseSource(0, range(3, 8))) == 5


def test_stream_seeds_are_the_same_on_every_machine():
    assert stream_seed("image", 0, 0) == 2298491793083444657
    assert 0 <= min(stream_seed("a", i) for i in range(100)) < 2**63


def test_stream_seeds_tell_words_from_numbers():
    assert stream_seed("1", 2) != stream_seed(1, 2)


def test_whole_numbers_of_any_library_give_the_same_seed():
    for zero in (np.int64(0), np.uint8(0), torch.tensor(0)):
        assert stream_seed("image", zero, 0) == stream_seed("image", 0, 0)


@pytest.mark.parametrize("part", [0.5, 1.0, None])
def test_what_is_no_whole_number_is_no_seed(part):
    with pytest.raises(ValueError, match=rf"a part of the seed is {part}; use a whole number"):
        stream_seed("image", part)
