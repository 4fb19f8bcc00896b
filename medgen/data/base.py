"""Data modules: from a table of images to splits, cached pixels and resumable loaders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property, partial
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule

from medgen.data.augmentation import Augmentation
from medgen.data.batch import Batch
from medgen.data.cache import content_key, open_or_build
from medgen.data.dataset import Decoder, ImageDataset, RowSource
from medgen.data.image_table import SPLITS, ImageTable, Split
from medgen.data.preprocessing import Preprocessing, ResizePolicy
from medgen.data.raw_image import STORED, IntensityWindow, SliceAxis
from medgen.data.sampling import EpochLoader, EpochSampler, balanced_weights
from medgen.labels import LabelSpace

__all__ = ["SPLITS", "Batch", "ImageDataModule", "ImageDataset", "ImageTable", "Split"]


class ImageDataModule(LightningDataModule, ABC):
    """Splits, cache and loaders for a table of images; a data set is a subclass that reads its table.

    Args:
        image_size: Height and width in pixels, or one number for a square.
        channels: 1 for grey, 3 for colour.
        intensity_window: The values in the files that become 0 and 1.
        intensity_unit: Unit of the window: ``"stored value"`` (plain pixel numbers), ``"HU"``, ``"display value"``
            (with ``voi``), or ``"declared range"`` for fractions of the range that each file declares.
        resize: ``"crop"``, ``"pad"`` or ``"stretch"``; see `Preprocessing`.
        batch_size: Images per batch and process.
        num_workers: Worker processes per loader. 0 is fastest with a cache and no augmentation but flips.
        augment: Augmentation of training images; none by default.
        balanced: Draw every class equally often in training, with replacement.
        drop_last: Leave out training images that do not fill a batch; they differ between epochs.
        seed: Order and augmentation of training images.
        cache: Keep decoded images on disk; without it every file is decoded in every epoch.
        cache_folder: Folder of the cache; by default ``MEDGEN_CACHE`` or the user's cache folder.
        slice_axis: Plane of NIfTI slices.
        volume: Volume of 4-D NIfTI files.
        voi: Display window of DICOM files to apply; by default none, and values stay physical.
        mask_classes: Number of classes of the masks, for tables that have masks.

    Attributes:
        images_in_training: Whether training batches hold images; off for modules that use encoded ones by index.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        channels: int = 1,
        intensity_window: tuple[float, float] = (0.0, 255.0),
        intensity_unit: str = STORED,
        resize: ResizePolicy = "crop",
        batch_size: int = 32,
        num_workers: int = 0,
        augment: Augmentation | None = None,
        balanced: bool = False,
        drop_last: bool = True,
        seed: int = 0,
        cache: bool = True,
        cache_folder: str | None = None,
        slice_axis: SliceAxis = "axial",
        volume: int | None = None,
        voi: int | None = None,
        mask_classes: int | None = None,
    ) -> None:
        super().__init__()
        size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        if len(intensity_window) != 2:
            raise ValueError(f"intensity_window is {intensity_window}; give two numbers, low and high")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        if mask_classes is not None and not 2 <= mask_classes <= 256:
            raise ValueError(f"mask_classes is {mask_classes}; masks have 2 to 256 classes")
        self.preprocessing = Preprocessing(
            image_size=size,
            channels=channels,
            window=IntensityWindow(float(intensity_window[0]), float(intensity_window[1]), intensity_unit),
            resize=resize,
            axis=slice_axis,
            volume=volume,
            voi=voi,
        )
        self.image_size = size
        self.channels = channels
        self.intensity_window = (self.preprocessing.window.low, self.preprocessing.window.high)
        self.intensity_unit = intensity_unit
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.augment = augment
        self.balanced = balanced
        self.drop_last = drop_last
        self.seed = seed
        self.cache = cache
        self.cache_folder = Path(cache_folder) if cache_folder is not None else None
        self.mask_classes = mask_classes
        self.images_in_training = True

    @abstractmethod
    def read_table(self) -> ImageTable:
        """List the images; called once, on first use."""

    @cached_property
    def table(self) -> ImageTable:
        """The images with their labels and splits."""
        table = self.read_table()
        if (table.masks is None) != (self.mask_classes is None):
            found = "no masks" if table.masks is None else "masks"
            raise ValueError(
                f"mask_classes is {self.mask_classes}, but the table has {found}; give both the number of mask classes "
                "and where the masks are, or neither"
            )
        return table

    @property
    def label_space(self) -> LabelSpace:
        """Kind and names of the labels of a batch."""
        return self.table.label_space

    @property
    def unseen_labels(self) -> tuple[str, ...]:
        """Classes without a training image, or findings without a positive one."""
        space, labels = self.label_space, self.table.labels
        if labels is None or space.kind not in ("single", "multi"):
            return ()
        labels = labels[torch.from_numpy(self.table.rows("train"))]
        found = [labels == k if space.kind == "single" else labels[:, k] == 1 for k in range(len(space))]
        return tuple(name for name, images in zip(space.names, found, strict=True) if not images.any())

    def prepare_data(self) -> None:
        """Build the cache, unless it exists."""
        self._sources  # noqa: B018

    def dataset(self, split: Split) -> ImageDataset:
        """The images of one split.

        Raises:
            ValueError: If the split is empty.
            FileNotFoundError: If files are missing.
        """
        rows = self.table.rows(split)
        images, masks = self._sources
        return ImageDataset(
            images=images,
            rows=rows,
            labels=None if self.table.labels is None else self.table.labels[torch.from_numpy(rows)],
            masks=masks,
            augmentation=self.augment,
            seed=self.seed,
        )

    def fingerprint(self, split: Split) -> str:
        """Hash of everything that a split's images and labels depend on, as a key for caches."""
        table, rows = self.table, self.table.rows(split).tolist()
        identities = self._identities
        labels = None if table.labels is None else table.labels[rows].double().nan_to_num(-1.0).tolist()
        files = [identities[row] for row in rows]
        if table.masks is not None:
            files += [identities[len(table.images) + row] for row in rows]
        frames = [table.frame(row) for row in rows]
        return content_key(files, frames, labels, self.preprocessing.describe(), list(table.label_space.names))

    def train_dataloader(self) -> EpochLoader:
        """Shuffled, augmented batches.

        Raises:
            ValueError: If the split is empty or smaller than one batch, or cannot be balanced.
        """
        dataset = self.dataset("train")
        dataset.with_images = self.images_in_training
        weights = None
        if self.balanced:
            if dataset.labels is None or self.label_space.kind not in ("single", "multi"):
                raise ValueError("balanced=True needs classes or findings as labels; this data set has none")
            if unseen := self.unseen_labels:
                raise ValueError(
                    f"balanced=True, but there is no training image of {', '.join(map(repr, unseen))}; leave them out "
                    "of the labels, give images of them, or set balanced to false"
                )
            weights = balanced_weights(dataset.labels)
        sampler = EpochSampler(
            dataset, shuffle=True, seed=self.seed, batch_size=self.batch_size, weights=weights, drop_last=self.drop_last
        )
        if not len(sampler):
            raise ValueError(
                f"the train split has {len(dataset)} images, fewer than one batch of {self.batch_size} for each of "
                f"{sampler.num_replicas} processes; lower batch_size or set drop_last to false"
            )
        return self._loader(dataset, sampler)

    def val_dataloader(self) -> EpochLoader:
        """Batches of the val split in the order of the table, not augmented."""
        return self._plain_loader("val")

    def test_dataloader(self) -> EpochLoader:
        """Batches of the test split in the order of the table, not augmented."""
        return self._plain_loader("test")

    def _plain_loader(self, split: Split) -> EpochLoader:
        dataset = self.dataset(split)
        dataset.augmentation = None
        return self._loader(dataset, EpochSampler(dataset, shuffle=False, seed=self.seed, batch_size=self.batch_size))

    def _loader(self, dataset: ImageDataset, sampler: EpochSampler) -> EpochLoader:
        return EpochLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_already_a_batch,
            persistent_workers=self.num_workers > 0,
        )

    @cached_property
    def _identities(self) -> list[str]:
        return self.table.identities()

    @cached_property
    def _sources(self) -> tuple[RowSource, RowSource | None]:
        table = self.table
        images = Decoder(table, self.preprocessing)
        masks = None if table.masks is None else Decoder(table, self.preprocessing, self.mask_classes, images)
        if not self.cache:
            images.refuse_masks()
            return images, masks
        build = partial(open_or_build, folder=self.cache_folder)
        count, size = len(table.images), self.image_size
        contents = [self._identities, [table.frame(row) for row in range(count)], self.preprocessing.describe()]
        image_cache = build(content_key("images", *contents), (count, self.channels, *size), images.depth, images.fill)
        if masks is None:
            return image_cache, None
        key = content_key("masks as large as images", self.mask_classes, *contents)
        return image_cache, build(key, (count, *size), masks.depth, masks.fill)


def _already_a_batch(batch: object) -> object:
    return batch
