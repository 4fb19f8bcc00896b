"""A user's own images, by CSV or by folders: batches by known content, and every mistake by its message."""

import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from medgen.data import Augmentation, TableDataModule
from medgen.data.readers import decode_image, read_image
from tests.data.fakes import picture, write_csv, write_picture, write_table


def module(csv, **options):
    defaults = {"label_column": "label", "patient_column": "patient", "split_column": "split", "image_size": 24}
    return TableDataModule(**{"csv": str(csv), "batch_size": 4} | defaults | options)


@pytest.fixture
def csv(tmp_path):
    return write_table(tmp_path / "data")


def test_batches_hold_images_labels_and_indices(csv):
    data = module(csv)
    batch = next(iter(data.val_dataloader()))
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "image": ((4, 1, 24, 24), torch.float32),
        "label": ((4,), torch.int64),
        "index": ((4,), torch.int64),
    }
    assert batch["index"].tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(
        batch["image"][1, 0], torch.from_numpy(picture(13) / np.float32(255))
    )  # images 0 to 11 are for training
    assert (data.label_space.kind, data.label_space.names) == ("single", ("healthy", "ill"))
    assert batch["label"].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("cache", [True, False])
def test_the_zip_the_folder_and_both_ways_of_reading_agree(csv, tmp_path, cache):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for file in sorted((tmp_path / "data" / "images").iterdir()):
            archive.write(file, f"cohort/images/{file.name}")
    zipped = module(csv, root=str(tmp_path / "images.zip" / "cohort"), cache=cache)
    for got, want in zip(zipped.train_dataloader(), module(csv).train_dataloader(), strict=True):
        torch.testing.assert_close(got["image"], want["image"], rtol=0, atol=0)
        assert got["index"].tolist() == want["index"].tolist()


def test_the_second_module_decodes_nothing(csv, monkeypatch):
    module(csv).prepare_data()
    monkeypatch.setattr("medgen.data.preprocessing.decode_image", pytest.fail)
    assert len(module(csv).dataset("train")) == 12


def test_a_changed_file_or_setting_is_decoded_anew(csv):
    before = module(csv).dataset("val")[0]["image"]
    write_picture(csv.parent / "images" / "012.png", seed=99)
    after = module(csv).dataset("val")[0]["image"]
    assert not torch.equal(before, after)
    assert module(csv, image_size=(12, 24)).dataset("val")[0]["image"].shape == (1, 12, 24)


def test_fingerprints_change_with_files_labels_and_preprocessing_only(csv):
    fingerprint = module(csv).fingerprint("train")
    assert module(csv, batch_size=2, seed=5).fingerprint("train") == fingerprint
    others = {module(csv).fingerprint("val"), module(csv, image_size=16).fingerprint("train")}
    write_picture(csv.parent / "images" / "003.png", seed=98)
    others.add(module(csv).fingerprint("train"))
    csv.write_text(csv.read_text().replace("healthy", "well", 1))
    others.add(module(csv).fingerprint("train"))
    assert len(others | {fingerprint}) == 5


def test_colour_and_other_shapes(csv):
    image = module(csv, channels=3, image_size=(16, 32), resize="pad").dataset("train")[0]["image"]
    assert image.shape == (3, 16, 32)
    assert torch.equal(image[0], image[2])
    assert image[:, :, :8].eq(0).all()


def test_training_batches_are_augmented_by_epoch_and_eval_batches_are_not(csv):
    data = module(csv, augment=Augmentation(rotation_degrees=30), num_workers=0)
    plain, varied = data.dataset("train"), data.train_dataloader()
    first, second = list(varied), list(varied)
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one["image"], two["image"], rtol=0, atol=0)
    index = int(first[0]["index"][0])
    assert not torch.equal(first[0]["image"][0], plain[index]["image"])
    torch.testing.assert_close(first[0]["image"][0], plain[(0, index)]["image"], rtol=0, atol=0)
    assert not torch.equal(plain[(1, index)]["image"], plain[(0, index)]["image"])
    assert torch.equal(next(iter(data.val_dataloader()))["image"][0], data.dataset("val")[0]["image"])


