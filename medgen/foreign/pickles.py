"""Safe interpreter of pickles from other programs.

Unpickling imports and calls whatever a pickle names. This interpreter follows the opcodes itself: a pickle can build
containers, numbers, text and tensors, and names become `GlobalName`. Nothing is imported, and calls outside a short
table are refused.
"""

import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeAlias

import numpy as np
import torch
from torch import Tensor

from medgen.checkpoint import CheckpointError


class UnsafeFileError(CheckpointError):
    """A file that would run code when unpickled; the message names the call. Nothing was run."""


@dataclass(frozen=True)
class GlobalName:
    """A class or function that a file names; it was not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Record:
    """An object of a class that was not imported.

    Attributes:
        kind: Name of the class.
        args: Arguments of the class.
        state: Attributes.
    """

    kind: GlobalName
    args: tuple[object, ...] = ()
    state: object = None


Storage: TypeAlias = Callable[[str, torch.dtype, int], Tensor]

# Instructions that push their argument on the stack: numbers, text and bytes
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


Calls: TypeAlias = Mapping[str, Callable[..., object]]

PLAIN_CALLS: Calls = {
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
"""Calls that a file may make, by name: constructors of plain values."""


def _no_storage(key: str, dtype: torch.dtype, numel: int) -> Tensor:
    raise UnsafeFileError(f"the pickle refers to {key!r} outside of itself; nothing was run")


@dataclass
class Interpreter:
    """Interpreter of one pickle on a stack of plain values.

    Attributes:
        storage: Maps key, type and length of a storage reference to its numbers; by default references are refused.
        calls: Allowed calls, by name.
        strict: Whether to refuse names outside `calls`. Otherwise they stay names, and objects of such classes become
            records.

    Source: the opcodes are documented in Python's ``pickletools``.
    """

    storage: Storage = _no_storage
    calls: Calls = field(default_factory=lambda: PLAIN_CALLS)
    strict: bool = False
    stack: list[object] = field(default_factory=list, init=False)
    marks: list[int] = field(default_factory=list, init=False)
    memo: dict[object, object] = field(default_factory=dict, init=False)

    def run(self, source: BinaryIO | bytes) -> object:
        """Build the value of a pickle; a file is read up to the end of the pickle."""
        for opcode, argument, _ in pickletools.genops(source):
            if opcode.name == "STOP":
                break
            self._step(opcode.name, argument)
        return self.stack.pop()

    def _step(self, name: str, argument: object) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_SET" | "EMPTY_TUPLE":
                stack.append({"DICT": dict, "LIST": list, "SET": set, "TUPLE": tuple}[name.removeprefix("EMPTY_")]())
            case "MARK":
                self.marks.append(len(stack))
            case "DICT":
                items = self._above_mark()
                stack.append(dict(zip(items[::2], items[1::2], strict=True)))
            case "LIST":
                stack.append(self._above_mark())
            case "TUPLE":
                stack.append(tuple(self._above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND" | "APPENDS" | "ADDITEMS" | "SETITEM" | "SETITEMS":
                self._fill(name)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":  # the argument is "module name"
                stack.append(self._name(*str(argument).split(" ", 1)))
            case "STACK_GLOBAL":
                stack[-2:] = [self._name(*map(str, stack[-2:]))]
            case "REDUCE":
                function, arguments = stack[-2:]
                stack[-2:] = [self._call(function, arguments)]
            case "NEWOBJ":
                kind, arguments = stack[-2:]
                stack[-2:] = [self._instance(kind, arguments)]
            case "BUILD":
                self._set_state(stack.pop())
            case "BINPERSID":
                stack.append(self._resolve(stack.pop()))
            case "INST":
                raise UnsafeFileError(f"the file calls {str(argument).replace(' ', '.')} when loaded; nothing was run")
            case "OBJ":
                raise UnsafeFileError(f"the file calls {_shown(self._above_mark()[0])} when loaded; nothing was run")
            case _ if name in _LITERALS:
                stack.append(argument)
            case _:  # among them the extension registry, which hides names behind numbers
                raise UnsafeFileError(f"the pickle instruction {name} has no place in a file of weights")

    def _name(self, module: str, name: str) -> GlobalName:
        found = GlobalName(module, name)
        if self.strict and str(found) not in self.calls and _storage_type(found) is None:
            raise UnsafeFileError(f"the file names {found}, which such files have no use for; nothing was run")
        return found

    def _above_mark(self) -> list[object]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _fill(self, name: str) -> None:
        count = {"APPEND": 1, "SETITEM": 2}.get(name)
        items = self._above_mark() if count is None else [self.stack.pop() for _ in range(count)][::-1]
        target = self.stack[-1]
        if name.startswith("SETITEM") and isinstance(target, dict):
            target.update(zip(items[::2], items[1::2], strict=True))
        elif name.startswith("APPEND") and isinstance(target, list):
            target.extend(items)
        elif name == "ADDITEMS" and isinstance(target, set):
            target.update(items)
        else:
            raise CheckpointError(f"{name} on {_shown(target)}")

    def _call(self, function: object, arguments: object) -> object:
        allowed = self.calls.get(str(function)) if isinstance(function, GlobalName) else None
        if allowed is None:
            raise UnsafeFileError(f"the file calls {_shown(function)} when loaded; nothing was run")
        if not isinstance(arguments, tuple):
            raise CheckpointError(f"{function} is called with {_shown(arguments)}")
        return allowed(*arguments)

    def _instance(self, kind: object, arguments: object) -> object:
        if not isinstance(kind, GlobalName) or not isinstance(arguments, tuple):
            raise CheckpointError(f"an object of {_shown(kind)} with {_shown(arguments)}")
        if str(kind) in self.calls:
            return self.calls[str(kind)](*arguments)
        return Record(kind, arguments)

    def _set_state(self, state: object) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif isinstance(target, np.dtype) and isinstance(state, tuple):
            if state[1] == ">":
                raise CheckpointError("numpy values in big-endian order are not read")
        elif not isinstance(target, dict):  # the _metadata of a state_dict is not needed
            raise UnsafeFileError(f"the file changes {_shown(target)} when loaded; nothing was run")

    def _resolve(self, reference: object) -> object:
        match reference:
            case ("module", GlobalName() as kind, *_):  # torch < 1.6 kept the source of a class beside its name
                return kind
            case ("storage", GlobalName() as kind, str(key), _, int(numel), *view):
                dtype = _storage_type(kind)
                if dtype is not None and numel >= 0 and not any(view):
                    return self.storage(key, dtype, numel)
        raise CheckpointError(f"a reference to {_shown(reference)}, which is not a storage that torch.save writes")


def _shown(value: object) -> str:
    """Name or type of a value for an error message; the value itself may be huge."""
    return str(value) if isinstance(value, GlobalName) else f"a value of type {type(value).__name__}"


def _storage_type(name: GlobalName) -> torch.dtype | None:
    return _STORAGES.get(name.name) if name.module in ("torch", "torch.cuda") else None


_WRONG_VALUES = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError)
_DAMAGED = (*_WRONG_VALUES, struct.error, zipfile.BadZipFile, OSError, MemoryError)  # the last one by damaged lengths


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn the errors of reading a damaged file into one that names the file and the expected kind of file.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged; an `UnsafeFileError` stays one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file {path}")
    try:
        yield
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error
    except _DAMAGED as error:
        # Messages of look-ups hold the key alone, and those of other errors may be empty.
        reason = "" if isinstance(error, LookupError) else str(error)
        reason = reason or f"its pickle cannot be followed ({type(error).__name__})"
        raise CheckpointError(f"{path} is damaged, or not {kind}: {reason}") from error
