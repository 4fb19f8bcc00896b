"""Pickles of other programs, read as data, without running anything they name.

A pickle is a program: loading one the usual way imports and calls whatever it names. So pickles are interpreted here,
opcode by opcode: they can build containers, numbers, text and tensors, and a name they mention becomes a `GlobalName`.
Nothing is imported; a call of anything outside a short table is refused.
"""

import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from medgen.checkpoint import CheckpointError


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


Storage: TypeAlias = Callable[[str, torch.dtype, int], Tensor]
Opcodes: TypeAlias = Iterable[tuple[pickletools.OpcodeInfo, object, int | None]]

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
"""What a file may call, by name: constructors of plain values."""


def _no_storage(key: str, dtype: torch.dtype, numel: int) -> Tensor:
    raise UnsafeFileError(f"the pickle refers to {key!r} outside of itself; nothing was run")


@dataclass
class Interpreter:
    """Runs the opcodes of one pickle on a stack of plain values.

    Attributes:
        storage: The numbers that a reference stands for, of its key, type and length; by default there are none.
        calls: What the pickle may call, by name.
        strict: Whether names outside `calls` are refused where they are mentioned. Else they stay names, and objects of
            such classes become records.

    Source: the opcodes are documented in Python's ``pickletools``.
    """

    storage: Storage = _no_storage
    calls: Calls = field(default_factory=lambda: PLAIN_CALLS)
    strict: bool = False
    stack: list[object] = field(default_factory=list, init=False)
    marks: list[int] = field(default_factory=list, init=False)
    memo: dict[object, object] = field(default_factory=dict, init=False)

    def run(self, opcodes: Opcodes) -> object:
        """The value that the pickle builds."""
        for opcode, argument, _ in opcodes:
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
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}[name]())
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
            case "GLOBAL":
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
            case "INST":  # the argument is "module name"
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
        elif not isinstance(target, dict):  # a state_dict has its _metadata as an attribute, which nobody needs
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
    """What an error says of a value: no more than its type, as small files can stand for endless ones."""
    return str(value) if isinstance(value, GlobalName) else f"a value of type {type(value).__name__}"


def _storage_type(name: GlobalName) -> torch.dtype | None:
    return _STORAGES.get(name.name) if name.module in ("torch", "torch.cuda") else None


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turns whatever following a damaged file leads to into an error that names the file.

    Args:
        path: The file.
        kind: What it should be, such as "a file of torch.save".

    Raises:
        CheckpointError: If it is damaged; `UnsafeFileError` stays one.
    """
    try:
        yield
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
        raise CheckpointError(f"{path} is damaged, or not {kind}: {reason}") from error