def test_workers_give_the_same_batches(csv):
    options = {"augment": Augmentation(horizontal_flip=True, elastic_pixels=20)}
    alone = list(module(csv, **options).train_dataloader())
    shared = list(module(csv, num_workers=2, **options).train_dataloader())
    for one, two in zip(alone, shared, strict=True):
        torch.testing.assert_close(one["image"], two["image"], rtol=0, atol=0)
        assert one["index"].tolist() == two["index"].tolist()


@pytest.mark.parametrize("cache", [True, False])
def test_data_sets_travel_to_worker_processes_that_share_no_memory(csv, cache):
    dataset = module(csv, cache=cache).dataset("train")
    packed = pickle.dumps(dataset)
    torch.testing.assert_close(pickle.loads(packed)[3]["image"], dataset[3]["image"], rtol=0, atol=0)
    assert len(packed) < 10_000


def test_several_findings_are_a_vector_with_nan_for_unknown(csv):
    data = module(csv, label_column=["edema", "effusion"])
    assert (data.label_space.kind, data.label_space.names) == ("multi", ("edema", "effusion"))
    labels = torch.stack([item["label"] for item in (data.dataset("val")[row] for row in range(4))])
    torch.testing.assert_close(
        labels, torch.tensor([[0, 1], [1, 1], [0, torch.nan], [1, torch.nan]]), equal_nan=True, check_dtype=False
    )


def test_policies_apply_to_tables(csv):
    data = module(csv, label_column=["edema", "effusion"], uncertain="ones", blank="drop")
    assert len(data.dataset("val")) == 3
    assert data.dataset("val").labels[:, 1].tolist() == [1, 1, 1]


def test_conditions_may_be_continuous(csv):
    data = module(csv, label_column="age", label_kind="continuous")
    assert data.label_space.kind == "continuous"
    assert data.dataset("train").labels[:3, 0].tolist() == [40, 41, 42]


def test_labels_may_be_left_out(csv):
    data = module(csv, label_column=None)
    assert data.label_space.kind == "none"
    assert set(data.dataset("train")[0]) == {"image", "index"}


def test_masks_come_along_and_move_with_the_image(tmp_path):
    rows = []
    for number in range(4):
        write_picture(tmp_path / "images" / f"{number}.png", number)
        mask = np.zeros((24, 24), dtype=np.uint8)
        mask[number : number + 5, 2:8] = 2
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "labels" / f"{number}.png")
        rows.append((f"images/{number}.png", f"labels/{number}.png", "train"))
    csv = write_csv(tmp_path / "t.csv", ("image", "label_map", "split"), rows)
    options = {"label_column": None, "patient_column": None, "mask_column": "label_map", "mask_classes": 3}
    data = module(csv, augment=Augmentation(horizontal_flip=True, vertical_flip=True), **options)
    batch = next(iter(data.train_dataloader()))
    assert (batch["mask"].shape, batch["mask"].dtype) == ((4, 24, 24), torch.int64)
    assert batch["mask"].sum((1, 2)).tolist() == [2 * 30] * 4
    with pytest.raises(ValueError, match=r"mask_classes is 3, but the table has no masks"):
        module(csv, **options | {"mask_column": None}).dataset("train")
    with pytest.raises(ValueError, match=r"labels/0\.png holds the values 0, 2, but mask_classes allows 0\.\.1"):
        module(csv, **options | {"mask_classes": 2}).dataset("train")


@pytest.mark.parametrize("cache", [True, False])
def test_a_mask_of_another_size_than_its_image_is_refused_before_anything_is_misaligned(csv, cache):
    options = {"mask_column": "mask", "mask_classes": 3, "image_size": 16, "cache": cache}
    module(csv).prepare_data()  # the sizes of images that were decoded before are not known
    path = csv.parent / "masks" / "003.png"
    with Image.open(path) as mask:
        mask.crop((0, 0, 24, 20)).save(path)
    expected = (
        r"mask .*masks/003\.png has 20 x 24 pixels \(height x width\), but its image .*images/003\.png has 24 x 24; a "
        "label map must have the pixels of its image: resample by nearest neighbour"
    )
    with pytest.raises(ValueError, match=expected):
        list(module(csv, **options).train_dataloader())


