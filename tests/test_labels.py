import numpy as np
import pytest
import torch

from medgen.labels import LabelSpace

SINGLE = LabelSpace("single", ("No Finding", "Pneumonia"))
MULTI = LabelSpace("multi", ("Edema", "Effusion", "Fracture"))
CONTINUOUS = LabelSpace("continuous", ("age", "dose"))
NONE = LabelSpace()


@pytest.mark.parametrize(
    "label",
    [
        *(1, "Pneumonia", "pneumonia", "1", torch.tensor([1, 1, 1]), [1, "Pneumonia", "1"]),
        *(np.int64(1), np.str_("Pneumonia"), np.array(1), np.array([1, 1, 1]), np.array(["1", "Pneumonia", "1"])),
    ],
)
def test_a_class_goes_by_number_or_name_in_any_case(label):
    condition = SINGLE.resolve(label, 3)
    assert condition.dtype == torch.int64
    assert condition.tolist() == [1, 1, 1]


def test_each_image_can_have_its_own_class():
    assert SINGLE.resolve([0, "pneumonia", 0], 3).tolist() == [0, 1, 0]


def test_class_0_of_numpy_is_a_class():
    assert SINGLE.resolve(np.int64(0), 2).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("label", "rows"),
    [
        ("effusion", [[0, 1, 0]] * 2),
        (2, [[0, 0, 1]] * 2),
        (["Edema", 2], [[1, 0, 1]] * 2),
        ([["Edema"], []], [[1, 0, 0], [0, 0, 0]]),
        ([], [[0, 0, 0]] * 2),
        (torch.tensor([1, 0, 1]), [[1, 0, 1]] * 2),
        (torch.tensor([[1.0, 0, 1], [0, 1, 0]]), [[1, 0, 1], [0, 1, 0]]),
        (np.array([1, 0, 1]), [[1, 0, 1]] * 2),  # as a tensor; a list would name the findings 1, 0 and 1
        (np.array([[True, False, True], [False, True, False]]), [[1, 0, 1], [0, 1, 0]]),
        (np.array(["Edema", "fracture"]), [[1, 0, 1]] * 2),
        (np.int64(2), [[0, 0, 1]] * 2),
    ],
)
def test_findings_are_sets_shared_by_all_images_or_one_per_image(label, rows):
    condition = MULTI.resolve(label, 2)
    assert condition.dtype == torch.float32
    assert condition.tolist() == rows


@pytest.mark.parametrize(
    ("label", "rows"),
    [
        ([63, 0.5], [[63, 0.5]] * 2),
        ([[63, 0.5], [20, 1]], [[63, 0.5], [20, 1]]),
        (torch.tensor([5, 6]), [[5, 6]] * 2),
        (np.array([5, 6]), [[5, 6]] * 2),
    ],
)
def test_numbers_are_given_for_every_condition(label, rows):
    assert CONTINUOUS.resolve(label, 2).tolist() == rows


@pytest.mark.parametrize("label", [63, 63.5, np.float32(63.5)])
def test_a_single_condition_takes_a_bare_number(label):
    assert LabelSpace("continuous", ("age",)).resolve(label, 2).tolist() == [[label], [label]]


@pytest.mark.parametrize("space", [SINGLE, MULTI, CONTINUOUS, NONE])
def test_no_label_is_no_condition(space):
    assert space.resolve(None, 4) is None


@pytest.mark.parametrize(
    ("space", "label", "message"),
    [
        (SINGLE, "Pneumonie", "label 'Pneumonie' is unknown; use 0-1 or one of 'No Finding', 'Pneumonia'"),
        (SINGLE, 2, "label 2 is out of range; use 0-1 or one of"),
        (SINGLE, "2", "label 2 is out of range"),
        (SINGLE, -1, "label -1 is out of range"),
        (SINGLE, [0, 1, 7], "label 7 is out of range"),
        (SINGLE, True, "label True is neither a name nor a whole number"),
        (SINGLE, [0.5, 0, 0], "label 0.5 is neither a name nor a whole number"),
        (SINGLE, 0.5, "label 0.5 is neither a name nor a whole number"),
        (SINGLE, [[0], [1], [1]], r"label \[0\] is neither a name nor a whole number"),
        (SINGLE, [0, 1], "label has 2 entries for 3 images; give one label, or one per image"),
        (SINGLE, [], "label has 0 entries for 3 images"),
        (MULTI, ["Edema", "Cough"], "label 'Cough' is unknown; use 0-2 or one of 'Edema', 'Effusion', 'Fracture'"),
        (MULTI, [["Edema"], ["Edema"]], r"label has shape \(2, 3\); 3 images and 3 names need \(3, 3\)"),
        (MULTI, torch.tensor([0.5, 0, 0]), "holds values other than 0 and 1"),
        (MULTI, torch.zeros(3, 2), r"label has shape \(3, 2\)"),
        (CONTINUOUS, [63], r"label \[63\] has 1 numbers; give one for each of age, dose"),
        (CONTINUOUS, ["old", 1], "label 'old' is not a number"),
        (NONE, 0, "label is 0, but this model is unconditional; leave label out"),
    ],
)
def test_labels_that_make_no_sense_are_refused_with_the_choices(space, label, message):
    with pytest.raises(ValueError, match=message):
        space.resolve(label, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("singel", ("a",)), "label_kind is 'singel'; use 'none', 'single', 'multi' or 'continuous'"),
        (("none", ("a",)), "label_kind 'none' does not go with label_names"),
        (("single", ()), "label_kind 'single' does not go with label_names"),
        (("single", ("a", "b", "a")), "label_names has a name twice"),
    ],
)
def test_spaces_that_contradict_themselves_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LabelSpace(*arguments)


@pytest.mark.parametrize(
    ("space", "label", "texts"),
    [
        (SINGLE, [1, 0], ["Pneumonia", "No Finding"]),
        (MULTI, [["Edema", "Fracture"], []], ["Edema|Fracture", ""]),
        (CONTINUOUS, [[63, 0.5], [20, 1]], ["age=63|dose=0.5", "age=20|dose=1"]),
        (NONE, None, ["", ""]),
    ],
)
def test_conditions_are_described_in_a_word(space, label, texts):
    assert space.describe(space.resolve(label, 2), 2) == texts
