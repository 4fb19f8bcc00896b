"""Sets of images to compare: real splits, samples of a generator, folders and tensors, all read in slices."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from medgen.data.base import ImageDataModule
from medgen.data.cache import content_key, open_or_build
from medgen.data.image_table import SPLITS, Split
from medgen.data.readers import RASTER_SUFFIXES, read_image
from medgen.evaluation.judges.features import FeatureNetwork, check_images
from medgen.images import from_uint8, to_uint8
from medgen.run_folder import RUN_FILE, TABLE_FILE

if TYPE_CHECKING:
    from medgen.generator import Generator
    from medgen.labels import LabelSpace
    from medgen.translator import Translator

logger = logging.getLogger(__name__)


class ImageSet(Protocol):
    """Images that are read, drawn or decoded in slices, such as a tensor (n, C, H, W)."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, rows: slice) -> Tensor:
        """Images of a slice, (B, C, H, W) float32 in [0, 1]."""


Source: TypeAlias = "Generator | Translator | ImageSet | Tensor | str | Path"


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """A set of images with its features.

    Attributes:
        name: Name of the images, such as ``val+test``.
        images: The images.
        features: Vectors (n, D) float32 by name of the feature network.
        labels: Classes (n,) int64 or conditions (n, K) float32 in the data's label space, or None.
        n: Number of images of the whole set.
        rows: Rows whose features this process holds; all, unless processes share the work.
    """

    name: str
    images: ImageSet
    features: Mapping[str, Tensor]
    labels: Tensor | None
    n: int
    rows: range

    def subset(self, rows: Tensor, name: str = "") -> FeatureSet:
        """Select some rows (m,), under another name if one is given."""
        return FeatureSet(
            name=name or self.name,
            images=Picked(self.images, rows),
            features={key: value[rows] for key, value in self.features.items()},
            labels=None if self.labels is None else self.labels[rows],
            n=len(rows),
            rows=range(len(rows)),
        )


@dataclass(frozen=True)
class Picked:
    """Selected rows of a set of images."""

    images: ImageSet | Tensor
    picked: Tensor

    def __len__(self) -> int:
        return len(self.picked)

    def __getitem__(self, rows: slice) -> Tensor:
        return torch.cat([self.images[row : row + 1] for row in self.picked[rows].tolist()])


class RealImages:
    """The images of one or several splits, in the order of the files and without augmentation.

    Args:
        datamodule: The data.
        split: ``train``, ``val``, ``test``, or several joined by ``+``, such as ``val+test``.
    """

    def __init__(self, datamodule: ImageDataModule, split: str) -> None:
        self.datamodule = datamodule
        self.split = split
        self.parts = [datamodule.dataset(part) for part in split_names(split)]
        ends = np.cumsum([len(part) for part in self.parts])
        self._bounds = [(int(end) - len(part), int(end)) for part, end in zip(self.parts, ends, strict=True)]

    def __len__(self) -> int:
        return self._bounds[-1][1]

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(len(self))
        return torch.cat(
            [
                part.__getitems__(list(range(max(start, low) - low, min(stop, high) - low)))["image"]
                for part, (low, high) in zip(self.parts, self._bounds, strict=True)
                if max(start, low) < min(stop, high)
            ]
        )

    @cached_property
    def labels(self) -> Tensor | None:
        """Labels as in `Batch`, (n,) or (n, K); None for data without."""
        labels = [part.labels for part in self.parts if part.labels is not None]
        return torch.cat(labels) if labels else None

    @cached_property
    def patients(self) -> list[str] | None:
        """Patient of each image; None if the data do not say."""
        table = self.datamodule.table
        if table.patients is None:
            return None
        return [table.patients[row] for part in split_names(self.split) for row in table.rows(part)]

    def features(self, network: FeatureNetwork, *, batch_size: int = 32) -> Tensor:
        """Features (n, D) of all images, cached on disk by data and network.

        Several processes may call at once: one computes, the others wait.
        """
        if not self.datamodule.cache:
            return torch.cat([network(images).cpu() for images in batches(self, range(len(self)), batch_size)])

        def fill(array: np.ndarray[Any, np.dtype[np.generic]]) -> None:
            logger.info("features of %d real images by %s", len(self), network.name)
            start = 0
            for images in batches(self, range(len(self)), batch_size):
                array[start : start + len(images)] = network(images).cpu().numpy()
                start += len(images)

        splits = [self.datamodule.fingerprint(part) for part in split_names(self.split)]
        key = content_key("features", splits, network.fingerprint)
        folder = self.datamodule.cache_folder
        cache = open_or_build(key, (len(self), network.dim), np.float32, fill, folder=folder)
        return torch.from_numpy(np.array(cache.array))


