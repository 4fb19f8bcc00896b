"""Sampling into a folder of numbered PNGs with a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medgen.generator import Generator, Precision, check_precision
from medgen.noise import whole_number
from medgen.renamed import current_arguments
from medgen.run_folder import MASK_FOLDER, RunFolder, content_of, numbered

COLUMNS = ("file", "label", "seed", "index", "checkpoint", "revision")


@dataclass(frozen=True, kw_only=True)
class SamplingRun:
    """Settings that identify a sampling run; without ``n``, so that a run can be made longer.

    Attributes:
        seed: Seed of the run.
        labels: Labels that images get in turn (image i gets ``labels[i % len(labels)]``); empty for no condition.
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
    """Write images 0 to n-1 of a run that do not exist yet.

    Several processes may share the work, without a connection: batch b belongs to process ``b % world_size``, every
    image has its own random stream, and the process that makes the last image writes the table.

    Returns:
        The table, ``samples.csv``, with the columns of `COLUMNS`. Label maps of generators that make them are written
        as PNGs of class numbers to ``masks`` and named in a further column ``mask``.

    Raises:
        ValueError: If an argument is out of range or unknown to the model.
        FileExistsError: If the folder holds another run or other PNG files.
        OSError: If the disk is full; the same call resumes.
    """
    if n < 1:
        raise ValueError(f"n is {n}; ask for at least one image")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; use at least 1")
    check_precision(run.precision)
    run = replace(run, options=current_arguments(run.options, generator.renamed_options))
    generator.check_options(run.options)
    names = [_display_name(generator, run.label_of(i)) for i in range(len(run.labels) or 1)]
    target = RunFolder(folder, _request(generator, run, names), renamed=generator.renamed_options)
    for indices in target.batches(n, batch_size, rank=rank, world_size=world_size, progress=progress):
        labels = labels_per_image(generator, [x for i in indices if (x := run.label_of(i)) is not None])
        stream = {"seed": run.seed, "first_index": indices[0]}
        images = generator.sample(
            len(indices), labels, batch_size=batch_size, precision=run.precision, **stream, **run.options
        )
        masks = generator.masks_for(len(indices), labels, **stream, **run.options)
        target.claim()  # not before: options that the sampler refuses must not occupy the folder
        for place, (index, image) in enumerate(zip(indices, images, strict=True)):
            text = {"seed": str(run.seed), "index": str(index), "label": names[index % len(names)]}
            text |= {"checkpoint": generator.source, "revision": generator.revision}
            if masks is not None:  # before the image, which marks the index as done
                mask = Image.fromarray(masks[place].numpy().astype(np.uint8))
                target.write(f"{MASK_FOLDER}/{numbered(index)}", mask, text)
            target.write(numbered(index), image, text)
    masked = (target.path / MASK_FOLDER).is_dir()

    def row(i: int) -> tuple[object, ...]:
        own = (numbered(i), names[i % len(names)], run.seed, i, generator.source, generator.revision)
        return (*own, f"{MASK_FOLDER}/{numbered(i)}") if masked else own

    return target.write_table(n, (*COLUMNS, "mask") if masked else COLUMNS, row)


def _display_name(generator: Generator, label: str | None) -> str:
    """Text of a label in the table; ValueError if the label is unknown."""
    space = generator.label_space
    condition = space.resolve(labels_per_image(generator, [label] if label is not None else []), 1)
    return space.describe(condition, 1)[0]


def labels_per_image(generator: Generator, labels: Sequence[str]) -> Any:
    """Labels for `Generator.sample`, from texts in which ``|`` joins the findings or numbers of an image."""
    if not labels:
        return None
    kind = generator.label_space.kind
    if kind == "multi":
        return [[part for part in label.split("|") if part] for label in labels]
    if kind == "continuous":
        return [label.split("|") for label in labels]
    return list(labels)


def _request(generator: Generator, run: SamplingRun, names: Sequence[str]) -> dict[str, object]:
    # All spellings of a class are the same run; numbers stay as typed, since tables round them.
    labels = run.labels if generator.label_space.kind == "continuous" else names if run.labels else ()
    request: dict[str, object] = {
        "checkpoint": generator.source,
        "revision": generator.revision,
        "seed": run.seed,
        "labels": list(labels),
        "precision": run.precision,
        "options": {name: value for name, value in run.options.items() if name != "progress"},  # changes no image
    }
    # The contents of files named by options identify the run, too.
    files = {name: content_of(value) for name, value in run.options.items() if isinstance(value, str | Path)}
    return request | ({"files": known} if (known := {name: text for name, text in files.items() if text}) else {})
