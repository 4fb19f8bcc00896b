"""Checkpoints of other projects, read as data: tensors and plain values, without running anything the file names.

``torch.save`` files are pickles, and a pickle is a program: loading one the usual way imports and calls whatever it
names. ``torch.load(weights_only=True)`` refuses files whose hyper-parameters name classes, which Lightning checkpoints
do. So the pickle is interpreted here, opcode by opcode: it can build containers, numbers, text and tensors, and a name
it mentions becomes a `GlobalName`. Nothing is imported; a call of anything outside a short table is refused.

Tensors are views of the memory-mapped file, so optimiser states and whatever else is not used are never read.
"""

import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeAlias

import numpy as np
import torch
from torch import Tensor

from medgen.checkpoint import CheckpointError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a file from torch < 1.6
_LEGACY_PROTOCOL = 1001


class UnsafeFileError(CheckpointError):
    """A file that would run code when loaded the usual way; nothing of it was run. The message names the call."""


@dataclass(frozen=True)
class GlobalName:
    """A class or function that a file mentions; it was not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Record:
    """An object of a class that was not imported.

    Attributes:
        kind: The name of its class.
        args: What the class would have been given.
        state: Its attributes.
    """

    kind: GlobalName
    args: tuple[object, ...] = ()
    state: object = None


@dataclass(frozen=True, kw_only=True)
class LightningFile:
    """The parts of a Lightning checkpoint that describe a model.

    Attributes:
        state_dict: Tensors by name, views of the mapped file.
        hyper_parameters: What the module was built with; classes are `GlobalName`.
        version: The Lightning version that wrote the file.
        global_step: Optimiser steps so far.
        publishable: Whether the generator in it is whole, see `medgen.training.GenerativeModule`; True where the file
            does not say.
    """

    state_dict: dict[str, Tensor]
    hyper_parameters: dict[str, object]
    version: str
    global_step: int
    publishable: bool


def read_lightning(path: str | Path) -> LightningFile:
    """The weights and hyper-parameters of a Lightning ``.ckpt`` file.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, or not from Lightning.
        UnsafeFileError: If loading it the usual way would run code.
    """
    content = read_torch_file(path)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(f"{path} is not a Lightning checkpoint: it has no state_dict")
    state = content["state_dict"]
    strangers = [name for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if strangers:
        raise CheckpointError(
            f"{path} is not a Lightning checkpoint: state_dict entry {strangers[0]!r} is not a tensor"
        )
    hyper_parameters, step = content.get("hyper_parameters", {}), content.get("global_step", 0)
    return LightningFile(
        state_dict=state,
        hyper_parameters=hyper_parameters if isinstance(hyper_parameters, dict) else {},
        version=str(content.get("pytorch-lightning_version", "")),
        global_step=step if isinstance(step, int) else 0,
        publishable=content.get("publishable", True) is True,
    )


def read_torch_file(path: str | Path) -> object:
    """The content of a file written by ``torch.save``, of any age, as plain containers, values and tensors.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, or not from ``torch.save``.
        UnsafeFileError: If loading it the usual way would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file {path}")
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        if path.open("rb").read(4) == b"PK\x03\x04":
            raise CheckpointError("a zip file that is cut off; fetch it again")
        return _read_legacy(path)
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
        MemoryError,  # a damaged length that is taken at its word; it has no message
        struct.error,
        zipfile.BadZipFile,
        OSError,
    ) as error:
        # A failed look-up says no more than what was looked up, and some errors say nothing.
        reason = "" if isinstance(error, LookupError) else str(error)
        reason = reason or f"its pickle cannot be followed ({type(error).__name__})"
        raise CheckpointError(f"{path} is damaged, or not a file of torch.save: {reason}") from error


def _read_zip(path: Path) -> object:
    content = np.memmap(path, mode="c")  # copy on write: tensors may be changed, the file never is
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise CheckpointError("a zip file, but not from torch.save: it has no data.pkl")
        root = roots[0]
        if f"{root}constants.pkl" in members:
            raise CheckpointError("a TorchScript archive; save the state_dict of the model with torch.save instead")

    def record(name: str) -> tuple[int, int]:
        info = members[root + name]
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"the record {name} is compressed, which torch.save never does")
        # The local header has its own name and padding: 30 fixed bytes, the two lengths at 26 and 28.
        name_length, extra_length = struct.unpack("<HH", content[info.header_offset + 26 :][:4].tobytes())
        start = info.header_offset + 30 + name_length + extra_length
        if start + info.file_size > content.size:
            raise CheckpointError(f"the record {name} ends beyond the end of the file")
        return start, info.file_size

    def raw(name: str) -> bytes:
        start, size = record(name)
        return content[start : start + size].tobytes()

    if f"{root}byteorder" in members and raw("byteorder") != b"little":
        raise CheckpointError("written on a big-endian machine; save it again on a little-endian one")

    def storage(key: str, dtype: torch.dtype, numel: int) -> Tensor:
        start, size = record(f"data/{key}")
        if size != numel * dtype.itemsize:
            raise CheckpointError(f"the record data/{key} has {size} bytes in place of {numel * dtype.itemsize}")
        return _mapped(content, start, dtype, numel)

    return _Interpreter(storage).run(pickletools.genops(raw("data.pkl")))


