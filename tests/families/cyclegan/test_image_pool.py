"""The memory of generated images."""

import pytest
import torch

from medgen.families.cyclegan.image_pool import ImagePool


def numbered(*numbers):
    """Images of one pixel, each its number."""
    return torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1, 1)


def numbers(images):
    return images.flatten().tolist()


def full(size=4):
    pool = ImagePool((1, 1, 1), size)
    pool(numbered(*range(size)))
    return pool


def test_images_pass_through_while_the_pool_fills():
    pool = ImagePool((1, 1, 1), 4)
    assert numbers(pool(numbered(1, 2, 3))) == [1, 2, 3]
    assert numbers(pool.images) == [1, 2, 3, 0]
    assert numbers(pool(numbered(4))) == [4]
    assert numbers(pool.images) == [1, 2, 3, 4]


def test_a_full_pool_swaps_half_of_the_images_and_loses_none():
    torch.manual_seed(0)
    pool = full()
    known, swapped = set(range(4)), 0
    for number in range(4, 404):
        before = set(numbers(pool.images))
        (out,) = numbers(pool(numbered(number)))
        swapped += out != number
        assert {out, *numbers(pool.images)} == before | {float(number)}
        known.add(number)
    assert swapped / 400 == pytest.approx(0.5, abs=0.08)


def test_every_place_of_a_full_pool_is_swapped():
    torch.manual_seed(0)
    pool = full()
    pool(numbered(*range(100, 200)))
    assert min(numbers(pool.images)) >= 100


def test_images_of_one_batch_can_be_swapped_for_each_other():
    torch.manual_seed(0)
    out = numbers(full(1)(numbered(*range(10, 30))))
    assert any(earlier >= 10 for earlier, number in zip(out, range(10, 30), strict=True) if earlier != number)


def test_training_resumes_where_it_stopped():
    torch.manual_seed(0)
    pool = full()
    pool(numbered(*range(10, 20)))
    state, random = pool.state_dict(), torch.get_rng_state()
    state = {name: value.clone() for name, value in state.items()}
    expected = [numbers(pool(numbered(*range(start, start + 5)))) for start in (20, 30, 40)]
    torch.manual_seed(123)
    resumed = ImagePool((1, 1, 1), 4)
    resumed.load_state_dict(state)
    torch.set_rng_state(random)
    assert [numbers(resumed(numbered(*range(start, start + 5)))) for start in (20, 30, 40)] == expected
    assert torch.equal(resumed.images, pool.images)


@pytest.mark.parametrize("size", [0, 4, 50])
def test_random_numbers_depend_on_the_number_of_images_alone(size):
    torch.manual_seed(0)
    ImagePool((1, 1, 1), size)(numbered(*range(7)))
    first = torch.get_rng_state()
    torch.manual_seed(0)
    full_pool = ImagePool((1, 1, 1), 3)
    full_pool.filled.fill_(3)
    full_pool(numbered(*range(7)))
    assert torch.equal(torch.get_rng_state(), first)


def test_what_is_returned_is_neither_a_view_of_the_pool_nor_has_gradients():
    torch.manual_seed(0)
    pool = full()
    for number in range(10):
        images = numbered(number).requires_grad_()
        out = pool(images)
        assert not out.requires_grad
        out.add_(1000)
    assert max(numbers(pool.images)) < 1000
    assert pool.images.requires_grad is False


def test_a_pool_of_no_size_returns_the_images():
    assert numbers(ImagePool((1, 1, 1), 0)(numbered(1, 2))) == [1, 2]


def test_half_precision_images_stay_half_precision():
    torch.manual_seed(0)
    pool = full()
    assert all(pool(numbered(number).half()).dtype == torch.float16 for number in range(8))
    assert pool.images.dtype == torch.float32


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"images have shape \(1, 2, 2\); this pool was made for \(1, 1, 1\)"):
        full()(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="size is -1; use at least 0"):
        ImagePool((1, 1, 1), -1)
