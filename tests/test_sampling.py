"""Long runs into a folder: what is written, what is refused, and that nothing is lost when they stop."""

import csv
import errno
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from medgen.families import family_class
from medgen.generator import Generator
from medgen.images import to_uint8
from medgen.run_folder import write_grid
from medgen.sampling import COLUMNS, SamplingRun, sample_to_folder
from tests.tiny import generator as tiny_generator

STEPS = {"steps": 2}


@pytest.fixture
def generator():
    made = tiny_generator()
    made.source, made.revision = "phantoms", "abc123"
    return made


@pytest.fixture
def settings():
    return SamplingRun(seed=5, labels=("healthy", "ill"), options=STEPS)


@pytest.fixture
def whole(generator, settings, tmp_path):
    """Six images that nothing interrupted."""
    sample_to_folder(generator, 6, tmp_path / "whole", settings, batch_size=4, progress=False)
    return tmp_path / "whole"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows(folder):
    with (folder / "samples.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_a_run_is_numbered_greyscale_pictures_and_a_table(whole):
    names = [f"{i:06d}.png" for i in range(6)]
    assert sorted(contents(whole)) == [*names, "run.json", "samples.csv"]
    assert {Image.open(whole / name).mode for name in names} == {"L"}
    table = rows(whole)
    assert tuple(table[0]) == COLUMNS
    assert [row["file"] for row in table] == names
    assert [row["label"] for row in table] == ["healthy", "ill"] * 3
    assert [row["index"] for row in table] == [str(i) for i in range(6)]
    assert {(row["seed"], row["checkpoint"], row["revision"]) for row in table} == {("5", "phantoms", "abc123")}


def test_the_pictures_are_those_of_sample(whole, generator):
    images = generator.sample(6, ["healthy", "ill"] * 3, seed=5, batch_size=4, **STEPS)
    drawn = torch.stack([torch.from_numpy(np.array(Image.open(whole / f"{i:06d}.png"))) for i in range(6)])
    assert torch.equal(drawn[:, None], to_uint8(images))


def test_each_picture_says_that_it_is_synthetic_and_what_made_it(whole):
    assert Image.open(whole / "000003.png").text == {
        "SyntheticData": "YES",
        "Software": "medgen",
        "seed": "5",
        "index": "3",
        "label": "ill",
        "checkpoint": "phantoms",
        "revision": "abc123",
    }


def test_colour_models_write_colour(tmp_path, settings):
    sample_to_folder(tiny_generator(channels=3), 1, tmp_path, settings, progress=False)
    assert Image.open(tmp_path / "000000.png").mode == "RGB"


def test_a_finished_run_is_not_drawn_again(whole, generator, settings, monkeypatch):
    monkeypatch.setattr(Generator, "sample", lambda *args, **options: pytest.fail("drew again"))
    before = contents(whole)
    sample_to_folder(generator, 6, whole, settings, progress=False)
    assert contents(whole) == before


@pytest.mark.parametrize("lost", [["000000.png"], ["000002.png", "000005.png"], ["samples.csv"]])
def test_what_was_deleted_is_drawn_again_and_nothing_else(whole, generator, settings, tmp_path, lost):
    expected = contents(whole)
    times = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    for name in lost:
        (whole / name).unlink()
    sample_to_folder(generator, 6, whole, settings, batch_size=4, progress=False)
    assert_same_pictures(contents(whole), expected)
    assert all(
        path.stat().st_mtime_ns == time
        for path, time in times.items()
        if path.suffix == ".png" and path.name not in lost
    )


def assert_same_pictures(found, expected):
    """Same files; pixels may differ by one grey level, since kernels round differently for other batch sizes."""
    assert found.keys() == expected.keys()
    for name in found:
        if name.endswith(".png"):
            assert grey_levels_apart(found[name], expected[name]) <= 1
        else:
            assert found[name] == expected[name]


def grey_levels_apart(one, other):
    import io

    a, b = (np.asarray(Image.open(io.BytesIO(content)), dtype=int) for content in (one, other))
    return np.abs(a - b).max()


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_batch_size_changes_no_picture(whole, generator, settings, tmp_path, batch_size):
    sample_to_folder(generator, 6, tmp_path / "other", settings, batch_size=batch_size, progress=False)
    assert_same_pictures(contents(tmp_path / "other"), contents(whole))


def test_an_interrupted_run_goes_on_where_it_stopped(whole, generator, settings, tmp_path, monkeypatch):
    real, calls = Generator.sample, []

    def interrupted(self, *args, **options):
        calls.append(options["first_index"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *args, **options)

    monkeypatch.setattr(Generator, "sample", interrupted)
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        sample_to_folder(generator, 6, folder, settings, batch_size=4, progress=False)
    assert sorted(contents(folder)) == [*(f"{i:06d}.png" for i in range(4)), "run.json"]
    sample_to_folder(generator, 6, folder, settings, batch_size=4, progress=False)
    assert calls == [0, 4, 4]
    assert contents(folder) == contents(whole)


def test_what_a_kill_left_half_written_does_not_count(whole, generator, settings):
    expected = contents(whole)
    (whole / "000004.png").unlink()
    partial = whole / "000004.png.123.part"  # of another process, which may be at work still
    partial.write_bytes(b"\x89PNG half")
    sample_to_folder(generator, 6, whole, settings, batch_size=4, progress=False)
    partial.unlink()
    assert_same_pictures(contents(whole), expected)


def test_a_seed_of_numpy_is_written_as_a_number(generator, tmp_path):
    sample_to_folder(generator, 1, tmp_path, SamplingRun(seed=np.int64(5), options=STEPS), progress=False)
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 5


def test_a_longer_run_keeps_what_is_there(whole, generator, settings):
    before = contents(whole)
    sample_to_folder(generator, 9, whole, settings, batch_size=4, progress=False)
    after = contents(whole)
    assert len(rows(whole)) == 9
    assert all(after[name] == content for name, content in before.items() if name != "samples.csv")


def test_a_shorter_run_leaves_the_table_of_the_longer_one(whole, generator, settings):
    sample_to_folder(generator, 2, whole, settings, progress=False)
    assert len(rows(whole)) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 6}, "holds another run: seed 5 there, 6 asked for; choose another folder"),
        ({"labels": ("ill",)}, r"labels \['healthy', 'ill'\] there, \['ill'\] asked for"),
        ({"options": {"steps": 3}}, r"options {'steps': 2} there, {'steps': 3} asked for"),
        ({"precision": "bf16"}, "precision 'float32' there, 'bf16' asked for"),
    ],
)
def test_two_runs_are_not_mixed(whole, generator, settings, change, message):
    before = contents(whole)
    other = SamplingRun(**({"seed": 5, "labels": ("healthy", "ill"), "options": STEPS} | change))
    with pytest.raises(FileExistsError, match=message):
        sample_to_folder(generator, 6, whole, other, progress=False)
    assert contents(whole) == before


