"""Splits keep patients together and labels in proportion."""

from collections import Counter

import numpy as np
import pytest
import torch

from medgen.data.splits import split_by_patient


def homes(patients, splits):
    found = {}
    for patient, split in zip(patients, splits, strict=True):
        found.setdefault(patient, set()).add(split)
    return found


@pytest.fixture
def findings():
    """500 patients with one to four images and three findings, one of them rare."""
    random = np.random.default_rng(0)
    patients = [f"p{patient}" for patient in range(500) for _ in range(random.integers(1, 5))]
    labels = (random.random((len(patients), 3)) < [0.5, 0.1, 0.02]).astype(np.float32)
    return patients, torch.from_numpy(labels)


def test_no_patient_is_in_two_splits(findings):
    patients, labels = findings
    assert all(len(where) == 1 for where in homes(patients, split_by_patient(patients, labels)).values())
    assert all(len(where) == 1 for where in homes(patients, split_by_patient(patients, None)).values())


def test_patients_are_shared_out_in_the_fractions_asked_for(findings):
    patients, labels = findings
    for given in (labels, None):
        shares = Counter(next(iter(where)) for where in homes(patients, split_by_patient(patients, given)).values())
        assert shares["train"] / 500 == pytest.approx(0.8, abs=0.01)
        assert shares["val"] / 500 == pytest.approx(0.1, abs=0.01)


@pytest.mark.slow
def test_every_split_has_its_share_of_every_finding(findings):
    patients, labels = findings
    splits = np.array(split_by_patient(patients, labels, fractions=(0.5, 0.25, 0.25)))
    for column in range(3):
        carriers = {patient for patient, on in zip(patients, labels[:, column], strict=True) if on}
        where = Counter(next(iter(homes(patients, splits)[patient])) for patient in carriers)
        for split, share in (("train", 0.5), ("val", 0.25), ("test", 0.25)):
            assert where[split] == pytest.approx(share * len(carriers), abs=1.5)


def test_single_classes_are_stratified_too():
    labels = torch.tensor([0] * 180 + [1] * 20)
    splits = split_by_patient([str(n) for n in range(200)], labels, fractions=(0.5, 0.5, 0.0))
    assert Counter(split for split, label in zip(splits, labels.tolist(), strict=True) if label) == {
        "train": 10,
        "val": 10,
    }


def test_the_split_depends_on_the_seed_but_not_on_the_order_of_rows(findings):
    patients, labels = findings
    splits = split_by_patient(patients, labels, seed=1)
    order = np.random.default_rng(1).permutation(len(patients))
    shuffled = split_by_patient([patients[row] for row in order], labels[torch.from_numpy(order)], seed=1)
    assert shuffled == [splits[row] for row in order]
    assert split_by_patient(patients, labels, seed=2) != splits


def test_fractions_must_sum_to_one():
    with pytest.raises(ValueError, match=r"split_fractions is \(0\.5, 0\.1, 0\.1\)"):
        split_by_patient(["a"], None, fractions=(0.5, 0.1, 0.1))


def test_too_few_patients_are_refused():
    with pytest.raises(ValueError, match="2 patients cannot be dealt out to 3 splits"):
        split_by_patient(["a", "b", "b"], None)