def split_names(split: str) -> list[Split]:
    """Split ``val+test`` and the like into names.

    Raises:
        ValueError: If there is no such split.
    """
    parts = split.split("+")
    if unknown := [part for part in parts if part not in SPLITS]:
        raise ValueError(f"split {unknown[0]!r} is unknown; use {', '.join(SPLITS)}, or several joined by +")
    return cast("list[Split]", parts)


class GeneratedImages:
    """Samples of a generator for a seed, independent of the slicing, since each image has its own random stream.

    Args:
        generator: The generator.
        n: Number of images.
        labels: One condition per image in the generator's label space; None draws without condition.
        seed: Seed of the run.
        options: Sampling options of the family, such as ``steps``.
    """

    def __init__(
        self, generator: Generator, n: int, labels: Tensor | None, *, seed: int, options: Mapping[str, Any]
    ) -> None:
        generator.check_options(options)
        self.generator = generator
        self.n = n
        self.labels = labels
        self.seed = seed
        self.options = options

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(self.n)
        label = None if self.labels is None else self.labels[start:stop]
        return self.generator.sample(
            stop - start, label, seed=self.seed, first_index=start, batch_size=stop - start, **self.options
        )


class TranslatedImages:
    """Real images translated to the other domain: every image with a known domain, in order.

    Args:
        translator: The model that translates.
        real: The images, of a data module whose classes are the domains.

    Raises:
        ValueError: If the data are not of the translator's domains.
    """

    def __init__(self, translator: Translator, real: RealImages) -> None:
        space = real.datamodule.label_space
        if space.kind != "single" or space.names != translator.domains or real.labels is None:
            raise ValueError(
                f"the data have the labels {', '.join(space.names) or 'none'}, and the model translates between "
                f"{' and '.join(translator.domains)}; set label_kind to single and label_names of the data to these"
            )
        known = (real.labels >= 0).nonzero()[:, 0]
        self.translator = translator
        self.originals = Picked(real, known)
        self.labels = (real.labels[known] + 1) % len(translator.domains)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> Tensor:
        images, labels = self.originals[rows], self.labels[rows]
        translated = torch.empty_like(images)
        for domain in labels.unique().tolist():
            chosen = labels == domain
            translated[chosen] = self.translator.translate(images[chosen], domain, batch_size=len(images))
        return translated


class ImageFolder:
    """Images in a folder: the rows of ``samples.csv``, as `medgen sample` writes it, or else all picture files by name.

    The declared range of each file, such as 0 to 255, is mapped to [0, 1].

    Args:
        folder: The folder.
        channels: 1 to read grey, 3 to read colour.

    Raises:
        FileNotFoundError: If there is no image.
        ValueError: If ``samples.csv`` lacks a column.
    """

    def __init__(self, folder: str | Path, *, channels: int) -> None:
        self.folder = Path(folder)
        self.channels = channels
        self._label_texts: list[str] = []
        run = self.folder / RUN_FILE
        self.target: str | None = json.loads(run.read_text()).get("to") if run.is_file() else None
        table = self.folder / TABLE_FILE
        if table.is_file():
            with table.open(newline="") as handle:
                rows = list(csv.DictReader(handle))
            if rows and not {"file", "label"} <= rows[0].keys():
                raise ValueError(f"{table} has the columns {', '.join(rows[0])}; it needs file and label")
            self.files = [self.folder / row["file"] for row in rows]
            self._label_texts = [row["label"] for row in rows]
        else:
            self.files = sorted(p for p in self.folder.iterdir() if p.suffix.lower() in RASTER_SUFFIXES)
        if not self.files:
            raise FileNotFoundError(f"{self.folder} holds no image ({', '.join(RASTER_SUFFIXES)})")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: slice) -> Tensor:
        pictures: list[Tensor] = []
        for path in self.files[rows]:
            raw = read_image(path)
            pixels = np.clip((raw.to_channels(self.channels) - raw.low) / (raw.high - raw.low), 0, 1).astype(np.float32)
            pictures.append(torch.from_numpy(pixels).permute(2, 0, 1))
            if pictures[-1].shape != pictures[0].shape:
                sizes = [f"{height}x{width}" for _, height, width in (pictures[0].shape, pictures[-1].shape)]
                raise ValueError(
                    f"{path} is {sizes[1]} pixels, others of the folder are {sizes[0]}; bring them to one size"
                )
        return torch.stack(pictures)

    def labels(self, space: LabelSpace) -> Tensor | None:
        """Labels from ``samples.csv`` in a label space; None without."""
        if not any(self._label_texts) or space.kind == "none":
            return None
        if space.kind == "single":
            return space.resolve(self._label_texts, len(self))
        if space.kind == "multi":
            return space.resolve([[name for name in text.split("|") if name] for text in self._label_texts], len(self))
        values = [[float(item.partition("=")[2]) for item in text.split("|")] for text in self._label_texts]
        return torch.tensor(values, dtype=torch.float32)


