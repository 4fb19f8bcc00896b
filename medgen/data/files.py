"""Files of a data set by relative name, in a folder or a zip archive."""

from __future__ import annotations

import lzma
import os
import struct
import zipfile
import zlib
from pathlib import Path

# Errors of damaged archives; RuntimeError also of encryption and unknown methods.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError, RuntimeError, ValueError)


class FileRoot:
    """Read-only view of a folder, a zip archive, or a folder inside one.

    Each process opens the archive itself, since forked processes would share its file position.

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
        assert self.archive is not None
        if self._handle is None or self._handle[0] != os.getpid():
            try:
                self._handle = (os.getpid(), zipfile.ZipFile(self.archive))
            except _DAMAGED as error:
                raise ValueError(f"{self.archive} is not a readable zip archive: {error}") from error
        return self._handle[1]

    def locate(self, name: str) -> str:
        """Full path of a file for messages."""
        return str(self.path / name)

    def read(self, name: str) -> bytes:
        """Read one file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged or encrypted in the archive.
        """
        if self.archive is None:
            return (self.path / name).read_bytes()
        try:
            return self._zip().read(self._prefix + Path(name).as_posix())
        except KeyError:
            raise FileNotFoundError(f"{self.locate(name)} does not exist") from None
        except _DAMAGED as error:
            raise ValueError(f"{self.locate(name)} cannot be unpacked: {error}") from error

    def identity(self, name: str) -> str | None:
        """Identity of a file's content without reading it; ``None`` if there is no such file.

        In an archive: size and checksum. In a folder: place, size, mtime, and ctime, which copying does not set back.
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
        """All files below the root, sorted, with forward slashes; without hidden ones and ``__MACOSX``."""
        if self.archive is not None:
            inside = (name for name in self._zip().namelist() if name.startswith(self._prefix))
            found = [name[len(self._prefix) :] for name in inside if not name.endswith("/")]
        else:
            found = []
            for folder, _, files in os.walk(self.path, followlinks=True):
                base = Path(folder).relative_to(self.path)
                found += [(base / file).as_posix() for file in files]
        return sorted(name for name in found if not any(p[:1] == "." or p == "__MACOSX" for p in name.split("/")))


def read_bytes(path: str | Path) -> bytes:
    """Read a file, which may lie inside a zip archive: ``scans.zip/images/a.png``."""
    path = Path(path)
    if path.is_file():
        return path.read_bytes()
    try:
        root = FileRoot(path.parent)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    return root.read(path.name)
