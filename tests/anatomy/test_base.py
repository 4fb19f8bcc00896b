"""What holds for every change of a label map, and changes that are joined and left to chance."""

import dataclasses

import pytest
import torch

from medgen.anatomy import (
    Checked,
    Compose,
    InsertLesion,
    MaskTransform,
    RandomAffine,
    RandomElastic,
    Sometimes,
    Thicken,
    Thin,
)
from medgen.noise import NoiseSource
from tests.anatomy.shapes import LV, MYO, SCAR, disc, hearts

TRANSFORMS = {
    "elastic": RandomElastic((1, 3), 8),
    "affine": RandomAffine(rotation_degrees=180, translation=0.1, scaling=0.2, shear_degrees=10),
    "thicken": Thicken(MYO, (0, 3), into=LV),
    "thin": Thin(MYO, (0, 2)),
    "lesion": InsertLesion(MYO, SCAR, inner=LV),
    "compose": Compose((RandomElastic(2, 8), Thicken(LV, (0, 2)))),
    "sometimes": Sometimes(RandomAffine(rotation_degrees=90), 0.5),
    # Rotation draws again after a number of tries that differs between maps, and what follows must not notice.
    "checked": Compose((Checked(Thin(MYO, (0, 4)), tries=3), RandomElastic(2, 8))),
}


@pytest.fixture(params=TRANSFORMS, name="transform")
def _transform(request) -> MaskTransform:
    return TRANSFORMS[request.param]


def test_a_map_depends_on_seed_and_index_only(transform):
    masks = hearts(6)
    together = transform(masks, NoiseSource(5, range(6)))
    for i in range(6):
        alone = transform(masks[i : i + 1], NoiseSource(5, [i]))
        assert torch.equal(alone[0], together[i])
    reordered = transform(masks.flip(0), NoiseSource(5, range(5, -1, -1)))
    assert torch.equal(reordered.flip(0), together)


def test_other_seeds_and_indices_give_other_maps(transform):
    masks = hearts(1).expand(8, -1, -1)
    out = transform(masks, NoiseSource(0, range(8)))
    assert out.flatten(1).unique(dim=0).shape[0] > 1
    assert not torch.equal(out, transform(masks, NoiseSource(1, range(8))))


def test_the_result_is_a_new_class_map_and_the_given_one_stays(transform):
    masks = hearts(4)
    out = transform(masks, NoiseSource(0, range(4)))
    assert (out.shape, out.dtype) == (masks.shape, torch.int64)
    assert set(out.unique().tolist()) <= {0, 1, 2, 3, 4}
    assert torch.equal(masks, hearts(4))


def test_transforms_are_frozen_and_compare_by_their_settings(transform):
    assert transform == dataclasses.replace(transform)
    with pytest.raises(dataclasses.FrozenInstanceError):
        transform.label = 9


def test_no_maps_give_no_maps(transform):
    empty = torch.zeros(0, 8, 8, dtype=torch.int64)
    assert transform(empty, NoiseSource(0, [])).shape == (0, 8, 8)


def test_composed_transforms_act_in_their_order():
    grown_then_moved = Compose([Thicken(1, 2), Thin(1, 1)])
    expected = Thin(1, 1)(Thicken(1, 2)(disc(), NoiseSource(0, [0])), NoiseSource(0, [0]))
    assert torch.equal(grown_then_moved(disc(), NoiseSource(0, [0])), expected)
    assert not torch.equal(Compose([Thin(1, 9), Thicken(1, 9)])(disc(), NoiseSource(0, [0])), disc())


def test_sometimes_is_as_often_as_asked():
    masks = disc(16, 4, (8, 8)).expand(400, -1, -1)
    changed = (Sometimes(Thicken(1, 2), 0.3)(masks, NoiseSource(0, range(400))) != masks).flatten(1).any(1)
    assert changed.float().mean() == pytest.approx(0.3, abs=0.07)


@pytest.mark.parametrize(("probability", "happens"), [(0, False), (1, True)])
def test_sometimes_can_mean_never_and_always(probability, happens):
    masks = disc().expand(20, -1, -1)
    out = Sometimes(Thicken(1, 2), probability)(masks, NoiseSource(0, range(20)))
    assert ((out != masks).flatten(1).any(1) == happens).all()


def test_sometimes_takes_the_old_name_of_its_probability():
    with pytest.warns(FutureWarning, match="chance is now probability"):
        assert Sometimes(Thicken(1, 2), chance=0.3) == Sometimes(Thicken(1, 2), probability=0.3)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (disc() * 255, "masks hold 0, 255; give class numbers from 0 to 254, such as 0 and 1 for 0 and 255"),
        (-disc(), "masks hold -1, 0; give class numbers"),
        (torch.arange(300).view(1, 15, 20), r"masks hold 0, 1, 2, \.\.\., 298, 299; give class numbers"),
        (disc() * 0.5, r"masks are torch\.float32 with values 0, 0\.5; give class numbers as int64"),
        (disc().bool(), r"masks are torch\.bool with values 0, 1; give class numbers as int64"),
        (disc()[0], r"masks have shape \(32, 32\); give class numbers as \(B, H, W\)"),
        (disc()[None], r"masks have shape \(1, 1, 32, 32\)"),
    ],
    ids=["0 and 255", "negative", "many", "floats", "booleans", "no batch", "channels"],
)
def test_what_is_no_class_map_is_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        Thicken(1, 1)(masks, NoiseSource(0, [0]))


def test_noise_for_another_number_of_maps_is_refused():
    with pytest.raises(ValueError, match="noise has 3 streams for 1 masks"):
        Thicken(1, 1)(disc(), NoiseSource(0, range(3)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sometimes(Thicken(1, 1), 1.5), r"probability is 1\.5; it must be from 0 to 1"),
        (lambda: Sometimes(Thicken, 0.5), "transform is <class .*; give a transform of medgen.anatomy"),
        (lambda: Compose([Thicken(1, 1), "thin"]), r"transforms\[1\] is 'thin'; give a transform"),
        (lambda: RandomElastic((3, 1), 8), r"pixels is \(3, 1\); give one number, or the lowest and the highest, 0 or"),
        (lambda: RandomElastic((1, 2, 3), 8), r"pixels is \(1, 2, 3\)"),
        (lambda: RandomElastic(float("nan"), 8), "pixels is nan"),
        (lambda: RandomElastic(1, 0), r"smoothness is 0; it must be 0\.5 or more"),
        (lambda: RandomAffine(rotation_degrees=-1), "rotation_degrees is -1; it must be from 0 to 180"),
        (lambda: RandomAffine(scaling=1), r"scaling is 1; it must be from 0 to 0\.9"),
        (lambda: Thicken(-1, 1), "label is -1; give class numbers from 0 to 254"),
        (lambda: Thicken(1, -1), "pixels is -1"),
        (lambda: Thicken(1, 1, into=(0, 1)), r"into is \(0, 1\), which has the label 1 itself"),
        (lambda: Thin(1, 1, becomes=()), r"becomes is \(\); give class numbers"),
        (lambda: Thin(1, 1, becomes=(0, 0)), r"becomes is \(0, 0\); .* each once"),
        (lambda: InsertLesion(2, 2), "within is 2, label 2 and inner None; they must be different"),
        (lambda: InsertLesion(2, 4, share=(0.5, 1.5)), r"share is \(0\.5, 1\.5\)"),
    ],
)
def test_settings_without_meaning_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
