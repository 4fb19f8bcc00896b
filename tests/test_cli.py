"""The command line: what each verb prints and writes, and that mistakes cost one line."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import medgen
from medgen.commands.arguments import split_options
from medgen.commands.main import USAGE, VERBS, main
from medgen.zoo import ZOO
from tests.parity.conftest import PARITY
from tests.test_hub import hub  # noqa: F401  a fixture
from tests.tiny import CONFIG, data_arguments

QUICK = ["--steps", "2", "--quiet", "true", "--device", "cpu"]


@pytest.fixture
def command(capsys):
    """A function from arguments to the exit status, what was printed, and the errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def model(run) -> Path:
    return run.published


def table_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "samples.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


# Help


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_verb(command, arguments):
    status, out, _ = command(*arguments)
    assert (status, out) == (0, USAGE)
    assert all(f"  {verb} " in USAGE for verb in (*VERBS, "fit", "validate, test"))


def test_the_version_is_the_packages(command):
    assert command("--version") == (0, f"{medgen.__version__}\n", "")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list"], ["info", "medfusion-chexpert"], ["sample", "--help"]], ids=str
)
def test_help_list_and_info_import_no_torch(arguments):
    code = f"""
import sys
from medgen.cli import main
try:
    main({arguments})
finally:
    assert "torch" not in sys.modules and "lightning" not in sys.modules"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_module_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "medgen", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{medgen.__version__}\n")


def test_an_unknown_verb_points_to_help(command):
    assert command("smaple") == (2, "", "medgen: no verb 'smaple'; see medgen --help\n")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_its_arguments(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code in (0, None)
    assert f"medgen {verb}" in capsys.readouterr().out


def test_the_help_of_sample_lists_the_options_of_the_family_of_a_checkpoint(model, capsys):
    for name, option in ((str(model), "--steps (int | None, default: None)"), ("stylegan2-cxr", "--truncation_psi")):
        with pytest.raises(SystemExit):
            main(["sample", name, "--help"])
        assert option in " ".join(capsys.readouterr().out.split())


# List and info


def test_list_shows_every_name_and_where_it_comes_from(command):
    _, out, _ = command("list")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == list(ZOO)
    assert {line.split()[1] for line in lines} == {"bundled", "download"}


def test_info_describes_a_folder(command, model):
    _, out, _ = command("info", model)
    assert "family: medfusion\nlicence: unknown" in out
    assert json.loads(out[out.index("{") :])["label_names"] == ["healthy", "ill"]


def test_info_says_where_a_download_comes_from(command):
    _, out, _ = command("info", "medfusion-chexpert")
    assert "https://huggingface.co/spaces/mueller-franzes/medfusion-app" in out


def test_info_of_nothing_is_an_error(command):
    status, _, err = command("info", "nothing")
    assert status == 1
    assert err.startswith("medgen info: no checkpoint 'nothing'")


# Sample


def test_sample_writes_pictures_and_a_table(command, model, tmp_path):
    status, out, _ = command("sample", model, "-n", 5, "--label", "ill", "--seed", 3, "--out", tmp_path / "a", *QUICK)
    assert (status, out) == (0, "")
    rows = table_of(tmp_path / "a")
    assert [row["file"] for row in rows] == [f"{i:06d}.png" for i in range(5)]
    assert {(row["label"], row["seed"], row["checkpoint"]) for row in rows} == {("ill", "3", str(model))}
    expected = medgen.load(model).sample(5, "ill", seed=3, steps=2)
    drawn = np.stack([np.array(Image.open(tmp_path / "a" / row["file"])) for row in rows])
    assert np.abs(drawn / 255 - expected[:, 0].numpy()).max() < 0.003


def test_labels_take_turns_and_go_by_number_too(command, model, tmp_path):
    command("sample", model, "-n", 3, "--label", "Ill, 0", "--out", tmp_path, *QUICK)
    assert [row["label"] for row in table_of(tmp_path)] == ["ill", "healthy", "ill"]


def test_options_of_the_family_come_through_in_both_spellings(command, model, tmp_path):
    arguments = ["--label", "ill", "--guidance=2.5", "--negative-label", "healthy", "--eta", "0", "--sampler", "ddim"]
    assert command("sample", model, "-n", 1, "--out", tmp_path, *arguments, *QUICK)[0] == 0
    assert json.loads((tmp_path / "run.json").read_text())["options"] == {
        "guidance": 2.5,
        "negative_label": "healthy",
        "eta": 0,
        "sampler": "ddim",
        "steps": 2,
    }


def test_sample_says_what_it_did_and_can_draw_a_grid(command, model, tmp_path):
    status, out, err = command("sample", model, "-n", 2, "--out", tmp_path, "--steps", 2, "--grid", "true")
    assert (status, out) == (0, f"2 images in {tmp_path}\n")
    assert "2/2" in err  # the progress bar
    assert (tmp_path / "grid.png").is_file()


def test_sample_again_draws_only_what_is_missing(command, model, tmp_path):
    arguments = ["sample", model, "-n", 4, "--out", tmp_path, *QUICK]
    command(*arguments)
    (tmp_path / "000002.png").unlink()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    assert command(*arguments)[0] == 0
    assert (tmp_path / "000002.png").is_file()
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "sick"], "label 'sick' is unknown; use 0-1 or one of 'healthy', 'ill'"),
        (["--label", "2"], "label 2 is out of range; use 0-1"),
        (["-n", "0"], "n is 0; ask for at least one image"),
        (["--stepz", "3"], "sampling option stepz is unknown to medfusion"),
        (["--steps", "many"], "sampling option steps is 'many'; it is of type int"),
        (["--steps", "2.5"], "sampling option steps is 2.5; it is of type int"),
        (["--steps", "0"], "steps is 0; this schedule allows 1 to 10"),
        (["--eta", "none"], "sampling option eta is 'none'"),
        (["--precision", "fp8"], "precision is 'fp8'"),
        (["--sampler", "magic"], "sampler 'magic' is unknown"),
        (["--batch_size", "0"], "batch_size is 0"),
        (["--device", "warp"], "device 'warp' cannot be used here"),
    ],
    ids=str,
)
def test_a_mistake_costs_one_line_and_writes_nothing(command, model, tmp_path, arguments, message):
    folder = tmp_path / "new"
    status, out, err = command("sample", model, "--out", folder, *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("medgen sample: ")  # and with no progress bar
    assert message in err
    assert err.count("\n") == 1
    assert not folder.exists()


def test_a_model_that_is_nothing_is_named(command, tmp_path):
    status, _, err = command("sample", "medfusion-cxt", "--out", tmp_path / "a")
    assert status == 1
    assert err.startswith("medgen sample: no checkpoint 'medfusion-cxt': it is neither one of medfusion-cxr")


def test_another_run_in_the_folder_is_refused(command, model, tmp_path):
    command("sample", model, "-n", 1, "--out", tmp_path, *QUICK)
    status, _, err = command("sample", model, "-n", 1, "--seed", 9, "--out", tmp_path, *QUICK)
    assert status == 1
    assert "holds another run: seed 0 there, 9 asked for; choose another folder" in err


def test_a_missing_argument_shows_the_usage(capsys, model):
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(model)])
    assert stop.value.code == 2
    assert "--out" in capsys.readouterr().err


def test_ctrl_c_ends_without_a_traceback(command, model, tmp_path, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("medgen.sampling.sample_to_folder", interrupt)
    assert command("sample", model, "--out", tmp_path)[0] == 130


@pytest.mark.parametrize(
    ("arguments", "own", "options"),
    [
        (["x", "-n", "2", "--out", "d"], ["x", "-n", "2", "--out", "d"], {}),
        (["--steps", "5", "x"], ["x"], {"steps": 5}),
        (["x", "--eta=0.5", "--sampler", "dpm++"], ["x"], {"eta": 0.5, "sampler": "dpm++"}),
        (["x", "--negative-label", "No Finding"], ["x"], {"negative_label": "No Finding"}),
        (["x", "--clip"], ["x"], {"clip": True}),
        (["x", "--data.csv", "f", "--data", "g"], ["x", "--data.csv", "f", "--data", "g"], {}),
    ],
)
def test_sampling_options_are_told_from_the_verbs_own(arguments, own, options):
    assert split_options(arguments, {"n", "out", "data"}) == (own, options)


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_write_the_files_of_one(command, model, tmp_path):
    arguments = ["sample", str(model), "-n", "10", "--label", "healthy,ill", "--batch_size", "2", *QUICK]
    command(*arguments, "--out", tmp_path / "one")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*launcher, "-m", "medgen", *arguments, "--out", str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == names
    for name in names:  # identical, since both run on one thread and in the same batches
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


# Convert, push, evaluate


def test_convert_makes_a_checkpoint_of_a_training_run(command, run, tmp_path):
    (tmp_path / "about.yaml").write_text(yaml.safe_dump({"licence": "CC0-1.0", "data": "phantoms"}))
    (tmp_path / "metrics.json").write_text("{}")
    last = run.diffusion / "checkpoints" / "last.ckpt"
    extra = ["--about", tmp_path / "about.yaml", "--files", tmp_path / "metrics.json", "--dtype", "bfloat16"]
    status, out, _ = command("convert", last, tmp_path / "model", *extra)
    assert (status, out) == (0, f"{tmp_path / 'model'}\n")
    loaded, published = medgen.load(tmp_path / "model"), medgen.load(run.published)
    assert (loaded.config, loaded.about.licence) == (CONFIG, "CC0-1.0")
    assert (tmp_path / "model" / "metrics.json").is_file()
    expected = published.unet.state_dict()
    assert all(torch.equal(w, expected[k].bfloat16().float()) for k, w in loaded.unet.state_dict().items())


@pytest.mark.parametrize(
    "text", ["licenze: CC0-1.0", "- a list", "data: [1, 2]", "data: {", "known_failures: one text"]
)
def test_convert_names_the_fields_of_an_about_file_that_is_none(command, run, tmp_path, text):
    (tmp_path / "about.yaml").write_text(text)
    last = run.diffusion / "checkpoints" / "last.ckpt"
    status, _, err = command("convert", last, tmp_path / "model", "--about", tmp_path / "about.yaml")
    assert status == 1
    assert "about.yaml is not a YAML file of title, licence, data, intended_use" in err
    assert not (tmp_path / "model").exists()


def test_convert_without_more_gives_what_was_published(command, run, tmp_path):
    command("convert", run.diffusion / "checkpoints" / "last.ckpt", tmp_path / "model")
    weights = "model.safetensors"
    assert (tmp_path / "model" / weights).read_bytes() == (run.published / weights).read_bytes()


def test_convert_takes_size_and_names_of_an_official_file(command, tmp_path):
    official = PARITY / "medfusion_ckpt_a_diffusion.ckpt"
    if not official.is_file():
        pytest.skip("needs medfusion_ckpt_a_diffusion.ckpt; set MEDGEN_PARITY")
    arguments = ["--image_size", 32, 16, "--label_names", "no", "yes"]
    status, _, err = command("convert", official, tmp_path / "model", *arguments)
    assert status == 0, err
    config = medgen.load(tmp_path / "model").config
    assert (config.image_size, config.label_names) == ((32, 16), ("no", "yes"))


@pytest.mark.parametrize("first", ["autoencoder stage", "nothing", "text"])
def test_convert_names_what_it_cannot_take(command, run, tmp_path, first):
    (tmp_path / "text").write_text("hello")
    path = {"autoencoder stage": run.first_stage}.get(first, tmp_path / first)
    status, _, err = command("convert", path, tmp_path / "model")
    assert (status, err.count("\n")) == (1, 1)
    assert str(path) in err
    assert not (tmp_path / "model").exists()


def test_push_publishes_a_folder_that_loads_by_its_name(command, model, hub):  # noqa: F811
    status, out, _ = command("push", model, "clinic/tiny")
    assert status == 0
    repo, _, commit = out.strip().partition("@")
    assert repo == "clinic/tiny"
    loaded = medgen.load(out.strip())
    assert loaded.revision == commit
    assert torch.equal(loaded.sample(1, seed=0, steps=2), medgen.load(model).sample(1, seed=0, steps=2))


def test_push_of_nothing_is_an_error(command, tmp_path):
    status, _, err = command("push", tmp_path / "nothing", "clinic/tiny")
    assert (status, err) == (1, f"medgen push: no checkpoint folder {tmp_path / 'nothing'}\n")


def test_evaluate_writes_its_numbers(command, run, tmp_path):
    data = tmp_path / "data.yaml"
    data.write_text(
        yaml.safe_dump({"class_path": "medgen.data.TableDataModule", "init_args": data_arguments(run.table)})
    )
    arguments = ["--data", data, "--out", tmp_path / "report", "--metrics", "frechet_distance", "--steps", 2]
    status, out, err = command("evaluate", run.published, *arguments)
    assert status == 0, err
    assert "fd_efficientnet_lite0" in out
    assert (tmp_path / "report" / "metrics.json").is_file()