def _read_legacy(path: Path) -> object:
    """Files from torch < 1.6: magic number, version, machine, the object, storage keys, then the storages in turn."""
    with path.open("rb") as file:
        if _next_pickle(file) != _LEGACY_MAGIC or _next_pickle(file) != _LEGACY_PROTOCOL:
            raise CheckpointError("not a file of torch.save")
        machine = _next_pickle(file)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise CheckpointError("written on a big-endian machine; save it again on a little-endian one")
        begin = file.tell()
        sizes: dict[str, tuple[torch.dtype, int]] = {}

        def note(key: str, dtype: torch.dtype, numel: int) -> Tensor:
            sizes[key] = dtype, numel
            return torch.empty(numel, dtype=dtype, device="meta")

        # The storages follow the pickle that needs them: a first pass finds their sizes, a second one builds.
        _Interpreter(note).run(pickletools.genops(file))
        keys = _next_pickle(file)
        content = np.memmap(path, mode="c")
        position = file.tell()
        storages: dict[str, Tensor] = {}
        for key in keys if isinstance(keys, list) else []:
            dtype, numel = sizes[key]
            (stated,) = struct.unpack("<q", content[position : position + 8].tobytes())
            position += 8 + numel * dtype.itemsize
            if stated != numel or position > content.size:
                raise CheckpointError(f"the storage {key} is cut off, or has {stated} values in place of {numel}")
            storages[key] = _mapped(content, position - numel * dtype.itemsize, dtype, numel)
        file.seek(begin)
        return _Interpreter(lambda key, dtype, numel: storages[key]).run(pickletools.genops(file))


def _next_pickle(file: BinaryIO) -> object:
    def refuse(key: str, dtype: torch.dtype, numel: int) -> Tensor:
        raise CheckpointError("not a file of torch.save")

    return _Interpreter(refuse).run(pickletools.genops(file))


def _mapped(content: "np.memmap[tuple[int], np.dtype[np.uint8]]", start: int, dtype: torch.dtype, numel: int) -> Tensor:
    """A one-dimensional tensor over bytes of the file; copied where they are not aligned."""
    if numel == 0:
        return torch.empty(0, dtype=dtype)
    chunk = np.asarray(content[start : start + numel * dtype.itemsize])
    if chunk.ctypes.data % dtype.itemsize:
        chunk = chunk.copy()
    return torch.from_numpy(chunk).view(dtype)


_Storage: TypeAlias = Callable[[str, torch.dtype, int], Tensor]
_Opcodes: TypeAlias = Iterable[tuple[pickletools.OpcodeInfo, object, int | None]]

# Instructions that put their argument on the stack: numbers, text and bytes.
_LITERALS = (
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
)

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def _mapping(items: Iterable[tuple[object, object]] = ()) -> dict[object, object]:
    return dict(items)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    return storage.as_strided(size, stride, offset)  # refuses what reaches beyond the storage


def _dtype(code: str, *_: object) -> np.dtype[np.generic]:
    if not re.fullmatch(r"[biuf][1248]", code):
        raise CheckpointError(f"numpy values of type {code!r} are not read")
    return np.dtype(f"<{code}")


def _scalar(dtype: np.dtype[np.generic], content: bytes) -> object:
    return np.frombuffer(content, dtype, count=1)[0].item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # how pickle protocol 2 writes bytes
        raise CheckpointError(f"text encoded as {encoding!r}")
    return text.encode(encoding)


# What a file may call, by name: constructors of plain values. Everything else it names stays a name.
_CALLS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": _mapping,
    "collections.Counter": lambda counts: dict(counts),
    "collections.defaultdict": lambda *_: {},
    "builtins.set": lambda items=(): set(items),
    "__builtin__.set": lambda items=(): set(items),
    "pathlib.PosixPath": lambda *parts: str(PurePosixPath(*parts)),
    "pathlib._local.PosixPath": lambda *parts: str(PurePosixPath(*parts)),
    "torch.Size": lambda size: tuple(size),
    "torch.device": lambda *device: ":".join(map(str, device)),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "_codecs.encode": _encode,
}


