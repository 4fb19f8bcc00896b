"""Folders of translated images: what is in them, going on after a stop, and what is refused."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from medgen.cli import main
from medgen.families.cyclegan.translator import CycleGANConfig, CycleGANTranslator
from medgen.images import to_uint8
from medgen.loading import load, load_generator, load_translator
from medgen.translation import COLUMNS, translate_folder
from tests.tiny import generator


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    return CycleGANTranslator(CycleGANConfig.tiny()).save_pretrained(tmp_path_factory.mktemp("model") / "cyclegan")


@pytest.fixture(scope="module")
def translator(checkpoint):
    return load_translator(checkpoint)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "scans"
    (folder / "b").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("c.png", "a.png", "b/d.png"):
        Image.fromarray(random.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / name)
    return folder


def rows(table):
    with table.open(newline="") as handle:
        return list(csv.DictReader(handle))


def pixels(folder, index):
    return np.asarray(Image.open(folder / f"{index:06d}.png"))


def test_every_image_is_translated_and_the_table_names_what_of(translator, source, tmp_path):
    table = translate_folder(translator, source, "ill", tmp_path / "out", progress=False)
    found = rows(table)
    assert tuple(found[0]) == COLUMNS
    assert [(row["file"], row["label"], row["source"]) for row in found] == [
        ("000000.png", "ill", "a.png"),
        ("000001.png", "ill", "b/d.png"),
        ("000002.png", "ill", "c.png"),
    ]
    images = torch.stack([torch.from_numpy(np.asarray(Image.open(source / row["source"])))[None] for row in found])
    expected = to_uint8(translator.translate(images.float() / 255, "ill"))
    for index, image in enumerate(expected):
        assert np.abs(pixels(tmp_path / "out", index).astype(int) - image[0].numpy()).max() <= 1


def test_each_picture_says_that_it_is_synthetic_and_what_made_it(translator, checkpoint, source, tmp_path):
    translate_folder(translator, source, "ill", tmp_path / "out", progress=False)
    text = Image.open(tmp_path / "out" / "000001.png").text
    assert text == {
        "SyntheticData": "YES",
        "Software": "medgen",
        "index": "1",
        "label": "ill",
        "source": "b/d.png",
        "checkpoint": str(checkpoint),
        "revision": translator.revision,
    }


def test_a_stopped_run_goes_on_and_makes_what_is_missing_only(translator, source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    translate_folder(translator, source, "ill", out, progress=False)
    kept, lost = (out / "000000.png").stat().st_mtime_ns, pixels(out, 1)
    (out / "000001.png").unlink()
    (out / "samples.csv").unlink()
    asked = []
    translate = type(translator).translate

    def counted(self, images, *args, **options):
        asked.append(len(images))
        return translate(self, images, *args, **options)

    monkeypatch.setattr(type(translator), "translate", counted)
    table = translate_folder(translator, source, "ill", out, progress=False)
    assert asked == [1]
    assert np.array_equal(pixels(out, 1), lost)
    assert (out / "000000.png").stat().st_mtime_ns == kept
    assert len(rows(table)) == 3


def test_processes_share_the_work(translator, source, tmp_path):
    for rank in (0, 1):
        table = translate_folder(
            translator, source, 1, tmp_path / "out", batch_size=1, rank=rank, world_size=2, progress=False
        )
        assert table.exists() == (rank == 1)


@pytest.mark.parametrize("change", ["domain", "picture"])
def test_two_runs_are_not_mixed(translator, source, tmp_path, change):
    translate_folder(translator, source, "ill", tmp_path / "out", progress=False)
    if change == "picture":
        Image.fromarray(np.zeros((16, 16), dtype=np.uint8)).save(source / "a.png")
    domain = "healthy" if change == "domain" else "ill"
    with pytest.raises(FileExistsError, match="holds another run: "):
        translate_folder(translator, source, domain, tmp_path / "out", progress=False)


def test_images_of_another_size_are_brought_to_the_translators(translator, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    Image.fromarray(np.full((40, 20), 9, dtype=np.uint8)).save(folder / "tall.png")
    translate_folder(translator, folder, "ill", tmp_path / "out", progress=False)
    assert pixels(tmp_path / "out", 0).shape == (16, 16)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"to": "sick"}, ValueError, r"label 'sick' is unknown; use 0-1 or one of 'healthy', 'ill'"),
        ({"to": 2}, ValueError, r"label 2 is out of range"),
        ({"batch_size": 0}, ValueError, "batch_size is 0; use at least 1"),
        ({"precision": "fp8"}, ValueError, "precision is 'fp8'"),
        ({"resize": "squash"}, ValueError, "resize is 'squash'"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(translator, source, tmp_path, arguments, error, message):
    arguments = {"to": "ill", "progress": False} | arguments
    with pytest.raises(error, match=message):
        translate_folder(translator, source, folder=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_is_refused(translator, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no image"):
        translate_folder(translator, tmp_path / "empty", "ill", tmp_path / "out", progress=False)


def test_the_verb_translates_and_resumes(checkpoint, source, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["translate", str(checkpoint), str(source), "--to", "healthy", "--out", str(out), "--device", "cpu"]
    assert main([*arguments, "--quiet", "true", "--grid", "true"]) == 0
    assert json.loads((out / "run.json").read_text())["to"] == "healthy"
    assert (out / "grid.png").exists()
    assert main(arguments) == 0
    assert f"translated images in {out}" in capsys.readouterr().out


def test_generators_and_translators_are_told_apart(checkpoint, source, tmp_path, capsys):
    drawn = generator().save_pretrained(tmp_path / "drawn")
    assert main(["translate", str(drawn), str(source), "--to", "x", "--out", str(tmp_path / "out")]) == 1
    assert "which translates no images; draw images with `medgen sample" in capsys.readouterr().err
    assert main(["sample", str(checkpoint), "-n", "1", "--out", str(tmp_path / "out")]) == 1
    assert "which draws no images; translate images with `medgen translate" in capsys.readouterr().err
    with pytest.raises(ValueError, match="cyclegan model, which draws no images"):
        load_generator(checkpoint)
    assert isinstance(load(checkpoint), CycleGANTranslator)


@pytest.mark.parametrize("inside", ["", "out"])
def test_a_folder_within_the_source_is_refused(translator, source, inside):
    before = sorted(source.rglob("*"))
    with pytest.raises(ValueError, match=r"folder .* lies in .*, whose images are translated; choose one outside"):
        translate_folder(translator, source, "ill", source / inside, progress=False)
    assert sorted(source.rglob("*")) == before
