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
    muscle = (before == MYO).sum((1, 2))
    share = scars(before, share=(0.1, 0.3)).sum((1, 2)) / muscle
    assert share.min() >= 0.095
    assert share.max() <= 0.305
    assert share.std() > 0.03
    usual = scars(before).sum((1, 2)) / muscle
    assert 0.045 <= usual.min() < 0.1
    assert 0.2 < usual.max() <= 0.305
    assert torch.equal(scars(before, share=0.2).sum((1, 2)), (0.2 * muscle.double()).round().long())
    ends = {"sector_degrees": 360, "direction_degrees": -360, "roughness": 0.5, "smoothness": 0.5}
    assert torch.equal(scars(before, share=1, **ends), before == MYO)


def test_a_lesion_is_in_one_piece():
    for scar in scars(hearts(COUNT)):
        assert count_components(scar.numpy()) == 1


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([LV] * 3 + [MYO] * 5 + [0] * 4, [0] * 3 + [0.1, 0.3, 0.5, 0.7, 0.9] + [0] * 4),
        ([LV] * 3 + [MYO] * 3 + [SCAR] * 2 + [RV] * 4, [0] * 3 + [0.1, 0.3, 0.5] + [0] * 6),  # the scar is wall, too
        ([0] * 4 + [MYO] * 4 + [0] * 4, [0] * 12),
    ],
    ids=["wall", "scarred wall", "no cavity"],
)
def test_depth_is_the_share_of_the_wall_between_cavity_and_outside(row, expected):
    mask = torch.tensor(row).expand(1, 3, 12)
    depth = InsertLesion(MYO, SCAR, inner=LV)._depth(mask, mask == MYO, mask == LV)
    assert depth[0, 1].tolist() == pytest.approx(expected)


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
    muscle = heart()[0] == MYO
    sector = muscle & (degrees <= 45)  # whose last pixels, on the diagonals, a front reaches late
    full = scars(heart(), share=int(sector.sum()) / int(muscle.sum()), **settings | {"sector_degrees": 90.001})[0]
    assert torch.equal(full, sector)


_THICK = {"size": 72, "cavity": 8, "wall": 24, "place": (36, 36)}


@pytest.mark.parametrize(
    ("roughness", "bumps", "widening", "deepening"),
    [
        (0.0, (9, 9), 1, 1),
        (0.4, (1, 0), 1.4, 1),
        (0.4, (0, 1), 1, 1.4),
        (0.5, (9, 0), 2, 1),
        (0.5, (-9, 0), 0.5, 1),
        (0.5, (0, 9), 1, 2),
        (0.5, (0, -9), 1, 0.5),
    ],
)
def test_a_front_runs_ahead_in_the_middle_of_the_sector(monkeypatch, roughness, bumps, widening, deepening):
    """Bumps of known height: those of width everywhere, those of depth in the lower half."""

    def constant(noise, fields, size, smoothness):
        assert (len(noise), fields, size, smoothness) == (1, 2, (72, 72), 5)
        return torch.stack([torch.full(size, bumps[0]), bumps[1] * lower])[None]

    down, across = torch.meshgrid(torch.arange(72) - 36, torch.arange(72) - 36, indexing="ij")
    lower = down > 0
    monkeypatch.setattr("medgen.anatomy.lesions.smooth_noise", constant)
    settings = {"share": 0.12, "sector_degrees": 120, "direction_degrees": 0}
    scar = scars(heart(**_THICK), roughness=roughness, smoothness=5, **settings)[0]

    turned = widening * torch.rad2deg(torch.atan2(down, across)).abs() / 60  # 1 at the side of the sector
    depth = (distance(72, (36, 36)) - 8) / 24 * torch.where(lower, deepening, 1)
    front = torch.where(turned < 1, depth / (1 - turned**4).sqrt(), torch.inf)
    assert front[scar].max() < front[(heart(**_THICK)[0] == MYO) & ~scar].min() + 0.05


_ECCENTRIC = torch.where(distance(64, (30, 31)) <= 7, LV, torch.where(distance(64, (32, 36)) <= 16, MYO, 0))[None]


@pytest.mark.parametrize(
    ("mask", "settings", "middle"),
    [
        (_ECCENTRIC, {"sector_degrees": 0}, (30, 31)),
        (torch.where(heart() == LV, MYO, heart()), {}, (32, 36)),
        (heart(), {"inner": None}, (32, 36)),
    ],
    ids=["no sector", "no cavity", "no class of the cavity"],
)
def test_a_lesion_through_the_wall_is_a_wedge_seen_from_the_middle(mask, settings, middle):
    wedge = scars(mask, share=0.2, direction_degrees=200, roughness=0, **settings)[0]
    down, across = torch.meshgrid(torch.arange(64) - middle[0], torch.arange(64) - middle[1], indexing="ij")
    away = (torch.rad2deg(torch.atan2(down, across)) - 200 + 540).remainder(360).sub(180).abs()
    assert away[wedge].max() <= away[(mask[0] == MYO) & ~wedge].min() + 1e-3


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
    assert torch.equal(scars(torch.cat([solid, heart()]), share=0.2)[0], scar[0])  # whatever the other maps have


def test_a_map_without_the_class_stays_as_it_is():
    only_right = torch.where(heart() == RV, RV, 0)
    assert not scars(only_right).any()


def test_a_second_lesion_leaves_the_first():
    first = InsertLesion(MYO, SCAR, inner=LV, direction_degrees=0)(heart(), NoiseSource(0, [0]))
    second = InsertLesion(MYO, 5, inner=LV, direction_degrees=180)(first, NoiseSource(1, [0]))
    assert torch.equal(second == SCAR, first == SCAR)
    assert (second == 5).any()


def test_borders_vary_with_roughness():
    settings = {"share": 0.2, "direction_degrees": 0, "sector_degrees": 90}
    uneven = [
        int((scar[:, 1:].flip(1) ^ scar[:, 1:]).sum())  # rows 1 to 63 are symmetric about row 32
        for scar in (scars(heart(), **settings, **rough) for rough in ({"roughness": 0}, {}, {"roughness": 0.3}))
    ]
    assert uneven[0] <= 2
    assert min(uneven[1:]) > 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner": -1}, "inner is -1; give class numbers"),
        ({"inner": SCAR}, "within is 2, label 4 and inner 4; they must be different"),
        ({"inner": MYO}, "within is 2, label 4 and inner 2"),
        ({"label": MYO}, "within is 2, label 2 and inner 3"),
        ({"share": (-0.1, 0.3)}, r"share is \(-0\.1, 0\.3\)"),
        ({"share": 1.1}, "share is 1.1; .* from 0 to 1"),
        ({"sector_degrees": -1}, "sector_degrees is -1; .* from 0 to 360"),
        ({"sector_degrees": (0, 361)}, r"sector_degrees is \(0, 361\)"),
        ({"direction_degrees": -361}, "direction_degrees is -361; .* from -360 to 360"),
        ({"direction_degrees": 361}, "direction_degrees is 361"),
        ({"roughness": -0.1}, "roughness is -0.1; it must be from 0 to 0.5"),
        ({"roughness": 0.6}, "roughness is 0.6"),
        ({"smoothness": 0.4}, "smoothness is 0.4; it must be 0.5 or more"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        InsertLesion(**({"within": MYO, "label": SCAR, "inner": LV} | settings))
