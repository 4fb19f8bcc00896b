"""Real images as batches: readers, tables, splits, caches and the named data sets."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medgen.data.augmentation import Augmentation
    from medgen.data.base import ImageDataModule
    from medgen.data.batch import Batch
    from medgen.data.chestxray14 import ChestXray14DataModule
    from medgen.data.chexpert import CheXpertDataModule
    from medgen.data.raw_image import IntensityWindow, RawImage
    from medgen.data.readers import read_image, read_mask
    from medgen.data.table import TableDataModule

DATASETS: dict[str, str] = {
    "table": "medgen.data.table.TableDataModule",
    "chexpert": "medgen.data.chexpert.CheXpertDataModule",
    "chestxray14": "medgen.data.chestxray14.ChestXray14DataModule",
}
"""Class of each data set, imported when used, so that listing them needs no torch."""

_HOME = {
    "Augmentation": "medgen.data.augmentation",
    "Batch": "medgen.data.batch",
    "CheXpertDataModule": "medgen.data.chexpert",
    "ChestXray14DataModule": "medgen.data.chestxray14",
    "ImageDataModule": "medgen.data.base",
    "IntensityWindow": "medgen.data.raw_image",
    "RawImage": "medgen.data.raw_image",
    "read_image": "medgen.data.readers",
    "read_mask": "medgen.data.readers",
    "TableDataModule": "medgen.data.table",
}

__all__ = [
    "DATASETS",
    "Augmentation",
    "Batch",
    "CheXpertDataModule",
    "ChestXray14DataModule",
    "ImageDataModule",
    "IntensityWindow",
    "RawImage",
    "TableDataModule",
    "read_image",
    "read_mask",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'medgen.data' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
