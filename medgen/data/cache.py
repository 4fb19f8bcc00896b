"""Arrays on disk, built once and memory-mapped by all workers, ranks and later runs.

A cache is a folder named after the hash of everything its content depends on. It is built under a lock, beside its
final place, and renamed when complete: readers see a whole cache or none, also after a crash or on a full disk.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import DTypeLike, NDArray

logger = logging.getLogger(__name__)

Fill: TypeAlias = Callable[[NDArray[np.generic]], None]

_DATA = "data.npy"


def default_cache_folder() -> Path:
    """``MEDGEN_CACHE`` if set, else the user's cache folder on this platform."""
    if chosen := os.environ.get("MEDGEN_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "medgen"


def content_key(*parts: object) -> str:
    """Hash of JSON values, 32 hexadecimal digits, equal on every machine."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class ArrayCache:
    """Read-only array of a finished cache folder; pickled as its path, so that workers map the file again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        mapped = np.load(folder / _DATA, mmap_mode="r", allow_pickle=False)
        self.array: NDArray[np.generic] = mapped.view(np.ndarray)

    def __reduce__(self) -> tuple[type[ArrayCache], tuple[Path]]:
        return type(self), (self.folder,)

    def __len__(self) -> int:
        return len(self.array)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        """Copies of the given rows, (len(rows), ...)."""
        return np.take(self.array, rows, axis=0)


def open_or_build(
    key: str, shape: tuple[int, ...], dtype: DTypeLike, fill: Fill, *, folder: str | Path | None = None
) -> ArrayCache:
    """Open the cache of a key; build it if it does not exist.

    Of several processes that call this at once, one builds and the others wait.

    Args:
        key: Hash of everything the content depends on, as `content_key` makes it.
        shape: Shape of the array, such as (N, C, H, W) for images or (N, variants, C, h, w) for latents.
        dtype: Type of its values.
        fill: Writes the values into the array it is given, in any order and from any threads.
        folder: Folder of all caches; by default `default_cache_folder`.

    Raises:
        OSError: If the disk is too full, before ``fill`` is called.
        ValueError: If the cache of this key has another shape or type.
    """
    home = Path(folder) if folder is not None else default_cache_folder()
    target = home / key
    if not target.exists():
        home.mkdir(parents=True, exist_ok=True)
        with _exclusive(home / f"{key}.lock"):
            if not target.exists():  # built by another process meanwhile
                _build(home, key, shape, np.dtype(dtype), fill)
    cache = ArrayCache(target)
    if cache.array.shape != shape or cache.array.dtype != np.dtype(dtype):
        raise ValueError(
            f"cache {target} holds {cache.array.dtype} {cache.array.shape}, not {np.dtype(dtype)} {shape}; delete it"
        )
    return cache


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    # The operating system frees the lock when its holder dies.
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process to build %s", path.with_suffix(""))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(home: Path, key: str, shape: tuple[int, ...], dtype: np.dtype[np.generic], fill: Fill) -> None:
    for stale in home.glob(f"{key}.building-*"):  # left by a killed process
        shutil.rmtree(stale, ignore_errors=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{key}.building-", dir=home))
    try:
        array = np.lib.format.open_memmap(unfinished / _DATA, mode="w+", dtype=dtype, shape=shape)
        _reserve(unfinished / _DATA)
        fill(array)
        array.flush()
        del array
        with (unfinished / _DATA).open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.chmod(0o755)  # mkdtemp's folders are private, a shared cache is not
        unfinished.rename(home / key)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize / 1e6
            raise OSError(
                error.errno,
                f"the cache needs {size:.0f} MB in {home}, which is too full; free some or set MEDGEN_CACHE",
            ) from error
        raise


def _reserve(path: Path) -> None:
    """Allocate the file: on a full disk, writing to unallocated mapped memory would kill the process."""
    size = path.stat().st_size
    with path.open("rb+") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        file.seek(0)
        header = file.read(4096)
        file.seek(0)
        file.write(header)
        for start in range(len(header), size, 1 << 20):
            file.write(bytes(min(1 << 20, size - start)))
