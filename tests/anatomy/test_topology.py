"""What anatomy must be like, and changes that are held to it."""

import csv
import io
import sys
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from medgen.anatomy import (
    HEART,
    SCARRED_HEART,
    Checked,
    Compose,
    Enclosed,
    InsertLesion,
    MaskTransform,
    NoHoles,
    OneComponent,
    RandomAffine,
    RandomElastic,
    Size,
    Tally,
    Thicken,
    Thin,
    WithinImage,
    obeys,
)
from medgen.noise import NoiseSource
from tests.anatomy.shapes import LV, MYO, RV, SCAR, disc, heart, hearts


def grid(text):
    """A map drawn with one digit per pixel, as in "010 020"."""
    return np.array([[int(pixel) for pixel in row] for row in text.split()])


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (OneComponent(1), "0000 0110 0110", "1000 0000 0011"),
        (OneComponent(1), "1000 0100 0010", "1000 0010 0000"),  # corners join
        (OneComponent((1, 2)), "0120 0000 0000", "1000 0000 0002"),
        (NoHoles(1), "1110 1000 1110", "1110 1010 1110"),
        (NoHoles(1), "1110 1010 1010", "1110 1010 1100"),  # a way out by the side; by the corner only
        (NoHoles((1, 2)), "1110 1210 1110", "1110 1310 1110"),
        (Enclosed(3, by=2), "0200 2320 0200", "0200 2310 0200"),
        (Enclosed(3, by=2), "0200 2320 0200", "0200 2300 0200"),
        (Enclosed(3, by=2), "0200 2320 0200", "0000 0200 2320"),  # the rim of the image is no wall
        (Enclosed(3, by=(2, 4)), "0200 2340 0200", "0200 2350 0200"),
        (WithinImage(1), "0000 0110 0000", "0000 0110 0100"),
        (WithinImage(1), "0000 0110 0000", "0000 1100 0000"),
        (Size(1, (0.1, 0.3)), "0000 0110 0000", "0000 0100 0000"),
        (Size(1, (0.1, 0.3)), "0000 0110 0000", "1110 0110 0000"),
    ],
)
def test_a_rule_tells_good_from_bad(rule, good, bad):
    assert rule.holds(grid(good))
    assert not rule.holds(grid(bad))


def test_what_the_rim_of_the_image_cuts_off_is_no_hole():
    assert NoHoles(1).holds(grid("0000 1111 1001"))


@pytest.mark.parametrize("rule", [OneComponent(9), NoHoles(9), Enclosed(9, by=2), WithinImage(9), Size(9, (0.1, 0.2))])
def test_rules_hold_where_their_class_is_absent(rule):
    assert rule.holds(grid("000 010 222"))


def test_a_schematic_heart_obeys_and_parts_of_it_do():
    whole = heart()
    for mask in (whole, torch.where(whole == RV, 0, whole), torch.where(whole == LV, MYO, whole), whole * 0):
        assert obeys(mask, HEART).all()


@pytest.mark.parametrize(
    "damage",
    [
        lambda mask: mask.index_fill_(2, torch.tensor([36]), 0),  # cut in two
        lambda mask: mask.masked_fill_((mask == MYO) & (torch.arange(64) > 36), 0),  # a wall that is open
        lambda mask: torch.roll(mask, 25, 2),  # cut off
        lambda mask: mask.index_put_((torch.tensor(0), torch.tensor(4), torch.tensor(4)), torch.tensor(RV)),
        lambda mask: mask.index_put_((torch.tensor(0), torch.tensor(32), torch.tensor(17)), torch.tensor(0)),
    ],
    ids=["cut in two", "open", "cut off", "a second one", "a hole"],
)
def test_a_damaged_heart_does_not(damage):
    assert not obeys(damage(heart()), HEART).any()


def test_maps_are_judged_one_by_one():
    masks = torch.cat([heart(), torch.roll(heart(), 25, 2), heart() * 0])
    assert obeys(masks, HEART).tolist() == [True, False, True]


@dataclass(frozen=True)
class Erase(MaskTransform):
    """Takes a class away from maps that draw a number below a chance."""

    label: int
    chance: float

    def _changed(self, masks, noise):
        return torch.where((masks == self.label) & (noise.uniform() < self.chance)[:, None, None], 0, masks + 0)