def test_a_mask_is_compared_with_an_image_that_is_decoded_once(csv, monkeypatch):
    decoded = []

    def counting(data, name, **options):
        decoded.append(name)
        return decode_image(data, name, **options)

    data = module(csv, mask_column="mask", mask_classes=3, cache=False).dataset("train")
    monkeypatch.setattr("medgen.data.preprocessing.decode_image", counting)
    assert data.__getitems__([0, 1, 2])["mask"].shape == (3, 24, 24)
    assert len(decoded) == 3


def test_turned_photographs_and_their_masks_are_compared_as_they_are_seen(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    for number in range(4):
        Image.fromarray(picture(number, (24, 16))).save(tmp_path / f"{number}.jpg", exif=turned)
        Image.fromarray(np.eye(16, 24, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    rows = [(f"{number}.jpg", f"{number}.png", "train") for number in range(4)]
    csv = write_csv(tmp_path / "t.csv", ("image", "mask", "split"), rows)
    options = {"label_column": None, "patient_column": None, "mask_column": "mask", "mask_classes": 2}
    assert module(csv, **options).dataset("train")[0]["mask"].shape == (24, 24)


def test_slices_of_a_volume_are_rows_of_the_table(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    volume = np.random.default_rng(0).normal(0, 300, (20, 24, 5)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "ct.nii.gz")
    csv = write_csv(tmp_path / "t.csv", ("image", "slice"), [("ct.nii.gz", number) for number in range(5)])
    data = TableDataModule(
        csv=str(csv),
        frame_column="slice",
        split_fractions=(1, 0, 0),
        image_size=(24, 20),
        intensity_window=(-1000, 1000),
        intensity_unit="HU",
    )
    expected = (read_image(tmp_path / "ct.nii.gz", frame=3).pixels + 1000) / 2000
    got = data.dataset("train")[3]["image"][0].numpy()
    np.testing.assert_allclose(got, expected.clip(0, 1), atol=1 / 65535)


def test_class_folders_need_no_table(tmp_path):
    for number, folder in enumerate(["train/NORMAL", "train/PNEUMONIA", "val/NORMAL", "test/PNEUMONIA"]):
        for copy in range(3):
            write_picture(tmp_path / folder / f"{copy}.jpeg", number * 3 + copy)
    data = TableDataModule(root=str(tmp_path), image_size=16, batch_size=2)
    assert data.label_space.names == ("NORMAL", "PNEUMONIA")
    assert data.dataset("train").labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.dataset("test").labels.tolist() == [1, 1, 1]


def test_class_folders_without_splits_are_dealt_out(tmp_path):
    for number in range(20):
        write_picture(tmp_path / ("a", "b")[number % 2] / f"{number}.png", number)
    data = TableDataModule(root=str(tmp_path), image_size=16, split_fractions=(0.6, 0.2, 0.2))
    assert [len(data.dataset(split)) for split in ("train", "val", "test")] == [12, 4, 4]
    assert sorted(data.dataset("val").labels.tolist()) == [0, 0, 1, 1]


def test_a_folder_of_images_has_no_labels(tmp_path):
    for number in range(10):
        write_picture(tmp_path / f"{number}.png", number)
    data = TableDataModule(root=str(tmp_path), image_size=16)
    assert data.label_space.kind == "none"
    assert len(data.dataset("train")) == 8


def test_balanced_sampling_draws_rare_classes_as_often(tmp_path):
    for number in range(200):
        write_picture(tmp_path / "train" / ("rare" if number < 20 else "usual") / f"{number}.png", number)
    data = TableDataModule(root=str(tmp_path), image_size=16, balanced=True, batch_size=20)
    labels = torch.cat([batch["label"] for batch in data.train_dataloader()])
    assert 0.35 < labels.float().mean() < 0.65


@pytest.mark.parametrize(
    ("labels", "unseen"),
    [
        ({"label_names": ["healthy", "dead", "ill", "lost"]}, "'dead', 'lost'"),
        ({"label_column": ["age", "edema"], "label_kind": "multi"}, "'age'"),
    ],
)
def test_labels_that_no_training_image_has_cannot_be_balanced(csv, labels, unseen):
    csv.write_text(re.sub(r",(4|5)[0-9],", ",0,", csv.read_text()))  # ages that are a finding nobody has
    with pytest.raises(ValueError, match=f"balanced=True, but there is no training image of {unseen}; leave them out"):
        module(csv, balanced=True, **labels).train_dataloader()
    assert len(module(csv, **labels).train_dataloader())


def test_missing_images_are_counted_and_the_first_five_named(csv):
    for number in range(2, 9):
        (csv.parent / "images" / f"{number:03d}.png").unlink()
    expected = r"7 of 20 files are missing below .*: images/002\.png, .*images/006\.png, \.\.\."
    with pytest.raises(FileNotFoundError, match=expected):
        module(csv).prepare_data()


def test_a_patient_in_two_splits_is_refused(csv):
    csv.write_text(csv.read_text().replace("val-0", "train-0").replace("val-1", "train-1"))
    with pytest.raises(ValueError, match=r"2 patients are in more than one split: train-0 \(train, val\); train-1"):
        module(csv).dataset("train")


def test_an_empty_split_is_refused_with_the_sizes(csv):
    data = module(csv, where={"split": ["train", "test"]})
    with pytest.raises(ValueError, match="split 'val' is empty; images per split: train 12, val 0, test 4"):
        data.val_dataloader()


def test_unknown_splits_are_refused(csv):
    csv.write_text(csv.read_text().replace(",val,", ",holdout,"))
    with pytest.raises(ValueError, match=r"holds the splits \['holdout'\]; use train, val, test"):
        module(csv).dataset("train")


@pytest.mark.parametrize("cache", [True, False])
def test_masks_passed_as_images_are_refused_and_no_cache_is_left(tmp_path, own_cache, cache):
    rows = []
    for number in range(4):
        Image.fromarray(np.repeat(np.arange(4, dtype=np.uint8), 144).reshape(24, 24)).save(tmp_path / f"{number}.png")
        rows.append((f"{number}.png", "train"))
    csv = write_csv(tmp_path / "t.csv", ("image", "split"), rows)
    with pytest.raises(ValueError, match="they are masks, not images"):
        module(csv, label_column=None, patient_column=None, cache=cache).prepare_data()
    assert not list(own_cache.glob("*/data.npy"))


@pytest.mark.parametrize("cache", [True, False])
def test_a_corrupt_image_is_named_and_no_cache_is_left(csv, own_cache, cache):
    (csv.parent / "images" / "005.png").write_bytes(b"\x89PNG\r\n\x1a\ngarbage")
    data = module(csv, cache=cache)
    with pytest.raises(ValueError, match=r"005\.png is not a readable image"):
        list(data.train_dataloader())
    assert not list(own_cache.glob("*/data.npy"))


def test_a_corrupt_zip_is_named(csv, tmp_path):
    (tmp_path / "images.zip").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(ValueError, match=r"images\.zip is not a readable zip archive"):
        module(csv, root=str(tmp_path / "images.zip")).dataset("train")


def test_a_damaged_member_of_a_zip_is_named(csv, tmp_path):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((tmp_path / "data" / "images").iterdir()):
            archive.write(file, f"images/{file.name}")
    data = bytearray(path.read_bytes())
    data[100] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"images/000\.png cannot be unpacked: Bad CRC-32"):
        module(csv, root=str(path)).dataset("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "file"}, r"no column 'file'; its columns are image, label, patient, split, age"),
        ({"label_names": ["healthy"]}, r"not in label_names \['healthy'\]: 'ill' \(10 rows\)"),
        ({"batch_size": 13}, r"train split has 12 images, fewer than one batch of 13"),
        ({"batch_size": 0}, r"batch_size is 0"),
        ({"label_column": None, "balanced": True}, r"balanced=True needs classes or findings"),
        ({"label_column": ["label", "age"], "label_kind": "single"}, r"'single' needs one label_column"),
        (
            {"label_separator": "|", "label_column": ["edema", "effusion"]},
            r"label_separator goes with one label_column",
        ),
        ({"label_column": ["edema"], "label_names": ["oedema"]}, r"differ from the columns of findings"),
        ({"frame_column": "label"}, r"holds 'healthy'; frames and slices are numbers from 0"),
        ({"root": "nowhere"}, r"root nowhere is neither a folder nor a zip archive"),
        ({"intensity_window": (5, 1)}, r"intensity_window is \(5\.0, 1\.0\)"),
        (
            {"intensity_unit": "HU"},
            r"holds 'stored value' from 0 to 255, but the intensity window \(0, 255\) is in 'HU'",
        ),
    ],
)
def test_mistakes_are_named_with_the_way_out(csv, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        module(csv, **options).train_dataloader()


def test_patients_must_be_known_for_every_row(csv):
    csv.write_text(csv.read_text().replace("train-3", ""))
    with pytest.raises(ValueError, match=r"2 rows of .* have no 'patient'"):
        module(csv).dataset("train")


def test_images_beside_class_folders_are_refused(tmp_path):
    write_picture(tmp_path / "a" / "1.png", 1)
    write_picture(tmp_path / "2.png", 2)
    with pytest.raises(ValueError, match=r"1 images of .* are in no class folder: 2\.png"):
        TableDataModule(root=str(tmp_path), image_size=16).dataset("train")


def test_something_must_be_given():
    with pytest.raises(ValueError, match="give csv"):
        TableDataModule(image_size=16)
    with pytest.raises(ValueError, match="columns and where need a csv"):
        TableDataModule(root=os.curdir, label_column="label", image_size=16)


def test_indices_beyond_the_split_are_refused(csv):
    with pytest.raises(IndexError, match="index 4 is out of range for 4 images"):
        module(csv).dataset("val")[4]


def test_the_development_radiographs_match_their_counts(shared_data):
    folder = shared_data("cxr")
    data = TableDataModule(
        csv=str(folder / "labels.csv"),
        root=str(folder / "images.zip"),
        label_column="label",
        label_names=["No Finding", "Pneumonia"],
        where={"label": ["No Finding", "Pneumonia"]},
        patient_column="patient_id",
        split_column="split",
        image_size=64,
    )
    assert {split: len(data.table.rows(split)) for split in ("train", "val", "test")} == {
        "train": 594,
        "val": 109,
        "test": 149,
    }
    assert torch.bincount(data.table.labels[torch.from_numpy(data.table.rows("train"))]).tolist() == [295, 299]


@pytest.mark.slow
def test_radiographs_of_any_bit_depth_are_seen_through_their_own_display_windows(shared_data, tmp_path):
    pytest.importorskip("pydicom")
    names = ("dicom/cr_leg_mono1_rle.dcm", "dicom/mr_small_raw.dcm")  # 10 bits inverted, 16 bits signed
    csv = write_csv(tmp_path / "t.csv", ("image", "split"), [(name, "train") for name in names])
    archive = shared_data("dicom") / "dicom.zip"
    data = TableDataModule(
        csv=str(csv),
        root=str(archive),
        split_column="split",
        image_size=64,
        voi=0,
        intensity_window=(0, 1),
        intensity_unit="declared range",
    )
    for row, name in enumerate(names):
        image = data.dataset("train")[row]["image"]
        shown = read_image(archive / name, voi=0)
        assert float(image.mean()) == pytest.approx(
            (shown.pixels.mean() - shown.low) / (shown.high - shown.low), abs=0.01
        )
        assert image.std() > 0.1


@pytest.mark.parametrize(("name", "classes"), [("cardiac_mr", 4), ("nuclei", 3)])
def test_the_development_masks_are_read_and_refused_as_images(shared_data, name, classes):
    folder = shared_data(name)
    options = {"csv": str(folder / "labels.csv"), "root": str(folder / "images_labels.zip"), "split_column": "split"}
    data = TableDataModule(**options, mask_column="label_map", mask_classes=classes, image_size=32, cache=False)
    batch = next(iter(data.val_dataloader()))
    assert batch["mask"].unique().tolist() == list(range(classes))
    assert batch["mask"].shape[1:] == batch["image"].shape[2:]
    with pytest.raises(ValueError, match="they are masks, not images"):
        TableDataModule(**options, image_column="label_map", image_size=32).prepare_data()
