"""Structures that grow and shrink."""

import math

import pytest
import torch

from medgen.anatomy import Thicken, Thin
from medgen.anatomy.morphology import squared_distance
from medgen.noise import NoiseSource
from tests.anatomy.shapes import LV, MYO, RV, disc, distance, heart

ONE = NoiseSource(0, [0])


def test_squared_distances_are_those_of_all_pairs():
    inside = torch.rand(3, 14, 17, generator=torch.Generator().manual_seed(0)) < 0.03
    inside[2] = False
    down, across = torch.meshgrid(torch.arange(14), torch.arange(17), indexing="ij")
    everywhere = torch.stack([down, across], -1).flatten(0, 1)
    found = squared_distance(inside, 17)
    for mask, squared in zip(inside[:2], found, strict=False):
        pairs = (everywhere[:, None] - mask.nonzero()[None]).square().sum(-1).amin(1)
        assert torch.equal(squared.flatten(), pairs.float())
    assert found[2].isinf().all()


@pytest.mark.parametrize(
    ("radius", "pixels"), [(0, 1), (0.9, 1), (1, 5), (math.sqrt(2), 9), (1.5, 9), (2, 13), (math.sqrt(5), 21), (3, 29)]
)
def test_a_pixel_grows_to_a_disk(radius, pixels):
    dot = disc(15, 0, (7, 7))
    grown = Thicken(1, radius)(dot, ONE)
    assert int(grown.sum()) == pixels
    assert torch.equal(grown[0] == 1, distance(15, (7, 7)) <= radius + 1e-6)


def test_a_disk_is_cut_off_at_the_rim_of_the_image():
    assert int(Thicken(1, 2)(disc(15, 0, (0, 0)), ONE).sum()) == 6


def test_a_wall_grows_inwards_only_into_the_cavity():
    before = heart()
    after = Thicken(MYO, 3, into=LV)(before, ONE)
    assert set(before[after != before].tolist()) == {LV}
    assert torch.equal(after[0] == LV, distance(64, (32, 36)) <= 6)


def test_a_wall_grows_outwards_only_into_the_background():
    before = heart()
    after = Thicken(MYO, 3, into=0)(before, ONE)
    assert set(before[after != before].tolist()) == {0}
    assert set(after[after != before].tolist()) == {MYO}
    thickness = int((after[0, 32, 36:] == MYO).sum())
    assert thickness == 5 + 3


def test_a_wall_grows_both_ways_into_all_by_default():
    before = heart()
    assert set(before[Thicken(MYO, 2)(before, ONE) != before].tolist()) == {0, RV, LV}


def test_thinning_gives_the_rim_to_the_neighbour_named():
    before = heart()
    from_inside = Thin(MYO, 2, becomes=LV)(before, ONE)
    assert torch.equal(from_inside, Thicken(LV, 2, into=MYO)(before, ONE))
    assert int((from_inside[0, 32, 36:] == MYO).sum()) == 5 - 2


def test_thinning_gives_each_side_to_the_neighbour_there():
    before = heart()
    after = Thin(MYO, 1)(before, ONE)
    changed = after != before
    assert set(before[changed].tolist()) == {MYO}
    assert set(after[changed].tolist()) == {0, RV, LV}
    row = after[0, 32]
    assert row[36 + 10] == LV
    assert row[36 + 14] == 0
    assert row[36 - 14] == RV
    assert int((row[36:] == MYO).sum()) == 5 - 2


def test_a_pixel_between_two_neighbours_goes_to_the_nearer():
    line = torch.tensor([[[3, 2, 2, 2, 2, 1]]])
    assert Thin(2, 2)(line, ONE).tolist() == [[[3, 3, 3, 1, 1, 1]]]


def test_a_pixel_as_near_to_two_neighbours_goes_to_the_smaller_number():
    line = torch.tensor([[[3, 2, 1]]])
    assert Thin(2, 1, becomes=(3, 1))(line, ONE).tolist() == [[[3, 1, 1]]]


def test_a_class_that_is_not_there_changes_nothing():
    assert torch.equal(Thicken(9, 3)(heart(), ONE), heart())
    assert torch.equal(Thin(MYO, 3, becomes=9)(heart(), ONE), heart())


def test_the_radius_is_drawn_for_each_map_between_its_ends():
    masks = disc(41, 10, (20, 20)).expand(60, -1, -1)
    grown = Thicken(1, (2, 6))(masks, NoiseSource(0, range(60)))
    radii = (grown.sum((1, 2)) / math.pi).sqrt() - 10
    assert radii.min() == pytest.approx(2, abs=0.5)
    assert radii.max() == pytest.approx(6, abs=0.5)
