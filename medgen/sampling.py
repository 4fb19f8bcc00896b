"""Long sampling runs into a folder: numbered PNGs and a table; resumable, shareable between processes, never mixed."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from medgen.checkpoint import sha256_of
from medgen.data.cache import content_key
from medgen.generator import Generator, Precision, check_precision
from medgen.images import from_uint8, image_grid, save_png
from medgen.noise import whole_number

RUN_FILE = "run.json"
TABLE_FILE = "samples.csv"
MASK_FOLDER = "masks"
COLUMNS = ("file", "label", "seed", "index", "checkpoint", "revision")


@dataclass(frozen=True, kw_only=True)
class SamplingRun:
    """What makes two sampling runs the same run; ``n`` is not part of it, so that a run can be made longer.

    Attributes:
        seed: Seed of the run.
        labels: Labels that the images take in turn (image i gets ``labels[i % len(labels)]``); empty for no condition.
        precision: See `Generator.sample`.
        options: Options of the family, such as ``steps``.
    """

    seed: int
    labels: tuple[str, ...] = ()
    precision: Precision = "float32"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole_number("seed", self.seed))

    def label_of(self, index: int) -> str | None:
        """Label of image ``index``."""
        return self.labels[index % len(self.labels)] if self.labels else None


def sample_to_folder(
    generator: Generator,
    n: int,
    folder: str | Path,
    run: SamplingRun,
    *,
    batch_size: int = 16,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> Path:
    """Write images 0 to n-1 of a run; those that are there already are kept.

    Several processes may share the work: batch b belongs to process ``b % world_size``. They need no connection, since
    every image has its own random stream and whoever sees the last file writes the table.

    Args:
        generator: What samples.
        n: Number of images.
        folder: Folder of the run; made if missing.
        run: Seed, labels and options.
        batch_size: Images drawn together.
        rank: Number of this process.
        world_size: Number of processes.
        progress: Whether to show a progress bar.

    Returns:
        The table, ``samples.csv``, with the columns of `COLUMNS`. Generators of label maps write these, too, as PNGs of
        class numbers in ``masks``, which the further column ``mask`` names.

    Raises:
        ValueError: If an argument is out of range or unknown to the model.
        FileExistsError: If the folder holds another run or other PNG files.
        OSError: If the disk is full; the same call goes on where it stopped.
    """
    if n < 1:
        raise ValueError(f"n is {n}; ask for at least one image")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; use at least 1")
    check_precision(run.precision)
    generator.check_options(run.options)
    names = [_display_name(generator, run.label_of(i)) for i in range(len(run.labels) or 1)]
    target = Path(folder)
    request = _request(generator, run, names)
    _refuse_others(target, request)
    pending = [
        chunk
        for b, chunk in enumerate(_grid(n, batch_size))
        if b % world_size == rank
        for chunk in _missing(target, chunk)
    ]
    with tqdm(total=sum(map(len, pending)), unit="image", disable=not progress or rank > 0) as bar:
        for indices in pending:
            labels = labels_per_image(generator, [x for i in indices if (x := run.label_of(i)) is not None])
            images = generator.sample(
                len(indices),
                labels,
                seed=run.seed,
                first_index=indices[0],
                batch_size=batch_size,
                precision=run.precision,
                **run.options,
            )
            masks = generator.masks_for(len(indices), labels, seed=run.seed, first_index=indices[0], **run.options)
            if indices is pending[0]:  # not before: options that the sampler refuses must not occupy the folder
                _claim(target, request)
            if masks is not None:
                (target / MASK_FOLDER).mkdir(exist_ok=True)
            for place, (index, image) in enumerate(zip(indices, images, strict=True)):
                text = {"SyntheticData": "YES", "Software": "medgen", "seed": str(run.seed), "index": str(index)}
                text |= {"label": names[index % len(names)]}
                text |= {"checkpoint": generator.source, "revision": generator.revision}
                path = target / _file(index)
                with _full_disk_explained(path):
                    if masks is not None:  # before the image, whose presence says that all is done
                        mask = Image.fromarray(masks[place].numpy().astype(np.uint8))
                        save_png(mask, target / MASK_FOLDER / _file(index), text)
                    save_png(image, path, text)
                bar.update()
    table = target / TABLE_FILE
    if all((target / _file(i)).exists() for i in range(n)):
        _write_table(table, generator, run, names, n)
    return table


def _display_name(generator: Generator, label: str | None) -> str:
    """The label as the table shows it; also refuses unknown labels before anything is written."""
    space = generator.label_space
    condition = space.resolve(labels_per_image(generator, [label] if label is not None else []), 1)
    return space.describe(condition, 1)[0]


def labels_per_image(generator: Generator, labels: Sequence[str]) -> Any:
    """Labels as `Generator.sample` takes them; findings or numbers of one image are joined by ``|``."""
    if not labels:
        return None
    kind = generator.label_space.kind
    if kind == "multi":
        return [[part for part in label.split("|") if part] for label in labels]
    if kind == "continuous":
        return [label.split("|") for label in labels]
    return list(labels)


def _file(index: int) -> str:
    return f"{index:06d}.png"


def _grid(n: int, batch_size: int) -> Iterator[range]:
    for start in range(0, n, batch_size):
        yield range(start, min(start + batch_size, n))


def _missing(folder: Path, indices: range) -> Iterator[range]:
    """The gaps in a batch, each a run of neighbouring indices."""
    start: int | None = None
    for index in indices:
        exists = (folder / _file(index)).exists()
        if not exists and start is None:
            start = index
        if exists and start is not None:
            yield range(start, index)
            start = None
    if start is not None:
        yield range(start, indices.stop)


def _request(generator: Generator, run: SamplingRun, names: Sequence[str]) -> dict[str, object]:
    # A class has many spellings, and all are the same run; numbers stay as typed, since tables round them.
    labels = run.labels if generator.label_space.kind == "continuous" else names if run.labels else ()
    request: dict[str, object] = {
        "checkpoint": generator.source,
        "revision": generator.revision,
        "seed": run.seed,
        "labels": list(labels),
        "precision": run.precision,
        "options": {name: value for name, value in run.options.items() if name != "progress"},  # changes no image
    }
    # What files hold is part of the run, too; a folder's images take its files in turn.
    files = {name: _content(value) for name, value in run.options.items() if isinstance(value, str | Path)}
    return request | ({"files": known} if (known := {name: text for name, text in files.items() if text}) else {})


def _content(path: str | Path) -> str:
    """Hash of a file, or of the names and contents of those in a folder; empty if it is neither."""
    place = Path(path)
    try:
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        found = [(file.name, sha256_of(file)) for file in files if file.is_file()]
    except OSError:  # a name that no file can have
        return ""
    return content_key(found) if found else ""


def _refuse_others(folder: Path, request: dict[str, object]) -> bool:
    """Make sure that the folder is empty or already this run's; whether it is this run's."""
    run_file = folder / RUN_FILE
    images = sorted(path.name for path in folder.glob("*.png"))  # before the next line: another process may start too
    if not run_file.exists():
        if images:
            raise FileExistsError(
                f"out folder {folder} holds images of unknown origin ({images[0]}, ...); choose an empty one"
            )
        return False
    present = json.loads(run_file.read_text())
    differ = [f"{k} {present.get(k)!r} there, {v!r} asked for" for k, v in request.items() if present.get(k) != v]
    if differ:
        raise FileExistsError(f"out folder {folder} holds another run: {'; '.join(differ)}; choose another folder")
    return True


def _claim(folder: Path, request: dict[str, object]) -> None:
    """Make the folder this run's, unless it is already."""
    folder.mkdir(parents=True, exist_ok=True)
    if not _refuse_others(folder, request):
        _write_text(folder / RUN_FILE, json.dumps(request, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; several processes may write the same."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with _full_disk_explained(path):
            partial.write_text(text, newline="")
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _full_disk_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            message = f"the disk is full: {path} was not written; free some space and run the same command to go on"
            raise OSError(errno.ENOSPC, message) from error
        raise


def _write_table(table: Path, generator: Generator, run: SamplingRun, names: Sequence[str], n: int) -> None:
    existing = sum(1 for _ in table.open()) - 1 if table.exists() else 0
    if existing >= n:  # a longer run was asked for before
        return
    masks = (table.parent / MASK_FOLDER).is_dir()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow((*COLUMNS, "mask") if masks else COLUMNS)
    for i in range(n):
        row = (_file(i), names[i % len(names)], run.seed, i, generator.source, generator.revision)
        writer.writerow((*row, f"{MASK_FOLDER}/{_file(i)}") if masks else row)
    _write_text(table, text.getvalue())


def write_grid(table: Path, *, columns: int = 8) -> Path:
    """A contact sheet ``grid.png`` of a finished run, each image with its label under it."""
    with table.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    images = torch.stack([from_uint8(pil_to_tensor(Image.open(table.parent / row["file"]))) for row in rows])
    path = table.parent / "grid.png"
    labels, scale = [row["label"] for row in rows], max(1, 128 // images.shape[-1])
    save_png(image_grid(images, columns=min(columns, len(rows)), captions=labels, scale=scale), path)
    return path
