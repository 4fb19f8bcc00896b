"""Label maps moved in the plane."""

import math

import pytest
import torch

from medgen.anatomy import RandomAffine, RandomElastic
from medgen.anatomy.deformation import resampled, smooth_noise
from medgen.anatomy.topology import count_components, count_holes
from medgen.noise import NoiseSource
from tests.anatomy.shapes import disc, distance, hearts


def places(size):
    down, across = torch.meshgrid(*[torch.arange(size, dtype=torch.float32)] * 2, indexing="ij")
    return across[None], down[None]


def second_moments(mask):
    """Variance of the places of class 1 across and down."""
    return tuple(place.float().var().item() for place in (mask == 1).nonzero().T.flip(0))


@pytest.mark.parametrize("transform", [RandomAffine(), RandomElastic(0, 8)])
def test_nothing_moves_where_nothing_is_asked_for(transform):
    scattered = torch.randint(0, 4, (3, 20, 24), generator=torch.Generator().manual_seed(0))  # no smooth border at all
    assert torch.equal(transform(scattered, NoiseSource(0, range(3))), scattered)


def test_a_shift_by_whole_pixels_moves_every_pixel_and_brings_in_background():
    masks = torch.randint(1, 4, (1, 16, 16), generator=torch.Generator().manual_seed(0))
    across, down = places(16)
    moved = resampled(masks, across + 3, down - 2)
    assert torch.equal(moved[:, 2:, :-3], masks[:, :-2, 3:])
    assert (moved[:, :2] == 0).all()
    assert (moved[:, :, -3:] == 0).all()


def test_a_quarter_turn_turns():
    masks = hearts(1)
    across, down = places(64)
    assert torch.equal(resampled(masks, down, 63 - across), torch.rot90(masks, -1, (1, 2)))


def test_a_magnified_disc_is_rounder_than_that_of_the_nearest_neighbour():
    across, down = (32 + (place - 32) / 2.5 for place in places(64))
    small = disc(64, 8, (32, 32))
    large = resampled(small, across, down)
    nearest = small[0][down.round().long(), across.round().long()]
    drawn = disc(64, 20, (32, 32))
    assert (large != drawn).sum() < 0.6 * (nearest != drawn).sum()
    assert (large != drawn).sum() < 0.04 * drawn.sum()


def test_classes_far_apart_in_number_never_mix_to_those_between():
    masks = disc() * 200
    out = RandomElastic(2, 6)(masks, NoiseSource(0, [0]))
    assert set(out.unique().tolist()) == {0, 200}


def test_rotation_keeps_size_and_middle():
    masks = disc(64, 12, (31.5, 31.5))
    out = RandomAffine(rotation_degrees=180)(masks, NoiseSource(0, [0]))
    assert (out != masks).sum() < 0.05 * masks.sum()


def test_translation_shifts_by_up_to_its_fraction_either_way():
    masks = disc(64, 6, (32, 32)).expand(60, -1, -1)
    out = RandomAffine(translation=0.25)(masks, NoiseSource(0, range(60)))
    for axis in (1, 2):
        place = torch.stack([(mask == 1).nonzero()[:, axis - 1].float().mean() for mask in out]) - 32
        assert place.abs().max() <= 16.1
        assert place.min() < -10
        assert place.max() > 10


def test_scaling_changes_area_by_the_square():
    masks = disc(96, 20, (48, 48)).expand(80, -1, -1)
    out = RandomAffine(scaling=0.3)(masks, NoiseSource(0, range(80)))
    sizes = (out.sum((1, 2)) / masks[0].sum()).sqrt()
    assert sizes.min() == pytest.approx(0.7, abs=0.05)
    assert sizes.max() == pytest.approx(1.3, abs=0.05)


def test_shear_moves_rows_and_keeps_area():
    masks = disc(96, 20, (48, 48)).expand(20, -1, -1)
    out = RandomAffine(shear_degrees=30)(masks, NoiseSource(0, range(20)))
    assert (out.sum((1, 2)) / masks[0].sum()).tolist() == pytest.approx([1.0] * 20, abs=0.02)
    across, down = second_moments(out[0])
    assert down == pytest.approx(second_moments(masks[0])[1], rel=0.03)
    assert max(second_moments(mask)[0] for mask in out) > 1.1 * across or across > 1.1 * down


def test_smooth_noise_has_unit_variance_everywhere_and_the_correlation_of_its_gaussian():
    field = smooth_noise(NoiseSource(0, range(200)), 2, (24, 32), 3.0)
    assert field.shape == (200, 2, 24, 32)
    assert field.var((0, 1)).mean() == pytest.approx(1, abs=0.1)
    assert field[..., 0, :].var() == pytest.approx(1, abs=0.15)  # as much at the rim
    neighbours = (field[..., :-3] * field[..., 3:]).mean()
    assert neighbours == pytest.approx(math.exp(-(3**2) / (4 * 3**2)), abs=0.05)


def test_elastic_shifts_are_as_large_as_asked():
    dots = torch.zeros(1, 96, 96, dtype=torch.int64)
    dots[:, 8::16, 8::16] = torch.arange(1, 37).view(6, 6)
    dots = torch.nn.functional.max_pool2d(dots.float(), 5, 1, 2).long()  # squares one can find again
    out = RandomElastic(2.0, 20)(dots.expand(12, -1, -1), NoiseSource(0, range(12)))
    shifts = []
    for label in range(1, 37, 2):
        before = (dots[0] == label).nonzero().float().mean(0)
        shifts += [(mask == label).nonzero().float().mean(0) - before for mask in out if (mask == label).any()]
    assert torch.stack(shifts).square().mean().sqrt() == pytest.approx(2.0, rel=0.15)


def test_strength_is_drawn_for_each_map():
    masks = disc(64, 12, (32, 32)).expand(30, -1, -1)
    changed = (RandomElastic((0, 4), 8)(masks, NoiseSource(0, range(30))) != masks).flatten(1).sum(1)
    assert changed.min() < 40
    assert changed.max() > 120


def test_a_smooth_deformation_changes_the_shape_and_tears_nothing():
    masks = disc(64, 20, (32, 32)).expand(4, -1, -1)
    for out in RandomElastic(4, 20)(masks, NoiseSource(0, range(4))):
        inside = (out == 1).numpy()
        assert count_components(inside) == 1
        assert count_holes(inside) == 0
        assert distance(64, (32, 32))[out == 1].max() > 21.5
