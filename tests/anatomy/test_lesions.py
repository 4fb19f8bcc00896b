"""Lesions put into label maps."""

import pytest
import torch

from medgen.anatomy import InsertLesion
from medgen.anatomy.topology import count_components
from medgen.noise import NoiseSource
from tests.anatomy.shapes import LV, MYO, RV, SCAR, distance, heart, hearts

COUNT = 24


def scars(before, **settings):
    after = InsertLesion(MYO, SCAR, **({"inner": LV} | settings))(before, NoiseSource(0, range(len(before))))
    assert torch.equal(torch.where(after == SCAR, MYO, after), before)  # nothing else moved
    return after == SCAR


def depths(scar):
    """Share of the wall of `heart()` that each pixel of a scar lies at."""
    return (distance(64, (32, 36))[scar[0]] - 9) / 5


def test_a_lesion_lies_within_its_class_and_covers_its_share():
    before = hearts(COUNT)
    share = scars(before, share=(0.1, 0.3)).sum((1, 2)) / (before == MYO).sum((1, 2))
    assert share.min() >= 0.095
    assert share.max() <= 0.305
    assert share.std() > 0.03


def test_a_lesion_is_in_one_piece():
    for scar in scars(hearts(COUNT)):
        assert count_components(scar.numpy()) == 1


def test_depth_is_the_share_of_the_wall_between_cavity_and_outside():
    mask = torch.tensor([LV] * 3 + [MYO] * 5 + [0] * 4).expand(1, 9, 12)
    depth = InsertLesion(MYO, SCAR, inner=LV)._depth(mask, mask == MYO, mask == LV)
    assert depth[0, 4].tolist() == pytest.approx([0] * 3 + [0.1, 0.3, 0.5, 0.7, 0.9] + [0] * 4)


def test_a_small_lesion_lies_along_the_cavity():
    scar = scars(heart(), share=0.1, sector_degrees=150, roughness=0)
    assert depths(scar).max() < 0.6
    touching = torch.nn.functional.max_pool2d((heart() == LV).float(), 3, 1, 1).bool() & scar
    assert touching.sum() > 8


def test_a_lesion_gets_deeper_the_larger_its_share():
    middle = [
        depths(scars(heart(), share=share, sector_degrees=120, roughness=0)).mean() for share in (0.05, 0.15, 0.3)
    ]
    assert middle == sorted(middle)


def test_a_lesion_without_a_sector_reaches_through_the_wall():
    scar = scars(heart(), share=0.2, sector_degrees=0)
    assert depths(scar).min() < 0.15
    assert depths(scar).max() > 0.9


def test_a_lesion_stays_in_its_sector_until_that_is_full():
    down, across = torch.meshgrid(torch.arange(64) - 32, torch.arange(64) - 36, indexing="ij")
    degrees = torch.rad2deg(torch.atan2(down, across)).abs()
    settings = {"sector_degrees": 90, "direction_degrees": 0, "roughness": 0}
    assert degrees[scars(heart(), share=0.2, **settings)[0]].max() <= 45
    assert degrees[scars(heart(), share=0.5, **settings)[0]].max() == pytest.approx(90, abs=8)


@pytest.mark.parametrize(("degrees", "row", "column"), [(0, 0, 1), (90, 1, 0), (180, 0, -1), (-90, -1, 0)])
def test_the_direction_is_where_the_lesion_lies(degrees, row, column):
    place = scars(heart(), share=0.1, direction_degrees=degrees)[0].nonzero().float().mean(0) - torch.tensor([32, 36])
    place = place / place.norm()
    assert place.tolist() == pytest.approx([row, column], abs=0.2)


def test_lesions_lie_all_around_by_default():
    places = torch.stack([s.nonzero().float().mean(0) for s in scars(heart().expand(COUNT, -1, -1))])
    around = torch.atan2(places[:, 0] - 32, places[:, 1] - 36)
    assert torch.histc(around, 4, -torch.pi, torch.pi).min() > 0


def test_a_map_without_the_cavity_gets_a_lesion_through_the_wall():
    solid = torch.where(heart() == LV, MYO, heart())
    scar = scars(solid, share=0.2)
    assert int(scar.sum()) == pytest.approx(0.2 * int((solid == MYO).sum()), abs=1)
    assert count_components(scar[0].numpy()) == 1


def test_a_map_without_the_class_stays_as_it_is():
    only_right = torch.where(heart() == RV, RV, 0)
    assert not scars(only_right).any()


def test_a_second_lesion_leaves_the_first():
    first = InsertLesion(MYO, SCAR, inner=LV, direction_degrees=0)(heart(), NoiseSource(0, [0]))
    second = InsertLesion(MYO, 5, inner=LV, direction_degrees=180)(first, NoiseSource(1, [0]))
    assert torch.equal(second == SCAR, first == SCAR)
    assert (second == 5).any()


def test_borders_vary_with_roughness():
    smooth, rough = (scars(heart(), share=0.2, direction_degrees=0, sector_degrees=90, roughness=r) for r in (0, 0.3))
    mirrored = smooth[:, 1:].flip(1)  # rows 1 to 63 are symmetric about row 32
    assert (mirrored ^ smooth[:, 1:]).sum() <= 2
    assert (rough[:, 1:].flip(1) ^ rough[:, 1:]).sum() > 4
