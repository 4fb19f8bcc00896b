"""Files of a data set by relative name, whether they lie in a folder or in a zip archive."""

from __future__ import annotations

import lzma
import os
import struct
import zipfile
import zlib
from pathlib import Path

# What a damaged archive can raise; RuntimeError is also encryption and, as NotImplementedError, unknown methods.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
)


class FileRoot:
    """Read-only view of a folder, of a zip archive, or of a folder inside one.

    A zip is opened once per process: worker processes that were forked must not share a file position.

    Args:
        path: ``scans``, ``scans.zip`` or ``scans.zip/train``.

    Raises:
        FileNotFoundError: If neither a folder nor an archive is there.
        ValueError: If the archive is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._home = self.path.resolve()
        self.archive: Path | None = None
        self._prefix = ""
        self._handle: tuple[int, zipfile.ZipFile] | None = None
        if self.path.is_dir():
            return
        archive = next((part for part in (self.path, *self.path.parents) if part.is_file()), None)
        if archive is None:
            raise FileNotFoundError(f"root {self.path} is neither a folder nor a zip archive")
        self.archive = archive
        inner = self.path.relative_to(archive).as_posix()
        self._prefix = "" if inner == "." else f"{inner}/"
        self._zip()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_handle": None}

    def _zip(self) -> zipfile.ZipFile:
        assert self.archive is not None  # only called for archives
        if self._handle is None or self._handle[0] != os.getpid():
            try:
                self._handle = (os.getpid(), zipfile.ZipFile(self.archive))
            except _UNREADABLE as error:
                raise ValueError(f"{self.archive} is not a readable zip archive: {error}") from error
        return self._handle[1]

    def locate(self, name: str) -> str:
        """The full path of a file, as error messages name it."""
        return str(self.path / name)

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the archive holds it damaged or encrypted.
        """
        if self.archive is None:
            return (self.path / name).read_bytes()
        try:
            return self._zip().read(self._prefix + Path(name).as_posix())
        except KeyError:
            raise FileNotFoundError(f"{self.locate(name)} does not exist") from None
        except _UNREADABLE as error:
            raise ValueError(f"{self.locate(name)} cannot be unpacked: {error}") from error

    def identity(self, name: str) -> str | None:
        """What tells two versions of a file apart without reading it; ``None`` if there is no such file.

        Checksum and size inside an archive. In a folder: where it lies, its size, and the times of its last change, of
        which programs that copy files set one (mtime) back, but none the other (ctime).
        """
        if self.archive is None:
            try:
                status = (self.path / name).stat()
            except OSError:
                return None
            return f"{self._home}-{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"
        try:
            member = self._zip().getinfo(self._prefix + Path(name).as_posix())
        except KeyError:
            return None
        return f"{member.file_size}-{member.CRC:08x}"

    def names(self) -> list[str]:
        """All files below the root, sorted, as relative names with forward slashes.

        Without hidden ones (``.name``), and without the ``__MACOSX`` that macOS adds to the zips it makes.
        """
        found: list[str] = []
        if self.archive is not None:
            inside = (name for name in self._zip().namelist() if name.startswith(self._prefix))
            found += [name[len(self._prefix) :] for name in inside if not name.endswith("/")]
        else:
            for folder, _, files in os.walk(self.path, followlinks=True):
                base = Path(folder).relative_to(self.path)
                found += [(base / file).as_posix() for file in files]
        return sorted(name for name in found if not any(_is_clutter(part) for part in name.split("/")))


def _is_clutter(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file, which may lie inside a zip archive: ``scans.zip/images/a.png``."""
    path = Path(path)
    if path.is_file():
        return path.read_bytes()
    try:
        root = FileRoot(path.parent)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    return root.read(path.name)