def test_spellings_of_a_class_are_the_same_run(whole, generator):
    before = contents(whole)
    sample_to_folder(generator, 6, whole, SamplingRun(seed=5, labels=("HEALTHY", "1"), options=STEPS), progress=False)
    assert contents(whole) == before
    assert json.loads(before["run.json"])["labels"] == ["healthy", "ill"]


def test_numbers_that_tables_round_alike_are_two_runs(tmp_path):
    first, second = (SamplingRun(seed=0, labels=(age,), options=STEPS) for age in ("63.00012", "63.00013"))
    sample_to_folder(tiny_generator("continuous"), 1, tmp_path, first, progress=False)
    with pytest.raises(FileExistsError, match=r"labels \['63.00012'\] there, \['63.00013'\] asked for"):
        sample_to_folder(tiny_generator("continuous"), 1, tmp_path, second, progress=False)


def test_no_findings_and_no_condition_are_two_runs(tmp_path):
    first, second = (SamplingRun(seed=0, labels=labels, options=STEPS) for labels in ((), ("",)))
    sample_to_folder(tiny_generator("multi"), 1, tmp_path, first, progress=False)
    with pytest.raises(FileExistsError, match=r"labels \[\] there, \[''\] asked for"):
        sample_to_folder(tiny_generator("multi"), 1, tmp_path, second, progress=False)


