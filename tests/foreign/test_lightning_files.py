"""The restricted reader: files of torch.save come back as data, and nothing in a hostile file is ever run."""

import argparse
import collections
import io
import os
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from medgen.checkpoint import CheckpointError
from medgen.foreign.lightning_files import read_lightning
from medgen.foreign.pickles import GlobalName, Record, UnsafeFileError
from medgen.foreign.torch_files import read_torch_file


class Payload:
    """Calls a function when unpickled the usual way."""

    def __init__(self, function: object, *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.args


def save_zip(path: Path, pickled: bytes, **records: bytes) -> Path:
    """A file in the layout of torch.save around an arbitrary pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in records.items():
            archive.writestr(f"archive/data/{name}", content)
    return path


CONTENT = {
    "state_dict": collections.OrderedDict(
        weight=torch.arange(12.0).reshape(3, 4),
        transposed=torch.arange(12).reshape(3, 4).T,
        half=torch.ones(3, dtype=torch.float16),
        brain=torch.ones(3, dtype=torch.bfloat16),
        flags=torch.tensor([True, False]),
        empty=torch.empty(0, 3),
        scalar=torch.tensor(2.5, dtype=torch.float64),
        parameter=torch.nn.Parameter(torch.ones(2)),
        view=torch.arange(10.0)[3:9:2],
    ),
    "hyper_parameters": {
        "channels": [64, 128],
        "norm": ("GROUP", {"affine": True}),
        "loss": torch.nn.L1Loss,
        "window": (-1000.0, 2.5e3),
        "nothing": None,
        "big": 2**70,
        "bytes": b"\x00\xff",
        "names": {"a", "b"},
        "score": np.float64(0.25),
        "size": torch.Size([2, 3]),
        "device": torch.device("cuda", 1),
        "path": Path("runs") / "last",
        "counts": collections.Counter("aab"),
    },
    "global_step": 12,
    "pytorch-lightning_version": "2.6.6",
}


@pytest.fixture(params=["zip", "legacy"])
def saved(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    torch.save(CONTENT, tmp_path / "a.ckpt", _use_new_zipfile_serialization=request.param == "zip")
    return tmp_path / "a.ckpt"


def test_tensors_come_back_exactly(saved: Path) -> None:
    state = read_lightning(saved).state_dict
    assert list(state) == list(CONTENT["state_dict"])
    for name, tensor in CONTENT["state_dict"].items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)


def test_plain_values_come_back_and_classes_stay_names(saved: Path) -> None:
    file = read_lightning(saved)
    expected = CONTENT["hyper_parameters"] | {
        "loss": GlobalName("torch.nn.modules.loss", "L1Loss"),
        "size": (2, 3),
        "device": "cuda:1",
        "path": "runs/last",
    }
    assert file.hyper_parameters == expected
    assert (file.global_step, file.version) == (12, "2.6.6")


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    value = {"a": [1, -2, 3.5, "text é", None, True], "b": (1, 2, 3, 4), "c": {"x": {}}, "d": 2**40}
    path = save_zip(tmp_path / "a.pt", pickle.dumps(value, protocol=protocol))
    assert read_torch_file(path) == value


def test_objects_of_unknown_classes_become_records(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(size=256)}, tmp_path / "a.pt")
    record = read_torch_file(tmp_path / "a.pt")["args"]
    assert isinstance(record, Record)
    assert (record.kind, record.state) == (GlobalName("argparse", "Namespace"), {"size": 256})


def test_changing_a_tensor_does_not_change_the_file(saved: Path) -> None:
    before = saved.read_bytes()
    read_lightning(saved).state_dict["weight"].fill_(7)
    assert saved.read_bytes() == before


@pytest.mark.parametrize("layout", ["zip", "legacy", "plain pickle"])
@pytest.mark.parametrize(
    ("function", "args", "name"),
    [
        (os.system, ("touch {}",), r"posix\.system|nt\.system"),
        (eval, ("open({!r}, 'w')",), r"builtins?(__)?\.eval"),
        (exec, ("open({!r}, 'w')",), r"builtins?(__)?\.exec"),
        (getattr, (os, "system"), "getattr"),
        (pickle.loads, (pickle.dumps(Payload(os.system, "touch x")),), r"pickle\.loads"),
        (torch.load, ("{}",), r"torch\.serialization\.load"),
    ],
)
def test_a_payload_is_refused_by_name_and_not_run(
    tmp_path: Path, layout: str, function: object, args: tuple[object, ...], name: str
) -> None:
    mark = tmp_path / "mark"
    filled = tuple(a.format(str(mark)) if isinstance(a, str) else a for a in args if a is not os)
    content = {"state_dict": {}, "payload": Payload(function, *filled)}
    path = tmp_path / "bad.ckpt"
    if layout == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=layout == "zip")
    with pytest.raises(
        UnsafeFileError, match=rf"bad\.ckpt: the file calls \S*({name})\S* when loaded; nothing was run"
    ):
        read_torch_file(path)
    assert not mark.exists()


HOSTILE = {
    "call through a memo": b"\x80\x02cos\nsystem\nq\x00h\x00X\x01\x00\x00\x00xq\x01\x85R.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.",
    "class instance of protocol 0": b"(S'x'\nios\nsystem\n.",
    "object opcode": b"(cos\nsystem\nS'x'\no.",
    "extension registry": b"\x80\x02\x82\x01.",
    "keyword call": b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.",
    "text persistent id": b"Pos.system\n.",
    "state of a function": b"\x80\x02cos\nsystem\n}X\x01\x00\x00\x00aK\x01sb.",
    "state of a list": b"\x80\x02]}X\x01\x00\x00\x00aK\x01sb.",
    "call of a record": b"\x80\x02cos\nPopen\n)\x81)R.",
    "call of a tuple": b"\x80\x02))R.",
}


@pytest.mark.parametrize("pickled", HOSTILE.values(), ids=HOSTILE)
def test_other_ways_to_run_code_are_refused(tmp_path: Path, pickled: bytes) -> None:
    with pytest.raises(UnsafeFileError):
        read_torch_file(save_zip(tmp_path / "bad.pt", pickled))


def tensor_pickle(**changes: object) -> bytes:
    """The pickle of one float tensor of 4 values in record 0, with parts of it replaced."""
    parts = {"kind": "storage", "module": "torch", "key": "0", "numel": 4, "offset": 0, "size": (4,), "stride": (1,)}
    parts |= changes
    out = io.BytesIO()

    def put(value: object) -> None:  # the value's own opcodes, without the header and the final stop
        out.write(pickle.dumps(value, protocol=2)[2:-1])

    out.write(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((")
    put(parts["kind"])
    out.write(f"c{parts['module']}\nFloatStorage\n".encode())
    for value in (parts["key"], "cpu", parts["numel"]):
        put(value)
    out.write(b"tQ")
    for value in (parts["offset"], parts["size"], parts["stride"], False, None):
        put(value)
    out.write(b"tR.")
    return out.getvalue()


def test_the_hand_made_tensor_is_read(tmp_path: Path) -> None:
    path = save_zip(tmp_path / "a.pt", tensor_pickle(), **{"0": struct.pack("<4f", 1, 2, 3, 4)})
    assert torch.equal(read_torch_file(path), torch.tensor([1.0, 2, 3, 4]))


@pytest.mark.parametrize(
    "changes",
    [
        {"size": (5,)},
        {"offset": 1},
        {"offset": -1},
        {"size": (4,), "stride": (2,)},
        {"size": (2,), "stride": (-1,)},
        {"numel": 400},
        {"numel": -4},
        {"key": "1"},
        {"kind": "view"},
        {"module": "evil"},
    ],
)
def test_a_tensor_that_reaches_beyond_its_bytes_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    path = save_zip(tmp_path / "bad.pt", tensor_pickle(**changes), **{"0": struct.pack("<4f", 1, 2, 3, 4)})
    with pytest.raises(CheckpointError, match=r"bad\.pt"):
        read_torch_file(path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(saved: Path, keep: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(CheckpointError, match=r"a\.ckpt"):
        read_torch_file(saved)


@pytest.mark.parametrize(
    ("zipped", "mark", "damage"),
    [
        (True, b"PK\x01\x02", b"QK"),  # the directory of the zip
        (False, b"X\n\x00\x00\x00state_dict", b"\x8d"),  # a length of 4 bytes becomes one of 8
    ],
    ids=["zip", "legacy"],
)
def test_a_file_with_damaged_bytes_is_refused(tmp_path: Path, zipped: bool, mark: bytes, damage: bytes) -> None:
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "a.ckpt").read_bytes()
    assert mark in content
    (tmp_path / "a.ckpt").write_bytes(content.replace(mark, damage + mark[len(damage) :]))
    with pytest.raises(CheckpointError, match=r"a\.ckpt is damaged, or not a file of torch\.save: \w"):
        read_torch_file(tmp_path / "a.ckpt")


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x89PNG\r\n\x1a\n" + bytes(50), pickle.dumps([1, 2])])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.ckpt"):
        read_torch_file(tmp_path / "a.ckpt")


def test_a_torchscript_archive_is_named_as_such(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("model/data.pkl", b".")
        archive.writestr("model/constants.pkl", b".")
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_torch_file(tmp_path / "a.pt")


def test_a_file_without_weights_is_not_a_lightning_checkpoint(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="it has no state_dict"):
        read_lightning(tmp_path / "a.pt")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="'a' is not a tensor"):
        read_lightning(tmp_path / "b.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt"):
        read_torch_file(tmp_path / "nowhere.ckpt")


def test_the_reader_knows_every_instruction_it_claims_to_know() -> None:
    from medgen.foreign.pickles import _LITERALS

    assert {opcode.name for opcode in pickletools.opcodes} >= _LITERALS


def test_a_pickle_that_refers_to_nothing_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"h\x69.")  # entry 105 of an empty memo
    with pytest.raises(CheckpointError, match=r"not a file of torch\.save: its pickle cannot be followed \(KeyError\)"):
        read_torch_file(tmp_path / "a.ckpt")
