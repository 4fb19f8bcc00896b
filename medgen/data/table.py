"""Data sets of the user: a CSV file with a folder or zip of images, or folders named after classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

import torch

from medgen.data.base import SPLITS, ImageDataModule
from medgen.data.columns import (
    Columns,
    LabelPolicy,
    Labels,
    class_labels,
    continuous_labels,
    finding_labels,
    listed_labels,
)
from medgen.data.files import FileRoot, read_bytes
from medgen.data.image_table import ImageTable
from medgen.data.readers import SUFFIXES
from medgen.data.splits import split_by_patient
from medgen.labels import LabelSpace

_SPELLINGS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
_SPLIT_NAMES = {spelling: split for split, spellings in _SPELLINGS.items() for spelling in spellings}


class TableDataModule(ImageDataModule):
    """Images listed in a CSV file, or sorted into class folders.

    Without ``csv``, ``root`` holds ``<class>/...`` or ``<split>/<class>/...`` folders, or images only.

    Args:
        root: Folder or zip archive of the images, or a folder in an archive (``images.zip/train``). By default the
            folder of the CSV.
        csv: The table, one row per image (or per slice).
        image_column: File of the image, relative to ``root``.
        label_column: One column of classes, or of findings listed with a separator; several columns of findings (1, 0,
            -1 for uncertain, empty) or of numbers.
        label_kind: By default ``"single"`` for one column, ``"multi"`` for several columns or with a separator;
            ``"continuous"`` for numbers such as an age. Networks get numbers as they are in the table: scale them to
            about -1 to 1 there, such as an age in centuries, and ask for samples in the same unit.
        label_names: Classes or findings in order; by default all that occur, sorted.
        label_separator: Separator of listed findings, such as ``"|"``.
        uncertain: Meaning of an uncertain finding (-1): ``"ones"``, ``"zeros"``, ``"ignore"`` (unknown) or ``"drop"``
            (the row is left out).
        blank: Meaning of an empty cell, as for ``uncertain``.
        patient_column: Patient of the image, who is in one split only. Without it every image counts as a patient.
        split_column: The split of the image (train, val or valid, test). Without it patients are split at random.
        split_fractions: Shares of train, val and test where there is no ``split_column``.
        split_seed: Chooses the split; ``seed`` does not change it.
        mask_column: File of the label map, relative to ``root``; needs ``mask_classes``.
        frame_column: Frame or slice number, for multi-frame DICOM, TIFF and NIfTI files.
        where: Only rows whose cell is among the given values: ``{"view": ["PA"], "label": ["Edema", "Fracture"]}``.
        **options: Everything `ImageDataModule` takes.
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        csv: str | None = None,
        image_column: str = "image",
        label_column: str | list[str] | None = None,
        label_kind: Literal["single", "multi", "continuous"] | None = None,
        label_names: list[str] | None = None,
        label_separator: str | None = None,
        uncertain: LabelPolicy = "ignore",
        blank: LabelPolicy = "ignore",
        patient_column: str | None = None,
        split_column: str | None = None,
        split_fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        mask_column: str | None = None,
        frame_column: str | None = None,
        where: dict[str, str | list[str]] | None = None,
        **options: object,
    ) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        if root is None and csv is None:
            raise ValueError("give csv (a table of images), root (a folder or zip archive of images), or both")
        if csv is None and any((label_column, patient_column, split_column, mask_column, frame_column, where)):
            raise ValueError("columns and where need a csv; without one, folder names give the classes")
        self.root = Path(root) if root is not None else Path(str(csv)).parent
        self.csv = csv
        self.image_column = image_column
        self.label_column = label_column
        self.label_kind = label_kind
        self.label_names = label_names
        self.label_separator = label_separator
        self.uncertain: LabelPolicy = uncertain
        self.blank: LabelPolicy = blank
        self.patient_column = patient_column
        self.split_column = split_column
        self.split_fractions = split_fractions
        self.split_seed = split_seed
        self.mask_column = mask_column
        self.frame_column = frame_column
        self.where: Mapping[str, str | list[str]] = where or {}

    def read_table(self) -> ImageTable:
        """List the images of the CSV file, or of the class folders."""
        return self._from_folders() if self.csv is None else self._from_csv(self.csv)

    def _from_csv(self, path: str) -> ImageTable:
        columns = Columns.parse(read_bytes(path), path).where(self.where)
        labels = self._labels(columns)
        if labels is not None:
            columns = columns.keep(labels.keep)
        values = None if labels is None else labels.values[torch.from_numpy(labels.keep)]
        patients = None if self.patient_column is None else columns[self.patient_column]
        if patients is not None and not all(patients):
            raise ValueError(
                f"{patients.count('')} rows of {path} have no {self.patient_column!r}; every image needs its patient"
            )
        images = columns[self.image_column]
        if self.split_column is not None:
            splits = _known_splits(columns, self.split_column)
        else:
            continuous = labels is not None and labels.space.kind == "continuous"
            splits = split_by_patient(
                patients if patients is not None else [str(row) for row in range(len(images))],
                None if continuous else values,
                fractions=self.split_fractions,
                seed=self.split_seed,
            )
        return ImageTable(
            root=FileRoot(self.root),
            images=images,
            splits=splits,
            label_space=LabelSpace() if labels is None else labels.space,
            labels=values,
            patients=patients,
            masks=None if self.mask_column is None else columns[self.mask_column],
            frames=None if self.frame_column is None else _frame_numbers(columns, self.frame_column),
        )

    def _labels(self, columns: Columns) -> Labels | None:
        column, kind, names = self.label_column, self.label_kind, self.label_names
        if not column:
            return None
        several = [column] if isinstance(column, str) else list(column)
        if kind == "continuous":
            return continuous_labels(columns, several, self.blank)
        if self.label_separator is not None:
            if len(several) > 1 or kind == "single":
                raise ValueError(
                    "label_separator goes with one label_column that lists findings, not with several or 'single'"
                )
            return listed_labels(columns, several[0], self.label_separator, names, self.blank)
        if isinstance(column, str) and kind != "multi":
            return class_labels(columns, column, names, self.uncertain, self.blank)
        if kind == "single":
            raise ValueError(f"label_kind 'single' needs one label_column, not {several}")
        if names is not None and list(names) != several:
            raise ValueError(
                f"label_names {names} differ from the columns of findings {several}; leave label_names out"
            )
        return finding_labels(columns, several, self.uncertain, self.blank)

    def _from_folders(self) -> ImageTable:
        root = FileRoot(self.root)
        images = [name for name in root.names() if name.lower().endswith(SUFFIXES)]
        if not images:
            raise ValueError(f"{self.root} holds no images; medgen reads {', '.join(SUFFIXES)}")
        folders = [PurePosixPath(name).parts[:-1] for name in images]
        given = all(parts and parts[0].lower() in _SPLIT_NAMES for parts in folders)
        splits = [_SPLIT_NAMES[parts[0].lower()] for parts in folders] if given else None
        classes = [parts[given] if len(parts) > given else "" for parts in folders]
        if any(classes) and not all(classes):
            loose = [name for name, found in zip(images, classes, strict=True) if not found]
            raise ValueError(f"{len(loose)} images of {self.root} are in no class folder: {', '.join(loose[:5])}")
        labels = None
        if any(classes):
            table = Columns(str(self.root), {"folder": classes})
            labels = class_labels(table, "folder", self.label_names, "ignore", "ignore")
        values = None if labels is None else labels.values
        return ImageTable(
            root=root,
            images=images,
            splits=splits or split_by_patient(images, values, fractions=self.split_fractions, seed=self.split_seed),
            label_space=LabelSpace() if labels is None else labels.space,
            labels=values,
        )


def _known_splits(columns: Columns, name: str) -> list[str]:
    cells = columns[name]
    unknown = sorted({cell for cell in cells if cell.lower() not in _SPLIT_NAMES})
    if unknown:
        raise ValueError(
            f"column {name!r} of {columns.path} holds the splits {unknown[:5]}; use {', '.join(SPLITS)} or valid"
        )
    return [_SPLIT_NAMES[cell.lower()] for cell in cells]


def _frame_numbers(columns: Columns, name: str) -> list[int]:
    cells = columns[name]
    wrong = [cell for cell in cells if not cell.isdigit()]
    if wrong:
        raise ValueError(f"column {name!r} of {columns.path} holds {wrong[0]!r}; frames and slices are numbers from 0")
    return [int(cell) for cell in cells]
