"""Label columns and policies, by known answers."""

import numpy as np
import pytest
import torch

from medgen.data.columns import Columns, class_labels, continuous_labels, finding_labels, listed_labels

NAN = float("nan")


def columns(**values):
    return Columns("t.csv", values)


def same(got, want):
    torch.testing.assert_close(got, torch.tensor(want), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_may_be_separated_by_commas_semicolons_or_tabs(separator):
    text = separator.join(["image", "label"]) + "\n" + separator.join(["a.png", '"x\ny"']) + "\n"
    assert Columns.parse(b"\xef\xbb\xbf" + text.encode(), "t.csv").values == {"image": ["a.png"], "label": ["x\ny"]}


def test_short_rows_are_filled_with_blanks_and_empty_lines_left_out():
    assert Columns.parse(b"a,b\n1\n\n 2 , 3\n", "t.csv").values == {"a": ["1", "2"], "b": ["", "3"]}


@pytest.mark.parametrize("content", [b"", b"image,label\n"])
def test_a_table_without_rows_is_refused(content):
    with pytest.raises(ValueError, match=r"t\.csv holds no rows"):
        Columns.parse(content, "t.csv")


def test_a_table_that_is_not_text_is_refused():
    with pytest.raises(ValueError, match=r"t\.csv is not a UTF-8 text table"):
        Columns.parse(b"\xff\xfe\x00\x01", "t.csv")


def test_a_wrong_column_is_named_beside_those_there_are():
    with pytest.raises(ValueError, match=r"t\.csv has no column 'labels'; its columns are image, label"):
        columns(image=["a"], label=["x"])["labels"]


def test_where_keeps_the_rows_that_meet_every_condition():
    table = columns(view=["PA", "AP", "PA"], sex=["F", "F", "M"], image=["a", "b", "c"])
    assert table.where({"view": "PA", "sex": ["F", "X"]})["image"] == ["a"]
    with pytest.raises(ValueError, match=r"no row of t\.csv is left by where: \{'view': 'LL'\}"):
        table.where({"view": "LL"})


def test_classes_are_numbered_in_the_order_given():
    labels = class_labels(columns(label=["ill", "well", "ill"]), "label", ["well", "ill"], "ignore", "ignore")
    assert (labels.space.kind, labels.space.names) == ("single", ("well", "ill"))
    same(labels.values, [1, 0, 1])
    assert labels.values.dtype == torch.int64


def test_classes_are_sorted_where_none_are_given():
    assert class_labels(columns(label=["b", "a", ""]), "label", None, "ignore", "ignore").space.names == ("a", "b")


def test_classes_that_are_numbers_are_sorted_by_size():
    labels = class_labels(columns(grade=["10", "2", "0", "1", "-1", "11"]), "grade", None, "ignore", "ignore")
    assert labels.space.names == ("0", "1", "2", "10", "11")
    same(labels.values, [3, 2, 0, 1, -1, 4])
    mixed = class_labels(columns(grade=["10", "2", "x"]), "grade", None, "ignore", "ignore")
    assert mixed.space.names == ("10", "2", "x")


def test_classes_may_be_written_as_numbers():
    labels = class_labels(columns(ill=["1.0", "0", "-1", ""]), "ill", ["no", "yes"], "ignore", "ignore")
    same(labels.values, [1, 0, -1, -1])


def test_an_unknown_class_is_counted_and_the_way_out_named():
    table = columns(label=["a", "b", "c", "c"])
    with pytest.raises(
        ValueError, match=r"not in label_names \['a', 'b'\]: 'c' \(2 rows\).*where: \{label: \['a', 'b'\]\}"
    ):
        class_labels(table, "label", ["a", "b"], "ignore", "ignore")


@pytest.mark.parametrize(
    ("policy", "values", "keep"),
    [
        ("ones", [1.0, 0.0, 1.0, 1.0], [True] * 4),
        ("zeros", [1.0, 0.0, 0.0, 1.0], [True] * 4),
        ("ignore", [1.0, 0.0, NAN, 1.0], [True] * 4),
        ("drop", [1.0, 0.0, NAN, 1.0], [True, True, False, True]),
    ],
)
def test_uncertain_findings_follow_their_policy(policy, values, keep):
    labels = finding_labels(columns(edema=["1", "0", "-1.0", "1.0"]), ["edema"], policy, "ignore")
    same(labels.values[:, 0], values)
    assert labels.values.dtype == torch.float32
    np.testing.assert_array_equal(labels.keep, keep)


def test_blank_findings_have_a_policy_of_their_own():
    labels = finding_labels(columns(edema=["", "-1"], mass=["1", ""]), ["edema", "mass"], "ones", "zeros")
    same(labels.values, [[0.0, 1.0], [1.0, 0.0]])


def test_policies_hold_for_two_classes_as_for_findings():
    labels = class_labels(columns(ill=["1", "-1", ""]), "ill", ["no", "yes"], "ones", "zeros")
    same(labels.values, [1, 1, 0])


def test_ones_and_zeros_need_two_classes():
    with pytest.raises(ValueError, match="blank='ones' needs two classes, but column 'label' has others"):
        class_labels(columns(label=["a", "b", "c", ""]), "label", None, "ignore", "ones")


def test_a_misspelt_policy_is_refused():
    with pytest.raises(ValueError, match="uncertain is 'maybe'; use 'ones', 'zeros', 'ignore' or 'drop'"):
        finding_labels(columns(edema=["1"]), ["edema"], "maybe", "ignore")


@pytest.mark.parametrize(
    ("cell", "message"), [("2", "holds '2'; a finding is 1, 0, -1"), ("yes", "holds 'yes', which is not a number")]
)
def test_findings_must_be_findings(cell, message):
    with pytest.raises(ValueError, match=message):
        finding_labels(columns(edema=["1", cell]), ["edema"], "ignore", "ignore")


def test_listed_findings_become_a_vector():
    labels = listed_labels(
        columns(found=["Edema|Mass", "None", "Mass", ""]), "found", "|", ["None", "Edema", "Mass"], "ignore"
    )
    same(labels.values, [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [NAN, NAN, NAN]])


def test_listed_findings_must_be_known():
    with pytest.raises(ValueError, match=r"not in label_names \['Edema'\]: 'Mass' \(1 rows\)"):
        listed_labels(columns(found=["Edema|Mass"]), "found", "|", ["Edema"], "ignore")


def test_continuous_conditions_keep_their_numbers():
    labels = continuous_labels(columns(age=["63", "-1", ""], bmi=["20.5", "21", "22"]), ["age", "bmi"], "ignore")
    same(labels.values, [[63.0, 20.5], [-1.0, 21.0], [NAN, 22.0]])
    dropped = continuous_labels(columns(age=["63", ""]), ["age"], "drop")
    np.testing.assert_array_equal(dropped.keep, [True, False])
