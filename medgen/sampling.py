"""Long sampling runs into a folder of numbered PNGs with a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from medgen.generator import Generator, Precision, check_precision
from medgen.noise import whole_number
from medgen.run_folder import MASK_FOLDER, RunFolder, content_of, numbered

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
    target = RunFolder(folder, _request(generator, run, names))
    pending = target.pending(n, batch_size, rank=rank, world_size=world_size)
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
                target.claim()
            for place, (index, image) in enumerate(zip(indices, images, strict=True)):
                text = {"seed": str(run.seed), "index": str(index), "label": names[index % len(names)]}
                text |= {"checkpoint": generator.source, "revision": generator.revision}
                if masks is not None:  # before the image, whose presence says that all is done
                    mask = Image.fromarray(masks[place].numpy().astype(np.uint8))
                    target.write(f"{MASK_FOLDER}/{numbered(index)}", mask, text)
                target.write(numbered(index), image, text)
                bar.update()
    masked = (target.path / MASK_FOLDER).is_dir()

    def row(i: int) -> tuple[object, ...]:
        own = (numbered(i), names[i % len(names)], run.seed, i, generator.source, generator.revision)
        return (*own, f"{MASK_FOLDER}/{numbered(i)}") if masked else own

    return target.write_table(n, (*COLUMNS, "mask") if masked else COLUMNS, row)


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
    files = {name: content_of(value) for name, value in run.options.items() if isinstance(value, str | Path)}
    return request | ({"files": known} if (known := {name: text for name, text in files.items() if text}) else {})
