"""Safe reader of ``torch.save`` files.

``torch.load(weights_only=True)`` refuses files that name classes, as the hyper-parameters of Lightning checkpoints do;
`medgen.foreign.pickles` does not. Tensors are views of the memory-mapped file, so unused ones are never read.
"""

import io
import re
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import torch
from torch import Tensor

from medgen.checkpoint import CheckpointError
from medgen.foreign.pickles import PLAIN_CALLS, Calls, Interpreter, reading

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a file from torch < 1.6
_LEGACY_PROTOCOL = 1001

_Content: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.uint8]]"


def read_torch_file(path: str | Path) -> object:
    """Read a file written by ``torch.save``, of any torch version, as plain containers, values and tensors.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, or not from ``torch.save``.
        UnsafeFileError: If loading it the usual way would run code.
    """
    path = Path(path)
    with reading(path, "a file of torch.save"), path.open("rb") as file:
        return _read(file, np.memmap(path, mode="c"))  # copy on write: tensors may be changed, the file never is


def read_torch_bytes(content: bytes, calls: Calls) -> object:
    """Read bytes written by ``torch.save``, which are copied; names outside `calls` are refused.

    Raises:
        CheckpointError: If the bytes are damaged, or not from ``torch.save``.
        UnsafeFileError: If they name anything else.
    """
    return _read(io.BytesIO(content), np.frombuffer(bytearray(content), dtype=np.uint8), calls, strict=True)


def is_torch_file(path: Path) -> bool:
    """Whether a file starts like one of ``torch.save``, of any torch version."""
    with path.open("rb") as file:
        head = file.read(32)
    return head.startswith(b"PK") or _LEGACY_MAGIC.to_bytes(10, "little") in head


def _read(file: BinaryIO, content: _Content, calls: Calls = PLAIN_CALLS, *, strict: bool = False) -> object:
    if zipfile.is_zipfile(file):
        return _read_zip(file, content, calls, strict)
    if content[:4].tobytes() == b"PK\x03\x04":
        raise CheckpointError("a zip file that is cut off; fetch it again")
    file.seek(0)
    return _read_legacy(file, content, calls, strict)


def _read_zip(file: BinaryIO, content: _Content, calls: Calls, strict: bool) -> object:
    with zipfile.ZipFile(file) as archive:
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

    return Interpreter(storage, calls, strict).run(raw("data.pkl"))


def _read_legacy(file: BinaryIO, content: _Content, calls: Calls, strict: bool) -> object:
    """Read a file from torch < 1.6: magic number, version, machine, object, storage keys, then the storages."""
    if [_next_pickle(file, calls, strict) for _ in range(2)] != [_LEGACY_MAGIC, _LEGACY_PROTOCOL]:
        raise CheckpointError("not a file of torch.save")
    machine = _next_pickle(file, calls, strict)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise CheckpointError("written on a big-endian machine; save it again on a little-endian one")
    begin = file.tell()
    sizes: dict[str, tuple[torch.dtype, int]] = {}

    def note(key: str, dtype: torch.dtype, numel: int) -> Tensor:
        sizes[key] = dtype, numel
        return torch.empty(numel, dtype=dtype, device="meta")

    # Storages follow the pickle that refers to them: a first pass finds their sizes, a second one builds the object.
    Interpreter(note, calls, strict).run(file)
    keys = _next_pickle(file, calls, strict)
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
    return Interpreter(lambda key, dtype, numel: storages[key], calls, strict).run(file)


def _next_pickle(file: BinaryIO, calls: Calls, strict: bool) -> object:
    def refuse(key: str, dtype: torch.dtype, numel: int) -> Tensor:
        raise CheckpointError("not a file of torch.save")

    return Interpreter(refuse, calls, strict).run(file)


def _mapped(content: _Content, start: int, dtype: torch.dtype, numel: int) -> Tensor:
    """A one-dimensional tensor over bytes of the file; a copy if they are not aligned."""
    if numel == 0:
        return torch.empty(0, dtype=dtype)
    chunk = np.asarray(content[start : start + numel * dtype.itemsize])
    if chunk.ctypes.data % dtype.itemsize:
        chunk = chunk.copy()
    return torch.from_numpy(chunk).view(dtype)
