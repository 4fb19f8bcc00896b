"""Table of a data set: files, labels, patients and splits, checked before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medgen.data.files import FileRoot
from medgen.labels import LabelSpace

Split: TypeAlias = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class ImageTable:
    """Files, labels, patients and splits of the images.

    Attributes:
        root: Folder or archive of the files.
        images: File name of each image below ``root``.
        splits: ``"train"``, ``"val"`` or ``"test"`` for each.
        label_space: Kind and names of the labels.
        labels: (n,) int64 or (n, K) float32 as in `Batch`, or ``None``.
        patients: Patient of each image, or ``None`` if not known; no patient may be in two splits.
        masks: File name of each label map, or ``None``.
        frames: Frame or slice number of each image, or ``None`` for files with one.
    """

    root: FileRoot
    images: list[str]
    splits: list[str]
    label_space: LabelSpace
    labels: Tensor | None = None
    patients: list[str] | None = None
    masks: list[str] | None = None
    frames: list[int] | None = None

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError(f"no image of {self.root.path} is left in the table; check the table and its filters")
        unknown = sorted(set(self.splits) - set(SPLITS))
        if unknown:
            raise ValueError(f"unknown splits {unknown}; use {', '.join(SPLITS)}")
        if self.patients is not None:
            homes: dict[str, set[str]] = {}
            for patient, split in zip(self.patients, self.splits, strict=True):
                homes.setdefault(patient, set()).add(split)
            mixed = [f"{patient} ({', '.join(sorted(where))})" for patient, where in homes.items() if len(where) > 1]
            if mixed:
                raise ValueError(
                    f"{len(mixed)} patients are in more than one split: {'; '.join(mixed[:5])}; a patient's images "
                    "must stay together, or a model is judged on patients it has seen"
                )

    def rows(self, split: str) -> NDArray[np.int64]:
        """Rows of a split; ValueError if it is empty."""
        rows = np.flatnonzero(np.asarray(self.splits) == split)
        if not len(rows):
            sizes = ", ".join(f"{name} {self.splits.count(name)}" for name in SPLITS)
            raise ValueError(f"split {split!r} is empty; images per split: {sizes}")
        return rows

    def frame(self, row: int) -> int | None:
        """Frame of one image, ``None`` for files with one."""
        return None if self.frames is None else self.frames[row]

    def identities(self) -> list[str]:
        """Identities of all files, images then masks.

        Raises:
            FileNotFoundError: If files are missing.
        """
        names = self.images + (self.masks or [])
        known = {name: self.root.identity(name) for name in names}
        missing = [name for name, identity in known.items() if identity is None]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(known)} files are missing below {self.root.path}: {', '.join(missing[:5])}"
                f"{', ...' if len(missing) > 5 else ''}"
            )
        return [f"{name}:{known[name]}" for name in names]
