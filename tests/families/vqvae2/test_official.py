"""Official VQ-VAE2 files become a generator, and what does not fit together is refused by name."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medgen.checkpoint import CheckpointError, read_info
from medgen.cli import main
from medgen.families.vqvae2.official import convert_checkpoints, is_official
from medgen.foreign.convert import convert
from medgen.foreign.pickles import UnsafeFileError
from medgen.loading import from_pretrained
from tests.families.vqvae2.official_files import official_weights, write_files
from tests.families.vqvae2.tiny import generator as make
from tests.tiny import changed

Weights = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return official_weights(make("none"))


@pytest.fixture
def files(weights: Weights, tmp_path: Path) -> dict[str, Path]:
    return write_files(tmp_path, weights)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """A function from the arguments of ``medgen convert`` to its exit status and what it printed of errors."""

    def call(*arguments: object) -> tuple[int, str]:
        status = main(["convert", *map(str, arguments)])
        return status, capsys.readouterr().err

    return call


# What comes out


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channels": 3, "top": {"output_blocks": 2}, "bottom": {"attention": True, "condition_blocks": 2}},
        {
            "image_size": (24, 16),
            "top": {"attention": False, "kernel_size": 5, "blocks": 2},
            "bottom": {"kernel_size": 5, "blocks": 2},
        },
        {
            "autoencoder": {"residual_blocks": 3},
            "top": {"residual_blocks": 2},
            "bottom": {"residual_blocks": 2, "condition_blocks": 0, "condition_channels": 16},
        },
        {
            "top": {"hidden_channels": 32, "blocks": 2, "residual_channels": 4},
            "bottom": {"kernel_size": 5, "residual_blocks": 3, "output_blocks": 1},
        },
    ],
    ids=["tiny", "attention", "wide", "deep", "different priors"],
)
def test_converted_files_sample_the_images_of_the_generator_they_were_made_of(command, changes, tmp_path):
    original = make("none", **changes)
    files = write_files(tmp_path, official_weights(original))
    out = tmp_path / "model"
    status, err = command(files["autoencoder"], out, "--top", files["top"], "--bottom", files["bottom"])
    assert (status, err) == (0, "")
    converted = from_pretrained(out)
    labels = {"label_dim": 8}  # without labels it has no effect
    assert changed(converted.config, top=labels, bottom=labels) == original.config
    assert torch.equal(converted.sample(2, seed=0), original.sample(2, seed=0))
    expected = original.state_dict()
    assert converted.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in converted.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"prefix": "module."}, {"args": "bare"}, {"prefix": "module.", "args": "bare"}])
def test_other_wrappings_hold_the_same_weights(options, files, weights, tmp_path):
    (tmp_path / "other").mkdir()
    config, state, _ = convert_checkpoints(**files)
    other_config, other, _ = convert_checkpoints(**write_files(tmp_path / "other", weights, **options))
    assert other_config == config
    assert state.keys() == other.keys()
    assert all(torch.equal(weight, other[name]) for name, weight in state.items())


@pytest.mark.parametrize(
    ("args", "dropout"),
    [
        (argparse.Namespace(dropout=0.25), 0.25),
        (argparse.Namespace(dropout=0), 0),
        (argparse.Namespace(lr=1e-3), 0.1),
        ({"dropout": 0.3}, 0.3),
        ("bare", 0.1),
    ],
)
def test_dropout_is_what_the_files_state(args, dropout, weights, tmp_path):
    assert convert_checkpoints(**write_files(tmp_path, weights, args=args)).config.top.dropout == dropout


def test_the_new_checkpoint_names_the_files_it_was_made_of(files, tmp_path):
    folder = convert(files["autoencoder"], tmp_path / "m", top=files["top"], bottom=files["bottom"])
    assert read_info(folder).about.source == "vqvae_560.pt, pixelsnail_top.pt, pixelsnail_bottom.pt"


def test_the_size_of_the_images_may_be_said_again(files):
    assert convert_checkpoints(**files, image_size=(16, 16)).config.image_size == (16, 16)


def test_only_official_networks_are_taken_for_such(files, tmp_path):
    torch.save({"state_dict": {"horizontal": torch.ones(1)}}, tmp_path / "last.ckpt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    torch.save({0: torch.ones(1)}, tmp_path / "numbers.pt")
    torch.save({}, tmp_path / "empty.pt")
    assert all(is_official(path) for path in files.values())
    assert not any(is_official(tmp_path / name) for name in ("last.ckpt", "list.pt", "numbers.pt", "empty.pt"))


# Files that are missing or in another's place


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"autoencoder": "autoencoder"},
            r"vqvae_560\.pt is the autoencoder alone; the prior of the top map and the prior of the bottom map must be "
            "given, too",
        ),
        ({"autoencoder": "autoencoder", "top": "top"}, "alone; the prior of the bottom map must be given, too"),
        ({"autoencoder": "autoencoder", "bottom": "bottom"}, "alone; the prior of the top map must be given, too"),
        ({"autoencoder": "top"}, r"_top\.pt is the prior of the top map, and was given as the autoencoder"),
        (
            {"autoencoder": "bottom", "top": "top"},
            r"_bottom\.pt is the prior of the bottom map, and was given as the a",
        ),
        (
            {"autoencoder": "autoencoder", "top": "bottom", "bottom": "top"},
            r"_bottom\.pt is the prior of the bottom map, and was given as the prior of the top map; .*_top\.pt is the "
            "prior of the top map, and was given as the prior of the bottom map",
        ),
        (
            {"autoencoder": "top", "top": "autoencoder", "bottom": "bottom"},
            r"_top\.pt is the prior of the top map, and was given as the autoencoder; .*vqvae_560\.pt is the "
            "autoencoder, and was given as the prior of the top map",
        ),
        (
            {"autoencoder": "autoencoder", "top": "top", "bottom": "top"},
            r"_top\.pt is the prior of the top map, and was given as the prior of the bottom map",
        ),
    ],
)
def test_the_right_call_is_told_where_files_are_missing_or_misplaced(given, message, files, command, tmp_path):
    paths = {argument: files[part] for argument, part in given.items()}
    known = {part: files[part] if part in given.values() else files[part].name for part in files}
    call = f"; use medgen convert {known['autoencoder']} OUT --top {known['top']} --bottom {known['bottom']}"
    with pytest.raises(CheckpointError, match=message) as refused:
        convert_checkpoints(**paths)
    assert str(refused.value).endswith(call)
    options = [word for name in ("top", "bottom") if name in paths for word in (f"--{name}", paths[name])]
    status, err = command(paths["autoencoder"], tmp_path / "out", *options)
    assert (status, err) == (1, f"medgen convert: {refused.value}\n")
    assert not (tmp_path / "out").exists()


def test_the_right_call_survives_a_space_in_a_name(weights, tmp_path):
    folder = tmp_path / "my models"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"use medgen convert '.*/my models/vqvae_560\.pt' OUT --top pixelsnail"):
        convert_checkpoints(write_files(folder, weights)["autoencoder"])


def test_another_projects_file_as_a_prior_is_refused(files, tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt is no file of the official VQ-VAE2 code.*use medgen convert"):
        convert_checkpoints(files["autoencoder"], tmp_path / "other.pt", files["bottom"])


def test_a_file_that_is_not_there_is_named(files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        convert_checkpoints(files["autoencoder"], tmp_path / "nothing.pt", files["bottom"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image_size", 32, 16], r"image_size is (32, 16), but .* images of (16, 16); leave image_size out"),
        (["--label_names", "ill"], r"label_names are ['ill'], but .*vqvae_560.pt knows no classes; leave them out"),
    ],
)
def test_what_contradicts_the_files_is_refused(options, message, files, command, tmp_path):
    out = tmp_path / "out"
    status, err = command(files["autoencoder"], out, "--top", files["top"], "--bottom", files["bottom"], *options)
    begin, end = message.split(".*")
    assert (status, begin in err, end in err) == (1, True, True)
    assert not out.exists()


# Files that do not belong together


def refused(weights: Weights, folder: Path, message: str, **options: object) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoints(**write_files(folder, weights, **options))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("bottom", {"image_size": (32, 32)}, r"_bottom\.pt has a map of \(8, 8\) codes and .*_top\.pt one of \(2, 2\)"),
        ("top", {"image_size": (16, 24)}, r"_bottom\.pt has a map of \(4, 4\) codes and .*_top\.pt one of \(2, 3\)"),
        (
            "autoencoder",
            {"autoencoder": {"num_codes": 12}},
            r"_top\.pt knows 16 codes \(n_class\), but .*vqvae_560\.pt has 12; give",
        ),
        (
            "top",
            {"autoencoder": {"num_codes": 12}},
            r"_top\.pt knows 12 codes \(n_class\), but .*vqvae_560\.pt has 16; give",
        ),
        (
            "bottom",
            {"autoencoder": {"num_codes": 12}},
            r"_bottom\.pt knows 12 codes \(n_class\), but .*vqvae_560\.pt has 16; give",
        ),
    ],
)
def test_files_of_different_models_are_refused(part, changes, message, weights, tmp_path):
    other = official_weights(make("none", **changes))
    refused(weights | {part: other[part]}, tmp_path, message)


def change(weights: Weights, part: str, **entries: Tensor | None) -> Weights:
    """Other weights with those names, dots written as ``__``; None takes one out."""
    renamed = {name.replace("__", "."): value for name, value in entries.items()}
    state = {name: value for name, value in (weights[part] | renamed).items() if value is not None}
    return weights | {part: state}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "entries", "message"),
    [
        ("autoencoder", {"extra__weight": torch.ones(1)}, r"vqvae_560\.pt is not what.*: extra\.weight is not part of"),
        ("top", {"extra": torch.ones(1)}, r"_top\.pt is not what.*: extra is not part of this model"),
        (
            "bottom",
            {"blocks__0__out__conv__bias": None},
            r"_bottom\.pt is not what .*: blocks\.0\.place\.bias is missing",
        ),
        ("bottom", {"blocks__0__out__conv__bias": torch.ones(3)}, r"place\.bias is \(3,\), expected \(16,\)"),
        (
            "top",
            {"out__2__conv__bias": torch.ones(16)},
            r"out\.1\.conv\.bias and out\.2\.conv\.bias are the same weight",
        ),
        ("top", {"blocks__7__extra": torch.ones(1)}, r"_top\.pt is not what.*: blocks\.1\..* is missing"),
        (
            "autoencoder",
            {"quantize_t__embed": None},
            r"560\.pt: the autoencoder has a weight quantize_t\.embed of 2 dim.*none",
        ),
        ("autoencoder", {"enc_b__blocks__0__weight": torch.ones(2, 2)}, r"of 4 dimensions.* has one of shape \(2, 2\)"),
        ("top", {"background": None}, r"_top\.pt: the prior of the top map has a weight background of 4 .* has none"),
        ("top", {"background": torch.zeros(1, 2, 2, 2)}, r"_top\.pt: its background is not row and column"),
        ("top", {"background": torch.zeros(1, 2, 0, 2)}, r"has one of shape \(1, 2, 0, 2\)"),
        ("top", {"background": torch.zeros(2, 2, 2, 2)}, r"_top\.pt: its background is not row and column"),
        (
            "bottom",
            {"cond_resnet__blocks__0__conv__weight_v": None},
            r"a weight cond_resnet\.blocks\.0\.conv\.weight_v",
        ),
        (
            "bottom",
            {"cond_resnet__blocks__0__conv__weight_v": torch.ones(8, 9, 3, 3)},
            r"_bottom\.pt knows 9 codes \(n_class\)",
        ),
        (
            "bottom",
            {"cond_resnet__blocks__0__conv__weight_v": torch.ones(8, 16, 5, 5)},
            r"condition\.stem\.weight_v is \(8, 16, 5, 5\), expected \(8, 16, 3, 3\)",
        ),
        (
            "bottom",
            {"out__0__conv1__conv__bias": torch.ones(8)},
            r"_bottom\.pt is not what.*: last\.0\..* is missing",
        ),
        ("top", {"extra": torch.ones(1, dtype=torch.int64)}, r"_top\.pt is damaged: extra is not a tensor of floating"),
        ("top", {"extra": "text"}, r"_top\.pt is damaged: extra is not a tensor"),
    ],
)
def test_weights_too_many_missing_or_of_another_kind_are_refused(part, entries, message, weights, tmp_path):
    refused(change(weights, part, **entries), tmp_path, message)


def test_part_of_the_names_with_the_prefix_of_several_gpus_are_refused(weights, tmp_path):
    doubled = {"module.background": weights["top"]["background"]}
    refused(weights | {"top": weights["top"] | doubled}, tmp_path, r"module\.background is not part of this model")


def test_what_no_generator_can_have_is_refused(weights, tmp_path):
    channels = {
        "enc_b__blocks__0__weight": torch.ones(8, 4, 4, 4),
        "dec__blocks__6__weight": torch.ones(8, 4, 4, 4),
        "dec__blocks__6__bias": torch.ones(4),
    }
    message = r"vqvae_560\.pt, .* have a shape that VQVAE2Generator does not: channels is 4; use 1"
    refused(change(weights, "autoencoder", **channels), tmp_path, message)


@pytest.mark.parametrize(
    ("dropout", "message"),
    [
        ("much", r"_top\.pt is damaged: its args state dropout 'much'"),
        (1.5, "dropout is 1.5"),
        (float("nan"), "dropout is"),
    ],
)
def test_a_dropout_that_is_none_is_refused(dropout, message, weights, tmp_path):
    refused(weights, tmp_path, message, args=argparse.Namespace(dropout=dropout))


class Payload:
    """Calls a function when unpickled the usual way."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


@pytest.mark.parametrize("part", ["autoencoder", "top", "bottom"])
@pytest.mark.parametrize("place", ["weights", "args"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_file_is_refused_and_nothing_runs(part, place, zipped, weights, files, tmp_path):
    payload = Payload(tmp_path / "mark")
    state = weights[part] | ({"extra": payload} if place == "weights" else {})
    content = {"model": state, "args": argparse.Namespace(dropout=payload if place == "args" else 0.1)}
    torch.save(content, files[part], _use_new_zipfile_serialization=zipped)
    before = set(tmp_path.iterdir())
    with pytest.raises(UnsafeFileError, match=rf"{files[part].name}: the file calls (posix|nt)\.system when loaded"):
        convert(files["autoencoder"], tmp_path / "out", top=files["top"], bottom=files["bottom"])
    assert set(tmp_path.iterdir()) == before
