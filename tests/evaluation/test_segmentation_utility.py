"""What synthetic cases add to a few patients: on squares, and with networks whose scores are made up."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon

from medgen.data.augmentation import Augmentation
from medgen.evaluation import segmentation_utility
from medgen.evaluation.judges.segmentation import PatientScores, SegmentedImages
from medgen.evaluation.segmentation_utility import (
    Cohort,
    SegmentationSetup,
    choose_patients,
    segmentation_utility_by_patients,
    utility_table,
    worst_label,
)
from tests.evaluation.test_segmentation import RECIPE, squares

GROUPS = {f"p{i:02}": ("healthy", "ill", "rare")[0 if i < 20 else 1 if i < 32 else 2] for i in range(36)}
NAMES = ("background", "bright", "dim")


def two_kinds(n, seed):
    """Patients with bright squares on dark ground, and as many patients in negative."""
    parts = squares(n, seed), squares(n, seed + 100)
    images = torch.cat([parts[0].images, 1 - parts[1].images])
    masks = torch.cat([part.masks for part in parts])
    rows = torch.arange(2 * n)
    return SegmentedImages(images=images, masks=masks, rows=rows, groups=rows // 2, labels=(rows >= n).long())


def setup(**changes):
    options = {"test": squares(12, 1), "recipe": RECIPE, "class_names": NAMES, "label_names": ("positive", "negative")}
    return SegmentationSetup(**(options | changes))


class Trained:
    """What a made-up training saw."""

    def __init__(self, train, recipe):
        self.sizes = [len(part) for part in train]
        self.labels = [None if part.labels is None else part.labels[part.rows].unique().tolist() for part in train]
        self.recipe = recipe


@pytest.fixture
def trainings(monkeypatch):
    """No network is trained. Scores of twelve patients, who differ a lot, rise by what a training saw."""
    found = []

    def train(parts, recipe, classes, *, device, seed):
        found.append(Trained(parts, recipe))
        return found[-1]

    def scores(module, data):
        patients = data.groups[data.rows].unique()
        each = 0.5 + 0.03 * torch.arange(len(patients), dtype=torch.float64)
        better = 0.1 * (len(module.sizes) - 1) + 0.01 * (module.recipe.augment != Augmentation())
        each = each + better * torch.linspace(0.9, 1.1, len(patients), dtype=torch.float64)
        firsts = torch.tensor([(data.groups == patient).nonzero()[0, 0] for patient in patients])
        labels = None if data.labels is None else data.labels[firsts]
        dice = torch.stack([each, each + 0.02], 1)
        return PatientScores(patients=patients, labels=labels, dice=dice, hausdorff=10 * (1 - dice))

    monkeypatch.setattr(segmentation_utility, "train_segmenter", train)
    monkeypatch.setattr(segmentation_utility, "patient_scores", scores)
    return found


@pytest.mark.parametrize("k", [3, 9, 18, 36])
def test_chosen_patients_have_the_groups_in_their_shares(k):
    for seed in range(5):
        chosen = choose_patients(GROUPS, k, seed)
        assert len(set(chosen)) == k
        groups = [GROUPS[patient] for patient in chosen]
        for group, share in (("healthy", 20 / 36), ("ill", 12 / 36), ("rare", 4 / 36)):
            assert abs(groups.count(group) - share * k) <= 1


def test_of_groups_of_equal_size_the_first_patients_are_one_each():
    groups = {f"p{i}": f"group {i % 5}" for i in range(60)}
    for seed in range(5):
        assert {groups[patient] for patient in choose_patients(groups, 5, seed)} == set(groups.values())


def test_more_patients_hold_the_fewer_ones_and_another_seed_others():
    for k in range(1, 36):
        assert set(choose_patients(GROUPS, k, seed=2)) < set(choose_patients(GROUPS, k + 1, seed=2))
    assert choose_patients(GROUPS, 12, seed=2) == choose_patients(dict(reversed(GROUPS.items())), 12, seed=2)
    assert set(choose_patients(GROUPS, 12, seed=2)) != set(choose_patients(GROUPS, 12, seed=3))


@pytest.mark.parametrize("k", [0, 37])
def test_patients_that_are_not_there_cannot_be_chosen(k):
    with pytest.raises(ValueError, match=f"k is {k}; choose from 1 to all 36 patients"):
        choose_patients(GROUPS, k)


def test_every_number_of_patients_is_compared_in_every_way(trainings):
    real = replace(squares(20, 0), labels=torch.arange(20) % 2)
    synthetic = replace(squares(40, 2), labels=torch.arange(40) % 2)
    cohorts = [Cohort(real=real.subset(torch.arange(n)), synthetic=synthetic) for n in (4, 20)]
    val = replace(squares(12, 3), labels=torch.arange(12) % 4 // 2)
    rows = segmentation_utility_by_patients(cohorts, setup(val=val, ratio=1.5, seeds=2))
    ways = [
        ("real", ""),
        ("real + classical", "real"),
        ("real + synthetic", "real"),
        ("real + classical + synthetic", "real + classical"),
        ("real + targeted synthetic", "real"),
    ]
    assert [(row.name, row.baseline) for row in rows] == 2 * ways
    assert [row.patients for row in rows] == 5 * [2] + 5 * [10]
    assert [row.synthetic for row in rows] == [0, 0, 6, 6, 6, 0, 0, 30, 30, 20]  # 20 of the label are all there are
    assert len(trainings) == 2 * 5 * 2


def test_all_ways_take_as_many_steps_and_only_the_classical_ones_change_images(trainings):
    flips = Augmentation(vertical_flip=True)
    segmentation_utility_by_patients([Cohort(real=squares(8, 0), synthetic=squares(8, 2))], setup(classical=flips))
    assert {item.recipe.steps for item in trainings} == {RECIPE.steps}
    assert [item.recipe.augment == flips for item in trainings] == [False, True, False, True]


def test_without_a_generator_there_are_real_images_only(trainings):
    rows = segmentation_utility_by_patients([Cohort(real=squares(8, 0))], setup())
    assert [row.name for row in rows] == ["real", "real + classical"]


@pytest.mark.slow
def test_the_label_with_the_worst_validation_dice_is_the_target_whatever_the_test_says(trainings):
    synthetic = replace(squares(40, 2), labels=torch.arange(40) % 2)
    labels = torch.arange(24) >= 12  # made-up scores rise with the patient's number
    for low, name in ((0, "positive"), (1, "negative")):
        val = replace(squares(24, 3), labels=(labels == (low == 0)).long())
        test = replace(squares(24, 1), labels=(labels == (low == 1)).long())
        *_, row = segmentation_utility_by_patients(
            [Cohort(real=squares(8, 0), synthetic=synthetic)], setup(val=val, test=test)
        )
        assert (row.name, row.target) == ("real + targeted synthetic", name)
        assert trainings[-1].labels == [None, [low]]


def test_patients_of_unknown_label_do_not_choose():
    dice = torch.tensor([[0.1, 0.1], [0.8, 0.8], [0.7, torch.nan], [0.9, 0.6]])
    scores = PatientScores(
        patients=torch.arange(4), labels=torch.tensor([-1, 0, 2, 2]), dice=dice, hausdorff=torch.zeros(4, 2)
    )
    assert worst_label(scores) == 2
    with pytest.raises(ValueError, match="the patients have no labels to choose from"):
        worst_label(replace(scores, labels=None))


def test_gains_are_measured_patient_by_patient(trainings):
    rows = segmentation_utility_by_patients(
        [Cohort(real=squares(8, 0), synthetic=squares(8, 2))], setup(test=squares(24, 1))
    )
    real, classical, synthetic, both = (row.dice for row in rows)
    assert real.value.value == pytest.approx(np.mean(0.5 + 0.03 * np.arange(12)) + 0.01)
    assert synthetic.gain.value == pytest.approx(0.1)
    assert both.gain.value == pytest.approx(0.1)  # over classical augmentation, not over real images alone
    assert 0.09 < synthetic.gain.low < synthetic.gain.high < 0.11
    assert real.value.high - real.value.low > 0.1  # patients differ by more than ways do
    assert rows[2].hausdorff.gain.value == pytest.approx(-1)
    assert real.gain is None
    assert classical.per_class["dim"].value - classical.per_class["bright"].value == pytest.approx(0.02)
    p = wilcoxon(np.subtract(synthetic.by_patient, real.by_patient)).pvalue
    assert synthetic.p == pytest.approx(3 * p)  # all three differ as clearly, so Holm takes each times three


def test_patients_of_each_label_have_numbers_of_their_own(trainings):
    test = replace(squares(24, 1), labels=(torch.arange(24) >= 12).long())
    real, _ = segmentation_utility_by_patients([Cohort(real=squares(8, 0))], setup(test=test))
    assert real.dice.per_label["positive"].value == pytest.approx(0.5 + 0.03 * 2.5 + 0.01)
    assert real.dice.per_label["negative"].value == pytest.approx(0.5 + 0.03 * 8.5 + 0.01)


@pytest.mark.slow
def test_the_table_names_patients_ways_gains_and_classes(trainings):
    val = replace(squares(24, 3), labels=torch.arange(24) // 12)
    synthetic = replace(squares(8, 2), labels=torch.arange(8) // 4)
    rows = segmentation_utility_by_patients(
        [Cohort(real=squares(8, 0), synthetic=synthetic)], setup(val=val, test=squares(24, 1))
    )
    header, rule, first, *_, last = utility_table(rows).splitlines()
    assert header == "| patients | trained on | synthetic images | Dice | bright | dim | gain | p |"
    assert rule == "| --- | --- | --- | --- | --- | --- | --- | --- |"
    assert first.startswith("| 4 | real | 0 | 0.675 (0.6")
    assert first.endswith("|  |  |")
    assert last.startswith("| 4 | real + targeted synthetic (positive) | 4 | 0.775 (0.7")
    assert "| +0.100 (+0.0" in last
    assert last.endswith(") on real | 0.002 |")
    distances = utility_table(rows, "hausdorff").splitlines()
    assert distances[0].startswith("| patients | trained on | synthetic images | 95 % Hausdorff distance (pixels) | ")
    assert "| -1.0 (-1.0 to -1.0) on real |" in distances[-1]
    with pytest.raises(ValueError, match="there are no outcomes"):
        utility_table([])


def test_the_table_can_show_the_labels_of_test_patients(trainings):
    test = replace(squares(24, 1), labels=(torch.arange(24) >= 12).long())
    rows = segmentation_utility_by_patients([Cohort(real=squares(8, 0))], setup(test=test))
    assert utility_table(rows, by="label").startswith(
        "| patients | trained on | synthetic images | Dice | positive | negative | gain | p |"
    )


@pytest.mark.parametrize(("option", "value"), [("ratio", 0), ("seeds", 0)])
def test_settings_that_make_no_sense_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}; "):
        setup(**{option: value})


def test_names_that_some_labels_lack_are_refused():
    test = replace(squares(4, 1), labels=torch.tensor([0, 0, 2, 2]))
    with pytest.raises(ValueError, match="label_names has 2 names, but test images have labels up to 2"):
        setup(test=test)


@pytest.mark.slow
def test_synthetic_cases_of_a_kind_that_real_ones_lack_are_chosen_and_help():
    cohort = Cohort(real=two_kinds(16, 0).subset(torch.arange(16)), synthetic=two_kinds(24, 2))
    rows = segmentation_utility_by_patients(
        [cohort], setup(val=two_kinds(4, 3), test=two_kinds(6, 1), classical=Augmentation(horizontal_flip=True))
    )
    found = {row.name: row for row in rows}
    targeted, real = found["real + targeted synthetic"], found["real"]
    assert targeted.target == "negative"
    assert targeted.synthetic == 16
    assert real.dice.per_label["negative"].value < 0.5 < 0.8 < real.dice.per_label["positive"].value
    assert targeted.dice.per_label["negative"].value > real.dice.per_label["negative"].high
    assert targeted.hausdorff.per_label["negative"].value < real.hausdorff.per_label["negative"].low


def test_the_benchmark_goes_on_with_the_same_settings_only(tmp_path):
    path = Path(__file__).parents[2] / "benchmarks" / "segmentation_utility.py"
    benchmark = runpy.run_path(str(path))
    keep, folder = benchmark["keep_settings"], tmp_path / "patients-4"
    settings = {"config": {"model": {"lr": 1e-4}}, "ratio": 2, "change": "def change(): ..."}
    for _ in range(2):
        keep(folder, settings)
    for name, value in (("config", {"model": {"lr": 1e-3}}), ("ratio", 3), ("change", "def change(): pass")):
        with pytest.raises(ValueError, match=f"patients-4 holds results of another {name}; choose another --out"):
            keep(folder, settings | {name: value})
    keep(folder, settings)
    (folder / "settings.json").unlink()
    with pytest.raises(ValueError, match="results of another config, ratio, change"):
        keep(folder, settings)
