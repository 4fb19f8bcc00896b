"""The verbs walk and mix: the pictures are the generator's, and mistakes cost one line and no file."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import medgen
from medgen.families.stylegan2.generator import StyleGAN2Config, StyleGAN2Generator
from medgen.images import image_grid
from tests.test_animation import read
from tests.test_cli import command  # noqa: F401  a fixture
from tests.tiny import generator as medfusion

QUIET = ["--quiet", "true", "--device", "cpu"]
SCALE = 8  # 16 px are enlarged to 128


def saved(folder, **changes):
    torch.manual_seed(0)
    return StyleGAN2Generator(replace(StyleGAN2Config.tiny(), **changes)).save_pretrained(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def generator(model):
    return medgen.load(model)


def sheet(images, columns):
    return np.array(image_grid(images, columns=columns, scale=SCALE), int)


# Walk


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_a_walk_between_seeds_has_its_frames_and_visits_the_seeds(command, model, generator, tmp_path, suffix):  # noqa: F811
    out = tmp_path / f"walk{suffix}"
    arguments = ["--seeds", "1,2,3", "--labels", "finding", "--frames", 4, "--truncation_psi", 0.8]
    assert command("walk", model, "--out", out, *arguments, *QUIET) == (0, "", "")
    frames = read(out)
    assert len(frames) == 12
    for place, seed in ((0, 1), (4, 2), (8, 3)):
        expected = sheet(generator.sample(1, "finding", seed=seed, truncation_psi=0.8, noise_mode="fixed"), 1)
        assert np.abs(frames[place, : len(expected), : expected.shape[1]] - expected).mean() < 2
    assert np.abs(frames[0] - frames[4]).mean() > 5


def test_a_walk_between_labels_shows_several_images_side_by_side(command, model, generator, tmp_path):  # noqa: F811
    out = tmp_path / "walk.gif"
    arguments = ["--labels", "no finding, 1", "--seeds", 4, "-n", 3, "--columns", 2, "--frames", 5, "--closed", "false"]
    assert command("walk", model, "--out", out, *arguments, *QUIET)[0] == 0
    frames = read(out)
    assert len(frames) == 6
    for place, label in ((0, "no finding"), (5, "finding")):
        expected = sheet(generator.sample(3, label, seed=4, noise_mode="fixed"), 2)
        assert np.abs(frames[place] - expected).max() <= 1


def test_a_walk_says_what_it_did_where_it_comes_from_and_how_fast(command, model, generator, tmp_path):  # noqa: F811
    out = tmp_path / "new" / "walk.gif"
    status, printed, err = command("walk", model, "--out", out, "--seeds", "1,2", "--frames", 3, "--fps", 10)
    assert (status, printed) == (0, f"6 frames in {out}\n")
    assert "1/1" in err  # the progress bar
    with Image.open(out) as file:
        assert file.info["duration"] == 100
        comment = file.info["comment"].decode()
    expected = ["SyntheticData: YES", "Software: medgen", "seed: 1,2", "label: ", f"checkpoint: {model}"]
    assert comment.split("; ") == [*expected, f"revision: {generator.revision}"]


def test_the_same_walk_gives_the_same_file(command, model, tmp_path):  # noqa: F811
    paths = [tmp_path / name for name in ("a.gif", "b.gif", "c.gif")]
    for path, seeds in zip(paths, ("1,2", "1,2", "1,3"), strict=True):
        assert command("walk", model, "--out", path, "--seeds", seeds, "--frames", 2, *QUIET)[0] == 0
    first, same, other = (path.read_bytes() for path in paths)
    assert first == same != other


@pytest.mark.parametrize(
    ("kind", "names", "labels", "stations"),
    [
        ("multi", ("edema", "effusion"), "edema,edema|effusion", (["edema"], ["edema", "effusion"])),
        ("continuous", ("age", "dose"), "40|1,40|9", ([40.0, 1.0], [40.0, 9.0])),
    ],
)
def test_findings_and_numbers_can_be_walked_between(command, tmp_path, kind, names, labels, stations):  # noqa: F811
    folder = saved(tmp_path / "model", label_kind=kind, label_names=names)
    out = tmp_path / "walk.gif"
    assert command("walk", folder, "--out", out, "--labels", labels, "--frames", 1, *QUIET) == (0, "", "")
    frames, generator = read(out), medgen.load(folder)
    assert len(frames) == 2
    for frame, label in zip(frames, stations, strict=True):
        expected = sheet(generator.sample(1, label, seed=0, noise_mode="fixed"), 1)
        assert np.abs(frame - expected).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there are 1 seeds and 1 labels; give several seeds with one label, or several labels with one seed"),
        (["--seeds", "1,2", "--labels", "0,1"], "there are 2 seeds and 2 labels"),
        (["--seeds", "1,x"], "seeds is '1,x'; use whole numbers with commas, such as 0,1,2"),
        (["--seeds", "1,"], "seeds is '1,'"),
        (["--labels", "finding,sick"], "label 'sick' is unknown; use 0-1 or one of 'no finding', 'finding'"),
        (["--seeds", "1,2", "--frames", "0"], "frames is 0; use at least 1"),
        (["--seeds", "1,2", "-n", "0"], "n is 0; use at least 1"),
        (["--seeds", "1,2", "--columns", "0"], "columns is 0; use at least 1"),
        (["--seeds", "1,2", "--fps", "0"], "fps is 0; use 1 to 50"),
        (["--seeds", "1,2", "--truncation_psi", "3"], "truncation_psi is 3"),
        (["--seeds", "1,2", "--truncation", "3"], "truncation_psi is 3"),
        (["--seeds", "1,2", "--batch_size", "0"], "batch_size is 0; use at least 1"),
        (["--seeds", "1,2", "--device", "warp"], "device 'warp' cannot be used here"),
        (["--seeds", "1,2", "--out", "walk.avi"], "out is 'walk.avi'; use a name that ends in .gif or .mp4"),
    ],
    ids=str,
)
def test_a_walk_that_cannot_be_costs_one_line(command, model, tmp_path, monkeypatch, arguments, message):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    status, out, err = command("walk", model, "--out", "walk.gif", "--quiet", "true", *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("medgen walk: ")
    assert message in err
    assert err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_without_pyav_an_mp4_is_refused_before_a_model_is_loaded(command, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "av", None)
    status, _, err = command("walk", tmp_path / "nothing", "--out", tmp_path / "a.mp4", "--seeds", "1,2")
    assert (status, err) == (1, 'medgen walk: MP4 needs PyAV; run: pip install "medgen[video]", or write a .gif\n')


@pytest.mark.parametrize(
    "arguments", [["walk", "--out", "a.gif", "--seeds", "1,2"], ["mix", "--out", "a.png"]], ids=str
)
def test_a_family_without_styles_is_refused(command, tmp_path, monkeypatch, arguments):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    folder = medfusion().save_pretrained(tmp_path / "model")
    verb, *rest = arguments
    status, _, err = command(verb, folder, *rest)
    assert status == 1
    assert f"{folder} is of family medfusion, whose images have no styles; use a model of stylegan2" in err
    assert list(tmp_path.iterdir()) == [folder]


# Mix


def opened(path):
    with Image.open(path) as file:
        return np.array(file, int)


def cells(path, rows, columns):
    """The pictures of a grid, (rows, columns, 128, 128); a caption is under each."""
    pixels = opened(path)
    assert pixels.shape == (rows * (128 + 14 + 4) + 4, columns * (128 + 4) + 4)
    return np.stack(
        [
            np.stack([pixels[4 + r * 146 : 132 + r * 146, 4 + c * 132 : 132 + c * 132] for c in range(columns)])
            for r in range(rows)
        ]
    )


def picture(images):
    return np.kron(images[:, 0].mul(255).round().numpy().astype(int), np.ones((1, SCALE, SCALE), int))


def test_a_mix_has_its_sources_at_the_edges_and_their_mixtures_inside(command, model, generator, tmp_path):  # noqa: F811
    out = tmp_path / "new" / "mix.png"
    arguments = ["--rows", "1,2", "--columns", "3,4,1", "--layer", 3, "--labels", "finding"]
    assert command("mix", model, "--out", out, *arguments, *QUIET) == (0, "", "")
    found = cells(out, 3, 4)
    assert not found[0, 0].any()
    draw = {seed: generator.styles(1, "finding", seed=seed) for seed in (1, 2, 3, 4)}
    for place, seed in enumerate((3, 4, 1)):
        assert np.abs(found[0, place + 1] - picture(generator.synthesize(draw[seed]))).max() <= 1
    for row, coarse in enumerate((1, 2)):
        assert np.abs(found[row + 1, 0] - picture(generator.synthesize(draw[coarse]))).max() <= 1
        for column, fine in enumerate((3, 4, 1)):
            styles = torch.cat([draw[coarse][:, :3], draw[fine][:, 3:]], dim=1)
            assert np.abs(found[row + 1, column + 1] - picture(generator.synthesize(styles))).max() <= 1
    assert np.abs(found[1, 1] - found[1, 0]).max() > 20
    assert np.abs(found[1, 3] - found[1, 0]).max() <= 1  # mixed with itself


def test_a_mix_can_have_a_label_for_rows_and_one_for_columns(command, model, generator, tmp_path):  # noqa: F811
    out = tmp_path / "mix.png"
    assert command("mix", model, "--out", out, "--rows", 1, "--columns", 1, "--labels", "0,1", *QUIET)[0] == 0
    found = cells(out, 2, 2)
    styles = [generator.styles(1, label, seed=1) for label in (0, 1)]
    half = torch.cat([styles[0][:, :3], styles[1][:, 3:]], dim=1)  # 6 layers
    for cell, expected in ((found[1, 0], styles[0]), (found[0, 1], styles[1]), (found[1, 1], half)):
        assert np.abs(cell - picture(generator.synthesize(expected))).max() <= 1
    assert np.abs(found[1, 0] - found[0, 1]).max() > 20


@pytest.mark.parametrize(
    ("arguments", "row", "columns"),
    [
        ([], "seed 1", ["seed 2", "seed 13"]),
        (["--labels", "FINDING"], "seed 1, finding", ["seed 2, finding", "seed 13, finding"]),
        (["--labels", "0,1"], "seed 1, no finding", ["seed 2, finding", "seed 13, finding"]),
    ],
)
def test_the_captions_of_a_mix_are_seeds_and_labels(command, model, tmp_path, arguments, row, columns):  # noqa: F811
    out = tmp_path / "mix.png"
    assert command("mix", model, "--out", out, "--rows", 1, "--columns", "2,13", *arguments, *QUIET)[0] == 0
    captions = ["", *columns, row, "", ""]
    expected = np.array(image_grid(torch.zeros(6, 1, 16, 16), columns=3, captions=captions, scale=SCALE), int)
    found = opened(out)
    for top in (132, 132 + 146):
        assert np.array_equal(found[top : top + 14], expected[top : top + 14])


def test_a_mix_says_what_it_did_and_where_it_comes_from(command, model, tmp_path):  # noqa: F811
    out = tmp_path / "mix.png"
    status, printed, _ = command("mix", model, "--out", out, "--rows", "1,2", "--columns", "3,4,5")
    assert (status, printed) == (0, f"6 mixtures, fine styles from layer 3 on, in {out}\n")
    with Image.open(out) as file:
        text = dict(file.text)
    assert json.dumps(text["SyntheticData"]) == '"YES"'
    assert (text["seed"], text["layer"], text["checkpoint"]) == ("1,2,3,4,5", "3", str(model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "7"], "layer is 7; use 0, for all of fine, to 6, for all of coarse"),
        (["--layer", "-1"], "layer is -1"),
        (["--rows", "a"], "rows is 'a'; use whole numbers"),
        (["--columns", ""], "columns is ''; use whole numbers"),
        (["--labels", "0,1,0"], "labels has 3 parts; give one for all images, or two, for rows and for columns"),
        (["--labels", "sick"], "label 'sick' is unknown"),
        (["--out", "mix.gif"], "out is 'mix.gif'; use a name that ends in .png"),
        (["--batch_size", "0"], "batch_size is 0"),
    ],
    ids=str,
)
def test_a_mix_that_cannot_be_costs_one_line(command, model, tmp_path, monkeypatch, arguments, message):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    status, out, err = command("mix", model, "--out", "mix.png", "--quiet", "true", *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("medgen mix: ")
    assert message in err
    assert err.count("\n") == 1
    assert not any(tmp_path.iterdir())
