"""The checkpoint format: what is written comes back, and nothing damaged, foreign or newer is loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medgen.checkpoint import (
    About,
    CheckpointError,
    model_card,
    read_checkpoint,
    read_info,
    write_checkpoint,
)

ABOUT = About(licence="CC-BY-4.0", data="12 images of 3 phantoms", known_failures=("Letters are mirrored.",))
CONFIG = {"image_size": (8, 12), "label_names": ("healthy", "ill"), "window": (0.0, 255.0), "norm": None, "steps": 3}


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return {"conv.weight": torch.randn(4, 2, 3, 3), "conv.bias": torch.randn(4), "count": torch.tensor(7)}


@pytest.fixture
def folder(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    return write_checkpoint(tmp_path / "model", family="medfusion", config=CONFIG, state=state, about=ABOUT)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_written_checkpoint_comes_back_exactly(folder: Path, state: dict[str, torch.Tensor]) -> None:
    checkpoint = read_checkpoint(folder)
    assert (checkpoint.family, checkpoint.config, checkpoint.about) == ("medfusion", CONFIG, ABOUT)
    assert checkpoint.state.keys() == state.keys()
    assert all(torch.equal(checkpoint.state[name], tensor) for name, tensor in state.items())


def test_weights_lie_in_memory_as_those_that_were_trained(tmp_path: Path) -> None:
    state = {f"w{size}": torch.randn(size) for size in range(1, 20)}  # in the file, most begin anywhere
    loaded = read_checkpoint(write_checkpoint(tmp_path / "a", family="f", config={}, state=state)).state
    assert [name for name, weight in loaded.items() if weight.data_ptr() % 64] == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_storage_is_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = torch.randn(1000)
    write_checkpoint(tmp_path / "a", family="f", config={}, state={"w": weights}, dtype=dtype)
    write_checkpoint(tmp_path / "b", family="f", config={}, state={"w": weights})
    loaded = read_checkpoint(tmp_path / "a").state["w"]
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, weights.to(dtype).float())
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in "ab"]
    assert sizes[1] - sizes[0] == 2000


def test_weights_beyond_the_range_of_float16_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'w' holds .* infinity once stored as torch\.float16"):
        write_checkpoint(tmp_path / "a", family="f", config={}, state={"w": torch.tensor([1e6])}, dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_the_description_is_read_without_torch(folder: Path) -> None:
    code = "import sys; from medgen.checkpoint import read_info; read_info(sys.argv[1]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_files_added_by_the_caller_are_hashed_too(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    (tmp_path / "grid.png").write_bytes(b"png")
    extra = {"README.md": "# Mine\n", "metrics.json": b"{}", "figures/grid.png": tmp_path / "grid.png"}
    folder = write_checkpoint(tmp_path / "m", family="f", config={}, state=state, extra_files=extra)
    assert (folder / "README.md").read_text() == "# Mine\n"
    assert (folder / "figures/grid.png").read_bytes() == b"png"
    assert set(read_info(folder).files) == {"model.safetensors", *extra}


@pytest.mark.parametrize("name", ["../escape.txt", "/etc/escape", "a/../../b", "config.json", "model.safetensors", ""])
def test_extra_files_stay_in_the_folder(tmp_path: Path, state: dict[str, torch.Tensor], name: str) -> None:
    with pytest.raises(ValueError, match="is not allowed"):
        write_checkpoint(tmp_path / "m", family="f", config={}, state=state, extra_files={name: b""})


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_a_changed_byte_is_refused_by_the_hash(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged or was changed: its sha256 is"):
        read_checkpoint(folder)


def test_a_truncated_weight_file_is_refused_by_the_hash(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="is damaged or was changed"):
        read_checkpoint(folder)


def test_a_missing_weight_file_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks model\.safetensors"):
        read_checkpoint(folder)


def test_a_future_format_says_which_medgen_it_needs(folder: Path) -> None:
    edit_config(folder, format_version=3, medgen_version="3.1.0", something_new={})
    with pytest.raises(CheckpointError, match=r"has format 3.*needs medgen 3\.1\.0 or newer"):
        read_info(folder)


@pytest.mark.parametrize("change", [{"family": "other"}, {"config": {"width": 9}}, {"about": {"licence": "MIT"}}])
def test_a_changed_description_is_refused_by_its_hash(folder: Path, change: dict[str, object]) -> None:
    edit_config(folder, **change)
    with pytest.raises(CheckpointError, match="is damaged or was changed: the sha256 of family, config"):
        read_info(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": "1"}, "format_version is '1'"),
        ({"extra": 1}, r"unknown entries \['extra'\]"),
        ({"family": 3}, "family is 3"),
        ({"about": {"colour": "red"}}, "colour"),
        ({"about": {"licence": 5}}, "licence must be text"),
        ({"files": {}}, r"no hash for model\.safetensors"),
        ({"files": {"../../x": "0" * 64}}, r"\.\./\.\./x"),
        ({"files": {"model.safetensors": "abc"}}, "not a name with a sha256"),
    ],
)
def test_a_damaged_description_is_refused(folder: Path, changes: dict[str, object], message: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_info(folder)


def test_a_cut_off_description_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(CheckpointError, match="it is not JSON"):
        read_info(folder)


def test_a_config_of_another_library_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(CheckpointError, match="is not from medgen"):
        read_info(folder)


def test_weights_without_a_description_point_to_convert(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json.*medgen convert"):
        read_checkpoint(folder)


def test_a_failed_write_leaves_the_old_checkpoint_as_it_was(
    folder: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(folder, family="f", config={}, state={"w": torch.ones(2)})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_writing_again_replaces_the_checkpoint_and_keeps_other_files(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("seed: 0")
    write_checkpoint(folder, family="other", config={}, state={"w": torch.ones(2)})
    assert read_checkpoint(folder).family == "other"
    assert (folder / "recipe.yaml").read_text() == "seed: 0"


def test_a_config_that_is_not_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for value in (float("nan"), torch.ones(1), {1, 2}):
        with pytest.raises(ValueError, match="config must hold numbers"):
            write_checkpoint(tmp_path / "m", family="f", config={"a": value}, state={"w": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


def test_the_card_has_the_metadata_that_the_hub_reads() -> None:
    card = model_card(ABOUT, family="medfusion", name="org/phantoms")
    assert card.startswith("---\nlicense: cc-by-4.0\nlibrary_name: medgen\n")
    for text in ('- "medfusion"', "# org/phantoms", "12 images of 3 phantoms", "- Letters are mirrored."):
        assert text in card


def test_a_licence_that_the_hub_does_not_list_is_named_beside_other() -> None:
    card = model_card(About(licence="NIST-PD"), family="f", name="n")
    assert 'license: other\nlicense_name: "NIST-PD"\n' in card


@pytest.mark.parametrize("text", ['{"family": "a", "family": "b"}', "[" * 100_000])
def test_repeated_keys_and_endless_nesting_are_damage(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="is damaged, it is not JSON"):
        read_info(folder)