def test_maps_that_break_a_rule_are_drawn_again():
    masks = heart().expand(40, -1, -1)
    shifts = RandomAffine(translation=0.3)
    assert not obeys(shifts(masks, NoiseSource(0, range(40))), HEART).all()
    checked = Checked(shifts, tries=30)
    out = checked(masks, NoiseSource(0, range(40)))
    assert obeys(out, HEART).all()
    assert (out != masks).flatten(1).any(1).all()
    assert checked.tally.accepted == 40
    assert checked.tally.rejected > 0
    assert checked.tally.given_up == 0


def test_maps_stay_as_they_were_where_all_tries_fail(caplog):
    checked = Checked(Thin(LV, 20, becomes=0), tries=3)
    out = checked(hearts(5), NoiseSource(0, range(5)))
    assert "all 5 maps stay as they were: no result of Thin" in caplog.text
    assert torch.equal(out, hearts(5))
    assert checked.tally == Tally(accepted=0, rejected=15, given_up=5)


def test_the_tally_goes_on_counting():
    checked = Checked(Thicken(MYO, 1, into=LV))
    for seed in range(3):
        checked(hearts(4), NoiseSource(seed, range(4)))
    assert checked.tally == Tally(accepted=12)


def test_results_that_lost_most_of_a_class_are_drawn_again():
    masks = heart().expand(30, -1, -1)
    vanish = Erase(RV, 0.5)
    assert (vanish(masks, NoiseSource(0, range(30))) != RV).flatten(1).all(1).any()
    assert (Checked(vanish)(masks, NoiseSource(0, range(30))) == RV).flatten(1).any(1).all()
    lenient = Checked(vanish, keeps=0)
    lenient(masks, NoiseSource(0, range(30)))
    assert lenient.tally.rejected == 0


def test_each_try_draws_anew():
    checked = Checked(Erase(RV, 0.9), tries=60)
    checked(heart().expand(20, -1, -1), NoiseSource(0, range(20)))
    assert checked.tally.given_up == 0
    assert checked.tally.rejected > 60


def test_rules_with_a_scar_take_scar_and_wall_together():
    scarred = InsertLesion(MYO, SCAR, inner=LV)(hearts(8), NoiseSource(0, range(8)))
    wall = (MYO, SCAR)
    assert not obeys(scarred, [Enclosed(LV, by=MYO)]).any()
    assert obeys(scarred, [OneComponent(wall), Enclosed(LV, by=wall), NoHoles((LV, *wall))]).all()
    assert obeys(scarred, SCARRED_HEART).all()
    assert not obeys(scarred, HEART).any()


def test_noise_of_another_kind_is_refused_with_what_to_give():
    with pytest.raises(ValueError, match=r"noise is 0; give medgen\.noise\.NoiseSource\(seed, range\(2\)\)"):
        Thin(1, 1)(hearts(2), 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Checked(Thin(1, 1), tries=0), "tries is 0; use at least 1"),
        (lambda: Checked(Thin(1, 1), keeps=-1), "keeps is -1; it must be 0 or more"),
        (lambda: Checked(Thin(1, 1), rules=[OneComponent]), r"rules\[0\] is <class .*; give a rule of medgen\.anatomy"),
        (lambda: OneComponent(()), r"labels is \(\); give class numbers"),
        (lambda: Enclosed(3, by=(2, 3)), r"by is \(2, 3\), which shares \[3\] with labels 3"),
        (lambda: Size(1, (0.5, 0.1)), r"share is \(0\.5, 0\.1\)"),
    ],
)
def test_rules_without_meaning_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_missing_scipy_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r'need SciPy; run: pip install "medgen\[eval\]"'):
        obeys(disc(), HEART)


@pytest.fixture(scope="module")
def real_maps(data_root):
    """Every sixth training map of the cardiac data, (n, 128, 128)."""
    folder = data_root / "cardiac_mr"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    with (folder / "labels.csv").open() as file:
        names = [row["label_map"] for row in csv.DictReader(file) if row["split"] == "train"][::6]
    with zipfile.ZipFile(folder / "images_labels.zip") as archive:
        maps = [np.array(Image.open(io.BytesIO(archive.read(name)))) for name in names]
    return torch.from_numpy(np.stack(maps).astype(np.int64))


@pytest.mark.slow
def test_nearly_all_real_hearts_obey(real_maps):
    assert obeys(real_maps, HEART).float().mean() > 0.97


@pytest.mark.slow
def test_smooth_deformations_keep_real_hearts_whole(real_maps):
    good = real_maps[obeys(real_maps, HEART)][:40]
    deform = Compose((RandomElastic(3, 20), RandomAffine(rotation_degrees=20, scaling=0.1, shear_degrees=5)))
    assert obeys(deform(good, NoiseSource(0, range(len(good)))), HEART).float().mean() > 0.93
