"""The images of a split as tensors: whole batches gathered from the cache, or decoded when asked for."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from medgen.data.augmentation import Augmentation
from medgen.data.image_table import ImageTable
from medgen.data.preprocessing import Preprocessing, resized_mask
from medgen.data.readers import RawImage, looks_like_mask
from medgen.data.sampling import Key, keys_to_arrays


class Batch(TypedDict, total=False):
    """What every loader yields.

    Attributes:
        image: (B, C, H, W) float32 in [0, 1].
        label: (B,) int64 class, -1 for unknown; or (B, K) float32 findings or conditions, NaN for unknown. Left out
            where the data set has no labels.
        mask: (B, H, W) int64 class numbers. Left out where the data set has no masks.
        index: (B,) int64 position in the split: the lasting identity of an image.
    """

    image: Tensor
    label: Tensor
    mask: Tensor
    index: Tensor


class RowSource(Protocol):
    """Pixels by row of the table: an `ArrayCache`, or files decoded anew each time."""

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        """Pixels of these rows, in this order."""


class Decoder:
    """Decodes rows when they are asked for: images, or with `num_classes` their label maps.

    Args:
        table: What there is.
        preprocessing: What files become.
        num_classes: Classes of the label maps.
        images: What decodes the images, with which label maps are compared.
    """

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
        self._sizes = np.zeros((len(table.images), 2), dtype=np.int32)  # of images in their files; 0 is not read yet

    def row(self, row: int) -> NDArray[np.generic]:
        """Pixels (C, H, W) of one image, or classes (H, W) of one mask."""
        table = self.table
        if self.num_classes is None:
            return self.preprocessing.image(self._read(row), table.root.locate(table.images[row]), self.depth)
        assert table.masks is not None  # both are given for tables with masks
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
        """Height and width of one image in its file; costs nothing where it was decoded before."""
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
        """Stop where label maps were given as images.

        Decided over several images, since one dark picture can look like a mask.

        Raises:
            ValueError: If all of up to 16 images, evenly spread over the table, look like label maps.
        """
        table = self.table
        rows = np.unique(np.linspace(0, len(table.images) - 1, 16).astype(int)).tolist()
        if all(looks_like_mask(self._read(row)) for row in rows):
            raise ValueError(
                f"{table.root.locate(table.images[0])} and the other images looked at hold only a few distinct whole "
                "numbers: they are masks, not images; give them as masks, and the pictures as images"
            )

    def fill(self, array: NDArray[np.generic]) -> None:
        """Decode all rows into an array, with a few threads (decoders release the interpreter lock)."""
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


class ImageDataset(Dataset[Batch]):
    """The images of one split.

    ``dataset[7]`` is the image as it is in the file; ``dataset[(3, 7)]`` is the same image as training sees it in epoch
    3, augmented. Whole batches are gathered at once by ``__getitems__``, which `torch.utils.data` calls.

    Attributes:
        with_images: Whether batches hold images and masks; without, only labels and indices.
    """

    def __init__(
        self,
        *,
        images: RowSource,
        rows: NDArray[np.int64],
        labels: Tensor | None,
        masks: RowSource | None,
        augmentation: Augmentation | None,
        seed: int,
    ) -> None:
        self.images = images
        self.rows = rows
        self.labels = labels
        self.masks = masks
        self.augmentation = augmentation
        self.seed = seed
        self.with_images = True

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
        """The batch of these keys."""
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
