"""A folder of numbered pictures and a table: resumable, shareable between processes, never mixed with another run."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from medgen.checkpoint import sha256_of
from medgen.data.cache import content_key
from medgen.images import from_uint8, image_grid, save_png

RUN_FILE = "run.json"
TABLE_FILE = "samples.csv"
MASK_FOLDER = "masks"


class RunFolder:
    """The folder of one run.

    Args:
        path: The folder; made when the first picture is written.
        request: What makes two runs the same run, as JSON values.

    Raises:
        FileExistsError: If the folder holds another run or other PNG files.
    """

    def __init__(self, path: str | Path, request: Mapping[str, object]) -> None:
        self.path = Path(path)
        self.request = dict(request)
        self._is_claimed()

    def pending(self, n: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> list[range]:
        """Numbers of the pictures that this process has to make, in runs of neighbours of at most a batch."""
        return [
            chunk
            for b, start in enumerate(range(0, n, batch_size))
            if b % world_size == rank
            for chunk in self._missing(range(start, min(start + batch_size, n)))
        ]

    def _missing(self, indices: range) -> Iterator[range]:
        start: int | None = None
        for index in indices:
            exists = (self.path / numbered(index)).exists()
            if not exists and start is None:
                start = index
            if exists and start is not None:
                yield range(start, index)
                start = None
        if start is not None:
            yield range(start, indices.stop)

    def _is_claimed(self) -> bool:
        """Whether the folder is this run's already; refused where it is another's."""
        run_file = self.path / RUN_FILE
        images = sorted(path.name for path in self.path.glob("*.png"))  # first: another process may be starting, too
        if not run_file.exists():
            if images:
                raise FileExistsError(
                    f"out folder {self.path} holds images of unknown origin ({images[0]}, ...); choose an empty one"
                )
            return False
        present = json.loads(run_file.read_text())
        differ = [
            f"{k} {present.get(k)!r} there, {v!r} asked for" for k, v in self.request.items() if present.get(k) != v
        ]
        if differ:
            raise FileExistsError(
                f"out folder {self.path} holds another run: {'; '.join(differ)}; choose another folder"
            )
        return True

    def claim(self) -> None:
        """Make the folder this run's, unless it is already."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._is_claimed():
            self._write_text(RUN_FILE, json.dumps(self.request, indent=2) + "\n")

    def write(self, name: str, picture: Tensor | Image.Image, text: Mapping[str, str]) -> None:
        """Write one picture with its provenance, whole or not at all."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        with full_disk_explained(path):
            save_png(picture, path, {"SyntheticData": "YES", "Software": "medgen", **text})

    def write_table(self, n: int, columns: Sequence[str], row: Callable[[int], Sequence[object]]) -> Path:
        """Write the table once all pictures are there; one of a longer run stays.

        Args:
            n: Number of pictures.
            columns: Names of the columns.
            row: The row of a picture by its number.

        Returns:
            Where the table is or will be: whichever process sees the last picture writes it.
        """
        table = self.path / TABLE_FILE
        existing = sum(1 for _ in table.open()) - 1 if table.exists() else 0
        if existing < n and all((self.path / numbered(i)).exists() for i in range(n)):
            text = io.StringIO()
            writer = csv.writer(text)
            writer.writerow(columns)
            writer.writerows(row(i) for i in range(n))
            self._write_text(TABLE_FILE, text.getvalue())
        return table

    def _write_text(self, name: str, text: str) -> None:
        """Write a text file, whole or not at all; several processes may write the same."""
        path = self.path / name
        partial = path.with_name(f"{name}.{os.getpid()}.part")
        try:
            with full_disk_explained(path):
                partial.write_text(text, newline="")
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def numbered(index: int) -> str:
    """The name of a picture by its number."""
    return f"{index:06d}.png"


def content_of(path: str | Path) -> str:
    """Hash of a file, or of the names and contents of those in a folder; empty if it is neither."""
    place = Path(path)
    try:
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        found = [(file.name, sha256_of(file)) for file in files if file.is_file()]
    except OSError:  # a name that no file can have
        return ""
    return content_key(found) if found else ""


@contextmanager
def full_disk_explained(path: Path) -> Iterator[None]:
    """Say of a full disk which file was not written, and how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            message = f"the disk is full: {path} was not written; free some space and run the same command to go on"
            raise OSError(errno.ENOSPC, message) from error
        raise


def write_grid(table: Path, *, columns: int = 8) -> Path:
    """A contact sheet ``grid.png`` of a finished run, each image with its label under it."""
    with table.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    images = torch.stack([from_uint8(pil_to_tensor(Image.open(table.parent / row["file"]))) for row in rows])
    path = table.parent / "grid.png"
    labels, scale = [row["label"] for row in rows], max(1, 128 // images.shape[-1])
    save_png(image_grid(images, columns=min(columns, len(rows)), captions=labels, scale=scale), path)
    return path
