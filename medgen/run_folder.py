"""Folder of a run: numbered pictures and a table, resumable, shared by processes, never mixed with another run."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from medgen.checkpoint import sha256_of
from medgen.data.cache import content_key
from medgen.images import from_uint8, image_grid, save_png

RUN_FILE = "run.json"
TABLE_FILE = "samples.csv"
MASK_FOLDER = "masks"


class RunFolder:
    """The folder of one run.

    Args:
        path: The folder; created with the first picture.
        request: Settings that identify the run, as JSON values.
        renamed: Options by the names that folders of an older medgen have.

    Raises:
        FileExistsError: If the folder holds another run or other PNG files.
    """

    def __init__(
        self, path: str | Path, request: Mapping[str, object], *, renamed: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.path = Path(path)
        self.renamed = renamed
        self.request = dict(request)
        self._claimed = False
        self._is_claimed()

    def batches(self, n: int, batch_size: int, *, rank: int, world_size: int, progress: bool) -> Iterator[range]:
        """Numbers of the pictures that this process has to make, in batches of neighbours, with a progress bar.

        Batch b belongs to process ``b % world_size``.
        """
        starts = range(rank * batch_size, n, world_size * batch_size)
        pending = [chunk for start in starts for chunk in self._missing(range(start, min(start + batch_size, n)))]
        with tqdm(total=sum(map(len, pending)), unit="image", disable=not progress or rank > 0) as bar:
            for indices in pending:
                yield indices
                bar.update(len(indices))

    def _missing(self, indices: range) -> list[range]:
        """Runs of neighbours without a picture."""
        runs: list[range] = []
        for index in indices:
            if not (self.path / numbered(index)).exists():
                first = runs.pop().start if runs and runs[-1].stop == index else index
                runs.append(range(first, index + 1))
        return runs

    def _is_claimed(self) -> bool:
        """Whether the folder belongs to this run already; FileExistsError if it belongs to another."""
        run_file = self.path / RUN_FILE
        # Look for images before run.json, since another process may be starting.
        images = sorted(path.name for path in self.path.glob("*.png"))
        if not run_file.exists():
            if images:
                raise FileExistsError(
                    f"out folder {self.path} holds images of unknown origin ({images[0]}, ...); choose an empty one"
                )
            return False
        present = json.loads(run_file.read_text())
        if isinstance(options := present.get("options"), dict):
            present["options"] = {self.renamed.get(name, name): value for name, value in options.items()}
        differ = [
            f"{k} {present.get(k)!r} there, {v!r} asked for" for k, v in self.request.items() if present.get(k) != v
        ]
        if differ:
            raise FileExistsError(
                f"out folder {self.path} holds another run: {'; '.join(differ)}; choose another folder"
            )
        return True

    def claim(self) -> None:
        """Create the folder for this run, unless it exists."""
        if self._claimed:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._is_claimed():
            self._write_text(RUN_FILE, json.dumps(self.request, indent=2) + "\n")
        self._claimed = True

    def write(self, name: str, picture: Tensor | Image.Image, text: Mapping[str, str]) -> None:
        """Write one picture with its provenance, atomically."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        with full_disk_explained(path):
            save_png(picture, path, {"SyntheticData": "YES", "Software": "medgen", **text})

    def write_table(self, n: int, columns: Sequence[str], row: Callable[[int], Sequence[object]]) -> Path:
        """Write the table of n pictures if all exist, unless it has more rows already; returns its path.

        So the process that makes the last picture writes it. ``row`` gives the row of a picture by its number.
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
        """Write a text file atomically; several processes may write the same."""
        path = self.path / name
        partial = path.with_name(f"{name}.{os.getpid()}.part")
        try:
            with full_disk_explained(path):
                partial.write_text(text, newline="")
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def numbered(index: int) -> str:
    """File name of a picture by its number."""
    return f"{index:06d}.png"


def content_of(path: str | Path) -> str:
    """Hash of a file, or of the names and contents of the files in a folder; empty if it is neither."""
    place = Path(path)
    try:
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        found = [(file.name, sha256_of(file)) for file in files if file.is_file()]
    except OSError:  # not a possible file name
        return ""
    return content_key(found) if found else ""


@contextmanager
def full_disk_explained(path: Path) -> Iterator[None]:
    """Name the file that a full disk kept from being written, and the way to go on."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            message = f"the disk is full: {path} was not written; free some space and run the same command to go on"
            raise OSError(errno.ENOSPC, message) from error
        raise


def write_grid(table: Path, *, columns: int = 8) -> Path:
    """Write a contact sheet ``grid.png`` of a finished run, with labels."""
    with table.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    images = torch.stack([from_uint8(pil_to_tensor(Image.open(table.parent / row["file"]))) for row in rows])
    path = table.parent / "grid.png"
    labels, scale = [row["label"] for row in rows], max(1, 128 // images.shape[-1])
    save_png(image_grid(images, columns=min(columns, len(rows)), captions=labels, scale=scale), path)
    return path
