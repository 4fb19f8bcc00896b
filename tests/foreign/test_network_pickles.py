"""The reader of official StyleGAN files: they come back as data, and nothing in a hostile file is ever run."""

import os
import pickle
import random
import struct
from collections import OrderedDict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from medgen.checkpoint import CheckpointError
from medgen.foreign.convert import convert
from medgen.foreign.network_pickles import is_pickle, read_network_pickle
from medgen.foreign.pickles import UnsafeFileError
from tests.official_pickles import EasyDict, Network, Persistent, module, official_names


class Foreign:
    """A class that no such file has."""


class Payload:
    """Calls a function when unpickled the usual way."""

    def __init__(self, function: object, *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.args


@pytest.fixture(autouse=True)
def stand_ins() -> Iterator[None]:
    with official_names():
        yield


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that exists once anything was run."""
    return tmp_path / "mark"


def content(mark: Path, **changes: object) -> dict[str, object]:
    """A file's content of one small network; its source text leaves the mark."""
    source = f"open({str(mark)!r}, 'w').close()"
    inner = Persistent(
        "Layer",
        source,
        _parameters=OrderedDict(weight=torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T), bias=None),
        _buffers=OrderedDict(average=torch.ones(2), scratch=torch.zeros(1)),
        _modules=OrderedDict(),
        _non_persistent_buffers_set={"scratch"},
        gain=np.float64(0.5),
        size=np.broadcast_to(np.asarray([4]), [2]),
        name="conv",
    )
    network = Persistent(
        "Generator",
        source,
        _parameters=OrderedDict(),
        _buffers=OrderedDict(step=torch.tensor(3)),
        _modules=OrderedDict(layer=inner, nothing=None),
        _init_args=(),
        _init_kwargs=EasyDict(z_dim=4, mapping_kwargs=EasyDict(num_layers=2)),
        **changes,
    )
    return {"training_set_kwargs": EasyDict(path="data.zip"), "G": network, "G_ema": network, "augment_pipe": None}


def write(tmp_path: Path, value: object, protocol: int = 4) -> Path:
    path = tmp_path / "net.pkl"
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_network_comes_back_as_data(tmp_path: Path, mark: Path, protocol: int) -> None:
    path = write(tmp_path, content(mark), protocol)
    networks = read_network_pickle(path)
    assert list(networks) == ["G", "G_ema"]
    found = networks["G_ema"]
    assert (found.class_name, found.arguments) == ("Generator", {"z_dim": 4, "mapping_kwargs": {"num_layers": 2}})
    assert {name: weight.tolist() for name, weight in found.state_dict.items()} == {
        "step": 3,
        "layer.weight": [[0, 3], [1, 4], [2, 5]],
        "layer.average": [1, 1],
    }
    assert found.attributes == {"layer.gain": 0.5, "layer.name": "conv"}
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists(), "the usual way runs the source text"