@pytest.mark.parametrize("field", ["source", "revision"])
def test_images_of_two_checkpoints_are_not_mixed(whole, generator, settings, field):
    setattr(generator, field, "other")
    with pytest.raises(FileExistsError, match="'other' asked for"):
        sample_to_folder(generator, 6, whole, settings, progress=False)


def test_pictures_of_unknown_origin_are_left_alone(generator, settings, tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "holiday.png")
    with pytest.raises(FileExistsError, match=r"holds images of unknown origin \(holiday.png, ...\)"):
        sample_to_folder(generator, 2, tmp_path, settings, progress=False)
    assert list(contents(tmp_path)) == ["holiday.png"]


@pytest.mark.parametrize(
    ("n", "changes", "message"),
    [
        (0, {}, "n is 0; ask for at least one image"),
        (2, {"labels": ("ill", "sick")}, "label 'sick' is unknown; use 0-1 or one of 'healthy', 'ill'"),
        (2, {"labels": ("2",)}, "label 2 is out of range"),
        (2, {"options": {"stepz": 2}}, "sampling option stepz is unknown to medfusion; it has steps, eta"),
        (2, {"precision": "fp8"}, "precision is 'fp8'"),
        (2, {"options": {"steps": 99}}, "99"),
        (2, {"options": {"sampler": "magic"}}, "sampler 'magic' is unknown"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(generator, tmp_path, n, changes, message):
    folder = tmp_path / "new"
    settings = SamplingRun(**({"seed": 0, "options": STEPS} | changes))
    with pytest.raises(ValueError, match=message):
        sample_to_folder(generator, n, folder, settings, progress=False)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("family", "name", "value"),
    [
        ("medfusion", "steps", 0),
        ("medfusion", "eta", 2.0),
        ("medfusion", "decode_batch", 0),
        ("stylegan2", "truncation_psi", 9),
        ("stylegan2", "noise_mode", "const"),
        ("stylegan3", "truncation_cutoff", -1),
        ("stylegan3", "center", "mean"),
        ("vqvae2", "temperature", 0.0),
        ("vqvae2", "bottom_top_p", 2.0),
    ],
)
def test_values_out_of_range_are_told_before_the_progress_bar(tmp_path, capsys, family, name, value):
    kind = family_class(family)
    with pytest.raises(ValueError, match=f"{name} is {value!r}; use|steps is 0; this schedule allows"):
        sample_to_folder(
            kind(kind.config_class.tiny()), 1, tmp_path / "new", SamplingRun(seed=0, options={name: value})
        )
    assert capsys.readouterr().err == ""


def test_a_label_for_an_unconditional_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="this model is unconditional; leave label out"):
        sample_to_folder(tiny_generator("none"), 1, tmp_path / "a", SamplingRun(seed=0, labels=("ill",)))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("file", ["000002.png", "run.json", "samples.csv"])
def test_a_full_disk_leaves_whole_files_and_the_same_call_goes_on(
    whole, generator, settings, tmp_path, monkeypatch, full_disk, file
):
    folder = tmp_path / "full"
    full_disk(file)
    with pytest.raises(OSError, match=rf"the disk is full: .*{file} was not written; free some space and run the same"):
        sample_to_folder(generator, 6, folder, settings, batch_size=4, progress=False)
    assert not [name for name in contents(folder) if not name.endswith((".png", "run.json"))]
    for path in folder.glob("*.png"):
        Image.open(path).load()
    monkeypatch.undo()
    sample_to_folder(generator, 6, folder, settings, batch_size=4, progress=False)
    assert_same_pictures(contents(folder), contents(whole))


@pytest.fixture
def full_disk(monkeypatch):
    """A function that lets one file fail half-written, as on a disk that has just become full."""
    import builtins
    import io

    real = io.open

    def arm(name: str) -> None:
        class Half:
            def __init__(self, handle) -> None:
                self.handle = handle

            def __getattr__(self, attribute):
                return getattr(self.handle, attribute)

            def __enter__(self):
                return self

            def __exit__(self, *error):
                self.handle.close()

            def write(self, content):
                self.handle.write(content[: len(content) // 2])
                self.handle.flush()
                raise OSError(errno.ENOSPC, "No space left on device")

        def opener(path, mode="r", *args, **options):
            handle = real(path, mode, *args, **options)
            return Half(handle) if "w" in mode and name in str(path) else handle

        monkeypatch.setattr(builtins, "open", opener)
        monkeypatch.setattr(io, "open", opener)

    return arm


def test_several_processes_share_a_run_without_talking(whole, generator, settings, tmp_path):
    folder = tmp_path / "shared"
    first = sample_to_folder(generator, 6, folder, settings, batch_size=2, rank=1, world_size=2, progress=False)
    assert sorted(contents(folder)) == ["000002.png", "000003.png", "run.json"]
    assert not first.exists()
    table = sample_to_folder(generator, 6, folder, settings, batch_size=2, rank=0, world_size=2, progress=False)
    assert table.exists()
    assert_same_pictures(contents(folder), contents(whole))


def test_more_processes_than_batches_do_no_harm(generator, settings, tmp_path):
    for rank in (3, 0, 1, 2):
        sample_to_folder(generator, 2, tmp_path, settings, batch_size=2, rank=rank, world_size=4, progress=False)
    assert len(rows(tmp_path)) == 2


def test_a_process_that_starts_while_another_has_drawn_already_joins_it(generator, settings, tmp_path, monkeypatch):
    """The other process claims the folder and draws between this one's two looks at it."""
    from pathlib import Path

    real = Path.exists

    def exists(path):
        if path.name == "run.json" and not real(path):
            monkeypatch.undo()
            sample_to_folder(generator, 4, tmp_path, settings, batch_size=2, rank=0, world_size=2, progress=False)
            return False
        return real(path)

    monkeypatch.setattr(Path, "exists", exists)
    sample_to_folder(generator, 4, tmp_path, settings, batch_size=2, rank=1, world_size=2, progress=False)
    assert len(rows(tmp_path)) == 4


@pytest.mark.parametrize(
    ("kind", "labels", "shown"),
    [
        ("multi", ("edema|effusion", "", "1"), ["edema|effusion", "", "effusion"]),
        ("continuous", ("63", "7.5"), ["age=63", "age=7.5", "age=63"]),
        ("none", (), ["", "", ""]),
    ],
)
def test_findings_and_numbers_are_written_with_bars(tmp_path, kind, labels, shown):
    settings = SamplingRun(seed=0, labels=labels, options=STEPS)
    sample_to_folder(tiny_generator(kind), 3, tmp_path, settings, progress=False)
    assert [row["label"] for row in rows(tmp_path)] == shown


def test_the_run_is_described_beside_its_pictures(whole):
    assert json.loads((whole / "run.json").read_text())["options"] == STEPS


def test_the_grid_shows_every_picture_with_its_label(whole):
    grid = Image.open(write_grid(whole / "samples.csv", columns=3))
    assert (grid.mode, grid.size) == ("L", (3 * 132 + 4, 2 * 146 + 4))
    first = np.asarray(Image.open(whole / "000000.png").resize((128, 128), Image.Resampling.NEAREST))
    assert np.array_equal(np.asarray(grid)[4:132, 4:132], first)


def test_a_grid_in_the_folder_does_not_stop_the_run_from_going_on(whole, generator, settings):
    write_grid(whole / "samples.csv")
    sample_to_folder(generator, 7, whole, settings, progress=False)
    shutil.rmtree(whole)
