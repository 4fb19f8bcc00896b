"""Data set of one split: batches gathered from the cache, or decoded on demand."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from medgen.data.augmentation import Augmentation
from medgen.data.batch import Batch
from medgen.data.image_table import ImageTable
from medgen.data.preprocessing import Preprocessing, resized_mask
from medgen.data.raw_image import RawImage
from medgen.data.readers import looks_like_mask
from medgen.data.sampling import Key, keys_to_arrays


class RowSource(Protocol):
    """Pixels by row of the table: an `ArrayCache` or a `Decoder`."""

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        """Pixels of these rows, in this order."""


class Decoder:
    """Decodes rows of a table on demand: images, or with `num_classes` label maps, which must fit those `images`."""

    def __init__(
        self,
        table: ImageTable,
        preprocessing: Preprocessing,
        num_classes: int | None = None,
        images: Decoder | None = None,
    ) -> None:
        self.table = table
        self.preprocessing = preprocessing
        self.num_classes = num_classes
        self.images = images
        self.depth = np.dtype(np.uint8) if num_classes else preprocessing.depth(table.images)
        self._sizes = np.zeros((len(table.images), 2), dtype=np.int32)  # height, width in the file; 0: unread

    def row(self, row: int) -> NDArray[np.generic]:
        """Pixels (C, H, W) of one image, or classes (H, W) of one mask."""
        table = self.table
        if self.num_classes is None:
            return self.preprocessing.image(self._read(row), table.root.locate(table.images[row]), self.depth)
        assert table.masks is not None
        assert self.images is not None
        mask = self.preprocessing.read_mask(table.root, table.masks[row], table.frame(row), self.num_classes)
        if mask.shape != (size := self.images.size(row)):
            path, image = (table.root.locate(names[row]) for names in (table.masks, table.images))
            raise ValueError(
                f"mask {path} has {mask.shape[0]} x {mask.shape[1]} pixels (height x width), but its image {image} has "
                f"{size[0]} x {size[1]}; a label map must have the pixels of its image: resample by nearest neighbour"
            )
        return resized_mask(mask, self.preprocessing.image_size, self.preprocessing.resize)

    def size(self, row: int) -> tuple[int, int]:
        """Height and width of one image in its file; the file is read only if it was not decoded before."""
        if not self._sizes[row].all():
            self._read(row)
        height, width = self._sizes[row].tolist()
        return height, width

    def _read(self, row: int) -> RawImage:
        raw = self.preprocessing.read_raw(self.table.root, self.table.images[row], self.table.frame(row))
        self._sizes[row] = raw.pixels.shape[:2]
        return raw

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        """Pixels of these rows, in this order."""
        return np.stack([self.row(int(row)) for row in rows])

    def refuse_masks(self) -> None:
        """Refuse a table whose images are label maps.

        Raises:
            ValueError: If up to 16 images, evenly spread over the table, all look like label maps.
        """
        table = self.table
        rows = np.unique(np.linspace(0, len(table.images) - 1, 16).astype(int)).tolist()
        if all(looks_like_mask(self._read(row)) for row in rows):
            raise ValueError(
                f"{table.root.locate(table.images[0])} and the other images looked at hold only a few distinct whole "
                "numbers: they are masks, not images; give them as masks, and the pictures as images"
            )

    def fill(self, array: NDArray[np.generic]) -> None:
        """Decode all rows into an array, in threads: decoders release the interpreter lock."""
        if self.num_classes is None:
            self.refuse_masks()

        def decode(row: int) -> None:
            array[row] = self.row(row)

        kind = "masks" if self.num_classes else "images"
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
            jobs = [pool.submit(decode, row) for row in range(len(array))]
            try:
                for job in tqdm(jobs, desc=f"decoding {kind} once", unit="img", leave=False, disable=len(jobs) < 1000):
                    job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


@dataclass(kw_only=True, eq=False, repr=False)
class ImageDataset(Dataset[Batch]):
    """The images of one split.

    ``dataset[7]`` is image 7 as it is in the file, ``dataset[(3, 7)]`` the same image augmented for epoch 3.
    `torch.utils.data` gathers whole batches with ``__getitems__``.

    Attributes:
        with_images: Whether batches hold images and masks, not only labels and indices.
    """

    images: RowSource
    rows: NDArray[np.int64]
    labels: Tensor | None
    masks: RowSource | None
    augmentation: Augmentation | None
    seed: int
    with_images: bool = True

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | Key) -> Batch:
        if not isinstance(key, tuple) and not 0 <= key < len(self):
            raise IndexError(f"index {key} is out of range for {len(self)} images")
        batch = self.__getitems__([key])
        item = Batch()
        for name in batch:
            item[name] = batch[name][0]  # type: ignore[literal-required]
        return item

    def __getitems__(self, keys: list[int] | list[Key] | list[int | Key]) -> Batch:
        """Gather the batch of these keys."""
        epochs, indices = keys_to_arrays(keys)
        batch = Batch(index=torch.from_numpy(indices))
        if self.labels is not None:
            batch["label"] = self.labels[batch["index"]]
        if not self.with_images:
            return batch
        rows = self.rows[indices]
        steps = self.images.take(rows)
        image = torch.from_numpy(steps).to(torch.float32).div_(float(np.iinfo(steps.dtype).max))  # type: ignore[type-var]
        mask = None if self.masks is None else torch.from_numpy(self.masks.take(rows)).to(torch.int64)
        if self.augmentation is not None and epochs is not None:
            image, mask = self.augmentation(image, mask, seed=self.seed, epochs=epochs, indices=indices)
        batch["image"] = image
        if mask is not None:
            batch["mask"] = mask
        return batch
