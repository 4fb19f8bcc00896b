"""CheXpert and ChestX-ray14 in the layouts they are downloaded in, and the registry of data sets."""

import shutil
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch

from medgen.data import DATASETS, ChestXray14DataModule, CheXpertDataModule
from medgen.data.base import ImageDataModule
from tests.data.fakes import write_chestxray14, write_chexpert, write_table

OPTIONS = {"image_size": 16, "batch_size": 2}


@pytest.fixture
def chexpert(tmp_path):
    return write_chexpert(tmp_path)


def test_chexpert_takes_frontal_films_and_counts_unknown_cardiomegaly_as_no(chexpert):
    data = CheXpertDataModule(root=str(chexpert), **OPTIONS)
    assert data.label_space.names == ("No Cardiomegaly", "Cardiomegaly")
    assert data.dataset("train").labels.tolist() == [1, 0, 0, 0]
    assert data.dataset("val").labels.tolist() == [1, 0]
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 1, 16, 16)


def test_chexpert_is_found_below_the_folder_given_or_in_a_zip(chexpert, tmp_path):
    want = CheXpertDataModule(root=str(chexpert), **OPTIONS).dataset("train")[3]["image"]
    archive = shutil.make_archive(str(tmp_path / "download"), "zip", chexpert.parent, chexpert.name)
    for root in (chexpert.parent, archive):
        torch.testing.assert_close(CheXpertDataModule(root=str(root), **OPTIONS).dataset("train")[3]["image"], want)


@pytest.mark.parametrize(
    ("policies", "labels"),
    [
        ({"uncertain": "ones"}, [1, 0, 1, 0]),
        ({"uncertain": "ignore", "blank": "ignore"}, [1, 0, -1, -1]),
        ({"uncertain": "drop"}, [1, 0, 0]),
        ({"blank": "drop"}, [1, 0, 0]),
    ],
)
def test_chexpert_policies_for_uncertain_and_blank(chexpert, policies, labels):
    assert CheXpertDataModule(root=str(chexpert), **OPTIONS, **policies).dataset("train").labels.tolist() == labels


def test_chexpert_gives_all_findings_and_lateral_films_if_asked(chexpert):
    data = CheXpertDataModule(root=str(chexpert), finding=None, frontal_only=False, blank="ignore", **OPTIONS)
    labels = data.dataset("train").labels
    assert labels.shape == (5, 14)
    assert data.label_space.kind == "multi"
    assert labels[:, 2].nan_to_num(-1).tolist() == [1, 1, 0, 0, -1]
    assert data.table.patients[:2] == ["patient00001", "patient00001"]


def test_chexpert_has_no_test_split(chexpert):
    with pytest.raises(ValueError, match="split 'test' is empty; images per split: train 4, val 2, test 0"):
        CheXpertDataModule(root=str(chexpert), **OPTIONS).test_dataloader()


def test_chexpert_says_what_it_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds neither train\.csv nor a folder CheXpert-v1\.0"):
        CheXpertDataModule(root=str(tmp_path), **OPTIONS).dataset("train")
    with pytest.raises(ValueError, match="finding is 'Flu'; CheXpert has No Finding, Enlarged"):
        CheXpertDataModule(root=str(tmp_path), finding="Flu", **OPTIONS)


@pytest.fixture
def chestxray14(tmp_path):
    return write_chestxray14(tmp_path / "nih")


def test_chestxray14_has_15_labels_and_finds_its_images_in_all_folders(chestxray14):
    data = ChestXray14DataModule(root=str(chestxray14), **OPTIONS)
    assert (len(data.label_space.names), data.label_space.names[0]) == (15, "No Finding")
    data.prepare_data()
    label = data.dataset("test").labels[0]  # patient 17: 17 % 3 = 2
    assert [name for name, on in zip(data.label_space.names, label, strict=True) if on] == ["Consolidation", "Edema"]


def test_chestxray14_keeps_the_published_test_split_and_parts_no_patient(chestxray14):
    table = ChestXray14DataModule(root=str(chestxray14), val_fraction=0.25, **OPTIONS).table
    sizes = {split: len(table.rows(split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 24, "val": 8, "test": 8}
    assert {table.patients[row] for row in table.rows("test")} == {"17", "18", "19", "20"}


def test_chestxray14_without_lists_is_split_by_patient(chestxray14):
    for name in ("train_val_list.txt", "test_list.txt"):
        (chestxray14 / name).unlink()
    table = ChestXray14DataModule(root=str(chestxray14), val_fraction=0.25, test_fraction=0.2, **OPTIONS).table
    assert len(table.rows("test")) == 8
    assert np.unique(np.array(table.patients)[table.rows("test")]).size == 4


def test_chestxray14_names_missing_images(chestxray14):
    shutil.rmtree(chestxray14 / "images_002")
    with pytest.raises(FileNotFoundError, match=r"20 of 40 files are missing below .*: 00000002_000\.png"):
        ChestXray14DataModule(root=str(chestxray14), **OPTIONS).prepare_data()


def test_chestxray14_needs_its_table(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no Data_Entry_2017\*\.csv"):
        ChestXray14DataModule(root=str(tmp_path), **OPTIONS).dataset("train")


def fake_root(name, folder):
    if name == "chexpert":
        return {"root": str(write_chexpert(folder))}
    if name == "chestxray14":
        return {"root": str(write_chestxray14(folder))}
    return {"csv": str(write_table(folder)), "label_column": "label", "split_column": "split"}


@pytest.mark.parametrize("name", DATASETS)
def test_every_registered_data_set_is_a_data_module_that_yields_batches(name, tmp_path):
    home, _, attribute = DATASETS[name].rpartition(".")
    module_class = getattr(import_module(home), attribute)
    assert issubclass(module_class, ImageDataModule)
    data = module_class(**fake_root(name, tmp_path), **OPTIONS)
    for batch in (next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))):
        assert batch["image"].shape[1:] == (1, 16, 16)
        assert 0 <= batch["image"].min() < batch["image"].max() <= 1
        assert batch["label"].shape[0] == batch["image"].shape[0]


def test_listing_data_sets_needs_no_torch():
    code = "import sys, medgen.data; medgen.data.DATASETS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