class StoredImages:
    """Images stored as bytes in a file, so that they are drawn once. All judges round to 8 bits, too.

    Args:
        images: Images to store.
        n: Number of images.
        path: File to write; memory-mapped.
        batch_size: Images drawn together.
        check: Called with each batch, to refuse it.
    """

    def __init__(
        self,
        images: ImageSet | Tensor,
        n: int,
        path: Path,
        *,
        batch_size: int = 16,
        check: Callable[[Tensor], None] = check_images,
    ) -> None:
        array: np.ndarray[Any, np.dtype[np.uint8]] | None = None
        start = 0
        for batch in tqdm(batches(images, range(n), batch_size), total=-(-n // batch_size), desc="images", leave=False):
            check(batch)
            if array is None:
                array = np.memmap(path, dtype=np.uint8, mode="w+", shape=(n, *batch.shape[1:]))
            array[start : start + len(batch)] = to_uint8(batch).numpy()
            start += len(batch)
        assert array is not None  # n is at least 2
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, rows: slice) -> Tensor:
        return from_uint8(torch.from_numpy(np.array(self._array[rows])))


def batches(images: ImageSet | Tensor, rows: range, batch_size: int) -> Iterator[Tensor]:
    """Images of a range of rows, `batch_size` at a time."""
    for start in range(rows.start, rows.stop, batch_size):
        yield images[start : min(start + batch_size, rows.stop)]


def open_source(source: str | Path, *, channels: int) -> Generator | Translator | ImageFolder:
    """Open a checkpoint folder, a name of the zoo or the Hub, or a folder of images.

    Raises:
        ValueError: If it is none of these.
        FileNotFoundError: If a folder holds neither a checkpoint nor images.
    """
    from medgen.loading import load

    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        return ImageFolder(source, channels=channels)
    model: Generator | Translator = load(source)
    return model


def matched_labels(labels: Tensor, n: int) -> Tensor:
    """Draw `n` labels distributed as the given ones: each class within one image of its share.

    Args:
        labels: Classes (N,), -1 for unknown, or conditions (N, K), NaN for unknown. Images with unknown labels are left
            out; if no image has all conditions known, unknown ones count as 0.
        n: Number of labels; with as many as are known, each is taken once.

    Raises:
        ValueError: If no label is known.
    """
    rows = labels if labels.dim() == 2 else labels[:, None]
    if labels.dim() == 1:
        known = rows[(rows >= 0).all(1)]
    elif bool(rows.isfinite().all(1).any()):
        known = rows[rows.isfinite().all(1)]
    else:  # no image has all findings stated, as in tables with uncertain labels: unknown counts as absent
        known = rows[rows.isfinite().any(1)].nan_to_num(0.0)
    if not len(known):
        raise ValueError("the reference set has no image with a known label; generated labels cannot follow it")
    order = np.lexsort(known.numpy().T[::-1])
    # Systematic sampling: equal steps through the sorted rows.
    picked = (2 * np.arange(n) + 1) * len(known) // (2 * n)
    return known[torch.from_numpy(order[picked])].reshape(n, *labels.shape[1:])


def translated_labels(labels: Tensor, data: LabelSpace, model: LabelSpace) -> Tensor:
    """Convert labels of the data to a model's label space: classes by name; conditions need equal names in order.

    Raises:
        ValueError: If the model lacks a class of the data, or the conditions differ.
    """
    if data == model:
        return labels
    if data.kind == model.kind == "single" and set(data.names) <= set(model.names):
        return torch.tensor([model.index(name) for name in data.names])[labels]
    raise ValueError(
        f"the data's labels ({data.kind}: {', '.join(data.names)}) are not the model's ({model.kind}: "
        f"{', '.join(model.names)}); give data with labels that the model knows"
    )


def shard(n: int) -> range:
    """Contiguous rows of this process in a distributed run; all rows otherwise."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return range(n)
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return range(rank * n // world, (rank + 1) * n // world)


def patients_of(part: FeatureSet) -> Tensor:
    """Patient number of each image, (n,); each image is its own patient if the data do not say."""
    names = part.images.patients if isinstance(part.images, RealImages) else None
    if names is None:
        return torch.arange(part.n)
    number = {name: i for i, name in enumerate(sorted(set(names)))}
    return torch.tensor([number[name] for name in names])


def known_and_positive(labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Whether it is known that each image shows class or finding `k`, and whether it does, (n,) bool both."""
    if labels.dim() == 1:
        return labels >= 0, labels == k
    return labels[:, k].isfinite(), labels[:, k] == 1