@dataclass
class _Interpreter:
    """Runs the opcodes of one pickle on a stack of plain values.

    Source: the opcodes are documented in Python's ``pickletools``.
    """

    storage: _Storage
    stack: list[object] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[object, object] = field(default_factory=dict)

    def run(self, opcodes: _Opcodes) -> object:
        """The value that the pickle builds."""
        for opcode, argument, _ in opcodes:
            if opcode.name == "STOP":
                break
            self.step(opcode.name, argument)
        return self.stack.pop()

    def step(self, name: str, argument: object) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_SET" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}[name]())
            case "MARK":
                self.marks.append(len(stack))
            case "DICT":
                items = self.above_mark()
                stack.append(dict(zip(items[::2], items[1::2], strict=True)))
            case "LIST":
                stack.append(self.above_mark())
            case "TUPLE":
                stack.append(tuple(self.above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND" | "APPENDS" | "ADDITEMS" | "SETITEM" | "SETITEMS":
                self.fill(name)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(GlobalName(*str(argument).split(" ", 1)))
            case "STACK_GLOBAL":
                stack[-2:] = [GlobalName(*map(str, stack[-2:]))]
            case "REDUCE":
                function, arguments = stack[-2:]
                stack[-2:] = [self.call(function, arguments)]
            case "NEWOBJ":
                kind, arguments = stack[-2:]
                stack[-2:] = [self.instance(kind, arguments)]
            case "BUILD":
                self.set_state(stack.pop())
            case "BINPERSID":
                stack.append(self.resolve(stack.pop()))
            case "INST":  # the argument is "module name"
                raise UnsafeFileError(f"the file calls {str(argument).replace(' ', '.')} when loaded; nothing was run")
            case "OBJ":
                raise UnsafeFileError(f"the file calls {self.above_mark()[0]} when loaded; nothing was run")
            case _ if name in _LITERALS:
                stack.append(argument)
            case _:  # among them the extension registry, which hides names behind numbers
                raise UnsafeFileError(f"the pickle instruction {name} has no place in a file of torch.save")

    def above_mark(self) -> list[object]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def fill(self, name: str) -> None:
        count = {"APPEND": 1, "SETITEM": 2}.get(name)
        items = self.above_mark() if count is None else [self.stack.pop() for _ in range(count)][::-1]
        target = self.stack[-1]
        if name.startswith("SETITEM") and isinstance(target, dict):
            target.update(zip(items[::2], items[1::2], strict=True))
        elif name.startswith("APPEND") and isinstance(target, list):
            target.extend(items)
        elif name == "ADDITEMS" and isinstance(target, set):
            target.update(items)
        else:
            raise CheckpointError(f"{name} on {target!r}")

    def call(self, function: object, arguments: object) -> object:
        allowed = _CALLS.get(str(function)) if isinstance(function, GlobalName) else None
        if allowed is None:
            raise UnsafeFileError(f"the file calls {function} when loaded; nothing was run")
        if not isinstance(arguments, tuple):
            raise CheckpointError(f"{function} is called with {arguments!r}")
        return allowed(*arguments)

    def instance(self, kind: object, arguments: object) -> object:
        if not isinstance(kind, GlobalName) or not isinstance(arguments, tuple):
            raise CheckpointError(f"an object of {kind!r} with {arguments!r}")
        return _CALLS[str(kind)](*arguments) if str(kind) in _CALLS else Record(kind, arguments)

    def set_state(self, state: object) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif isinstance(target, np.dtype) and isinstance(state, tuple):
            if state[1] == ">":
                raise CheckpointError("numpy values in big-endian order are not read")
        elif not isinstance(target, dict):  # a state_dict has its _metadata as an attribute, which nobody needs
            raise UnsafeFileError(f"the file changes {target} when loaded; nothing was run")

    def resolve(self, reference: object) -> object:
        match reference:
            case ("module", GlobalName() as kind, *_):  # torch < 1.6 kept the source of a class beside its name
                return kind
            case ("storage", GlobalName(module="torch" | "torch.cuda", name=name), str(key), _, int(numel), *view):
                if name in _STORAGES and numel >= 0 and not any(view):
                    return self.storage(key, _STORAGES[name], numel)
        raise CheckpointError(f"a reference to {str(reference)[:80]}, which is not a storage that torch.save writes")