def text(value: str) -> bytes:
    """The instruction that puts text on the stack."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


RUNS = {
    "GLOBAL and REDUCE": lambda command: b"\x80\x02cos\nsystem\n" + text(command) + b"\x85R.",
    "STACK_GLOBAL and REDUCE": lambda command: b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text(command) + b"\x85R.",
    "names from the memo": lambda command: (
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x86h\x00h\x01\x93" + text(command) + b"\x85R."
    ),
    "INST": lambda command: b"\x80\x02(" + text(command) + b"ios\nsystem\n.",
    "OBJ": lambda command: b"\x80\x02(cos\nsystem\n" + text(command) + b"o.",
    "BUILD": lambda command: (
        b"\x80\x02ccollections\nOrderedDict\n)R}"
        + (text("__setstate__") + b"cos\nsystem\ns" + b"b" + text(command) + b"b.")
    ),
    "a dotted name": lambda command: b"\x80\x04\x8c\x08tempfile\x8c\x0a_os.system\x93" + text(command) + b"\x85R.",
}


@pytest.mark.parametrize("attack", RUNS)
def test_no_instruction_runs_a_command(tmp_path: Path, mark: Path, attack: str) -> None:
    pickled = RUNS[attack](f"touch {mark}")
    with pytest.raises(UnsafeFileError, match=r"net\.pkl: .*os\.system.*nothing was run"):
        read_network_pickle(write(tmp_path, pickled))
    assert not mark.exists()
    pickle.loads(pickled)
    assert mark.exists(), "the attack does nothing, so the test shows nothing"


REFUSED = {
    "NEWOBJ": (b"\x80\x02csubprocess\nPopen\n)\x81.", r"subprocess\.Popen"),
    "NEWOBJ_EX": (b"\x80\x04\x8c\x0asubprocess\x8c\x05Popen\x93)}\x92.", r"subprocess\.Popen"),
    "NEWOBJ_EX of a known name": (b"\x80\x04\x8c\x0bcollections\x8c\x0bOrderedDict\x93)}\x92.", "NEWOBJ_EX"),
    "EXT1": (b"\x80\x02\x82\x01.", "EXT1"),
    "EXT2": (b"\x80\x02\x83\x01\x00.", "EXT2"),
    "EXT4": (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
    "PERSID": (b"\x80\x02Pos.system\n.", "PERSID"),
    "BINPERSID of a storage": (
        b"\x80\x02(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + b"NK\x01tQ.",
        "refers to '0' outside of itself",
    ),
    "a name alone": (b"\x80\x02cos\nsystem\n.", r"os\.system"),
    "torch.load": (b"\x80\x02ctorch\nload\n.", r"torch\.load"),
    "a name that begins like a known one": (b"\x80\x02ctorch.storage\n_load_from_bytes.__globals__\n.", "globals"),
    "BUILD of a tensor": (
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n" + b"K\x01\x85R}X\x01\x00\x00\x00aK\x01sb.",
        "changes a value of type int",
    ),
    "a call of what was built": (b"\x80\x02ccollections\nOrderedDict\n)R)R.", "calls a value of type dict"),
}


@pytest.mark.parametrize(("pickled", "message"), REFUSED.values(), ids=REFUSED)
def test_what_the_official_code_never_writes_is_refused_by_name(tmp_path: Path, pickled: bytes, message: str) -> None:
    with pytest.raises(UnsafeFileError, match=rf"net\.pkl: .*{message}"):
        read_network_pickle(write(tmp_path, pickled))


def saved(value: object, zipped: bool) -> bytes:
    file = BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@pytest.mark.parametrize("place", ["an argument", "the bytes of a tensor", "the zipped bytes of a tensor", "an entry"])
@pytest.mark.parametrize(
    ("function", "argument", "name"),
    [(os.system, "touch {}", r"posix\.system|nt\.system"), (eval, "open({!r}, 'w')", r"(__)?builtins?(__)?\.eval")],
)
def test_a_payload_within_a_network_is_not_run(
    tmp_path: Path, mark: Path, place: str, function: object, argument: str, name: str
) -> None:
    payload: object = Payload(function, argument.format(str(mark)))
    if "bytes" in place:
        payload = Payload(torch.storage._load_from_bytes, saved({"a": payload}, "zipped" in place))
    file = content(tmp_path / "other", note=payload)
    if place == "an entry":
        file = {**content(tmp_path / "other"), "extra": payload}
    path = write(tmp_path, file)
    with pytest.raises(UnsafeFileError, match=rf"net\.pkl: the file names ({name}), .*; nothing was run"):
        read_network_pickle(path)
    with pytest.raises(UnsafeFileError, match=name):
        convert(path, tmp_path / "out")
    assert not mark.exists()
    assert not (tmp_path / "out").exists()
    pickle.loads(path.read_bytes())
    assert mark.exists(), "the attack does nothing, so the test shows nothing"


def test_the_bytes_of_a_tensor_hold_no_bytes_of_another(tmp_path: Path, mark: Path) -> None:
    inner = Payload(torch.storage._load_from_bytes, saved(torch.ones(2).untyped_storage(), False))
    outer = Payload(torch.storage._load_from_bytes, saved(inner, False))
    with pytest.raises(UnsafeFileError, match=r"torch\.storage\._load_from_bytes"):
        read_network_pickle(write(tmp_path, content(mark, note=outer)))


@pytest.mark.parametrize("zipped", [True, False])
def test_the_bytes_of_a_tensor_hold_numbers_only(tmp_path: Path, mark: Path, zipped: bool) -> None:
    payload = Payload(torch.storage._load_from_bytes, saved({"a": 1}, zipped))
    with pytest.raises(CheckpointError, match="found dict in place of the numbers of a tensor"):
        read_network_pickle(write(tmp_path, content(mark, note=payload)))


def test_neither_does_what_is_written_before_them_name_anything(tmp_path: Path, mark: Path) -> None:
    numbers = saved(torch.ones(2).storage(), False)
    begin = numbers.index(b"little_endian")  # in the third of the pickles, a dictionary
    named = numbers[: begin - 5] + text("x") + b"cos\nsystem\n" + numbers[begin - 5 :]
    payload = Payload(torch.storage._load_from_bytes, named)
    with pytest.raises(UnsafeFileError, match=r"names os\.system, which such files have no use for"):
        read_network_pickle(write(tmp_path, content(mark, note=payload)))


def test_a_small_file_makes_no_long_message(tmp_path: Path) -> None:
    path = tmp_path / "network.pkl"
    path.write_bytes(b"\x80\x02)q\x00" + b"q\x00h\x00\x86" * 14 + b"}b.")  # a tuple of 2 ** 14
    with pytest.raises(CheckpointError) as refusal:
        read_network_pickle(path)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    "wrong", [{"img_resolution": "16"}, {"img_resolution": 16.0}, {"mapping_kwargs": None}, {"c_dim": None}], ids=str
)
def test_arguments_of_another_type_are_a_refusal(tmp_path: Path, wrong: dict[str, object]) -> None:
    right = {"z_dim": 8, "w_dim": 8, "c_dim": 0, "img_resolution": 16, "img_channels": 1}
    weights = {"synthesis.b4.const": torch.zeros(8, 4, 4)}
    path = write(tmp_path, {"G_ema": module("Generator", weights, _init_args=(), _init_kwargs=EasyDict(right | wrong))})
    with pytest.raises(CheckpointError, match="has a generator unlike ours of stylegan2"):
        convert(path, tmp_path / "out")


def test_a_foreign_class_is_refused_wherever_it_is(tmp_path: Path, mark: Path) -> None:
    for file in (Foreign(), {**content(mark), "extra": Foreign()}, content(mark, note=[Foreign()])):
        with pytest.raises(UnsafeFileError, match=r"names .*test_network_pickles\.Foreign, which such files"):
            read_network_pickle(write(tmp_path, file))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "found list, but a network pickle of NVIDIA's official PyTorch code has a dictionary of"),
        ({"epoch": 3, "weights": [1.0]}, "found a dictionary of epoch, weights, but a network pickle"),
        ({}, "found a dictionary of nothing, but"),
        ({"G_ema": {"weight": 1}}, "G_ema is of type dict, and not a network"),
    ],
)
def test_a_pickle_of_another_program_is_told_apart(tmp_path: Path, value: object, message: str) -> None:
    path = write(tmp_path, value)
    with pytest.raises(CheckpointError, match=rf"net\.pkl: {message}"):
        read_network_pickle(path)
    with pytest.raises(CheckpointError, match=message):
        convert(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_init_args": (4,)}, "G was given arguments by position"),
        ({"_parameters": [1]}, "_parameters of a Generator is of type list"),
        ({"_parameters": {"a": 1}}, "a is of type int, and not a tensor"),
        ({"_modules": {"a": 1}}, "a is of type int, and not a network"),
    ],
)
def test_a_network_of_another_form_is_refused(
    tmp_path: Path, mark: Path, changes: dict[str, object], message: str
) -> None:
    file = content(mark)
    file["G"].meta["state"].update(changes)
    with pytest.raises(CheckpointError, match=rf"net\.pkl: {message}"):
        read_network_pickle(write(tmp_path, file))


def test_a_network_within_itself_is_refused(tmp_path: Path, mark: Path) -> None:
    file = content(mark)
    state = file["G"].meta["state"]
    state["_modules"] = {"a": Persistent("Layer", "", **state)}
    state["_modules"]["a"].meta["state"] = state
    with pytest.raises(CheckpointError, match=r"net\.pkl"):
        read_network_pickle(write(tmp_path, file))


def test_a_file_without_an_average_is_not_converted(tmp_path: Path) -> None:
    network = module("Generator", {"synthesis.b4.const": torch.zeros(8, 4, 4)}, _init_args=(), _init_kwargs=EasyDict())
    with pytest.raises(CheckpointError, match="has G and no averaged generator, G_ema"):
        convert(write(tmp_path, {"G": network}), tmp_path / "out")


def test_networks_of_no_known_kind_are_named_with_what_is_converted(tmp_path: Path, mark: Path) -> None:
    known = r"medgen converts .*a StyleGAN2 of the official .*, a StyleGAN3 of .* or a checkpoint of its own training"
    with pytest.raises(CheckpointError, match=rf"net\.pkl has G and G_ema, a Generator of step, layer.*; {known}"):
        convert(write(tmp_path, content(mark)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_older_code_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"older TensorFlow code.*legacy\.py of the official PyTorch.*trust only"):
        read_network_pickle(write(tmp_path, (Network(), Network(), Network())))


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, mark: Path, keep: float) -> None:
    path = write(tmp_path, content(mark))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(CheckpointError, match=r"net\.pkl"):
        read_network_pickle(path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_damage_gives_one_kind_of_error(tmp_path: Path, mark: Path) -> None:
    path = write(tmp_path, content(mark))
    good, rng, messages = path.read_bytes(), random.Random(0), []
    for _ in range(400):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        try:
            read_network_pickle(path)
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(str(path) in message for message in messages)
    assert not mark.exists()


def test_what_torch_saves_is_no_plain_pickle(tmp_path: Path, mark: Path) -> None:
    for zipped in (True, False):
        torch.save({"a": torch.ones(1)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        assert not is_pickle(tmp_path / "a.pt")
    assert is_pickle(write(tmp_path, content(mark)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (read_network_pickle, is_pickle):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.pkl"):
            read(tmp_path / "nowhere.pkl")
