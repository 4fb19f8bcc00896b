"""Evaluation of a generator or a set of images: features, and metrics on them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from medgen.data.image_table import SPLITS
from medgen.evaluation.judges.features import FeatureNetwork
from medgen.evaluation.judges.networks import DEFAULT_NETWORK, feature_network
from medgen.evaluation.metrics import METRICS
from medgen.evaluation.scores import Score, score
from medgen.evaluation.sets import (
    FeatureSet,
    GeneratedImages,
    ImageFolder,
    ImageSet,
    Picked,
    RealImages,
    Source,
    TranslatedImages,
    batches,
    matched_labels,
    open_source,
    shard,
    translated_labels,
)
from medgen.generator import Generator
from medgen.published import PublishedModel
from medgen.translator import Translator

if TYPE_CHECKING:
    from medgen.data.base import ImageDataModule

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A judged source, before any image is drawn.

    Attributes:
        name: The checkpoint or the folder.
        images: The images.
        labels: Their labels in the data's label space, or None.
        n: Number of images.
        generator: The generator; None for given and for translated images.
        translator: The translator; None for others.
        target: Class of the data that all images were translated to, with whose real images they are compared; None for
            other images.
        n_real: Number of real images to compare with.
    """

    name: str
    images: ImageSet
    labels: Tensor | None
    n: int
    generator: Generator | None = None
    translator: Translator | None = None
    target: int | None = None
    n_real: int

    @property
    def model(self) -> Generator | Translator | None:
        """The model that makes the images; None for given ones."""
        return self.generator or self.translator

    def conditions(self, rows: slice) -> Tensor | None:
        """Conditions of some rows in the generator's label space; None without conditions."""
        labels = self.images.labels if isinstance(self.images, GeneratedImages) else None
        return None if labels is None else labels[rows]


def compare(
    source: Source | Opened,
    datamodule: ImageDataModule,
    networks: Sequence[FeatureNetwork],
    *,
    n: int | None = None,
    split: str = "test",
    seed: int = 0,
    batch_size: int = 16,
    options: Mapping[str, Any] | None = None,
    name: str = "",
) -> tuple[FeatureSet, FeatureSet]:
    """Compute features of generated and of real images, in one pass for all networks.

    Args:
        source: A generator; images (n, C, H, W) in [0, 1]; text for `open_source`; or a result of `opened`, which fixes
            `n`, `seed` and `options`.
        datamodule: The real data.
        networks: The feature networks.
        n: Number of generated images; by default that of the real images. Of given images, all or a random part.
        split: The real images; see `RealImages`.
        seed: Seed of the generated images.
        batch_size: Images drawn and processed together.
        options: Sampling options of the family, such as ``steps``.
        name: Name of the generated images in results; by default the checkpoint or folder.

    Returns:
        The generated and the real set, with labels of equal distribution. In a distributed run each process has its
        share of both; all must call.

    Raises:
        ValueError: If image sizes or channels differ, labels cannot be matched, or `n` does not suit `source`.
    """
    real = RealImages(datamodule, split)
    found = source if isinstance(source, Opened) else opened(source, datamodule, real, n=n, seed=seed, options=options)
    rows = shard(found.n)
    parts: list[list[Tensor]] = [[torch.zeros(0, network.dim)] for network in networks]
    for batch in batches(found.images, rows, batch_size):
        check_size(batch, datamodule, name or found.name)
        for network, part in zip(networks, parts, strict=True):
            part.append(network(batch).cpu())
    features = {network.name: torch.cat(part) for network, part in zip(networks, parts, strict=True)}
    generated = FeatureSet(
        name=name or found.name, images=found.images, features=features, labels=found.labels, n=found.n, rows=rows
    )
    known = real_features(real, networks, batch_size=batch_size)
    if found.target is not None and real.labels is not None:
        rows_of_target = (real.labels == found.target).nonzero()[:, 0]
        known = known.subset(rows_of_target, f"{split}:{datamodule.label_space.names[found.target]}")
    return generated, known


def check_size(images: Tensor, datamodule: ImageDataModule, name: str) -> None:
    """Refuse generated images (B, C, H, W) whose shape differs from the data's.

    Raises:
        ValueError: With both shapes.
    """
    expected = (datamodule.channels, *datamodule.image_size)
    if images.shape[1:] != expected:
        raise ValueError(
            f"{name} has images {_sides(images.shape[1:])}, the data {_sides(expected)} (channels x height x width); "
            "set image_size and channels of the data to the generator's"
        )


def real_features(real: RealImages, networks: Sequence[FeatureNetwork], *, batch_size: int = 16) -> FeatureSet:
    """Real set with its features, cached on disk; each process of a distributed run gets its share."""
    rows = shard(len(real))
    features = {n.name: real.features(n, batch_size=batch_size)[rows.start : rows.stop] for n in networks}
    return FeatureSet(name=real.split, images=real, features=features, labels=real.labels, n=len(real), rows=rows)


def opened(
    source: Source,
    datamodule: ImageDataModule,
    real: RealImages,
    *,
    n: int | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Opened:
    """Open a source, with labels distributed as those of the real images.

    Raises:
        ValueError: If labels cannot be matched, or `n` or `options` do not suit `source`.
    """
    if n is not None and n < 2:
        raise ValueError(f"n is {n}; statistics need at least two images")
    if isinstance(source, (str, Path)):
        source = open_source(source, channels=datamodule.channels)
    if isinstance(source, Generator):
        n = len(real) if n is None else n
        labels = conditions = None
        if source.label_space.kind != "none" and real.labels is not None:
            labels = matched_labels(real.labels, n)
            conditions = translated_labels(labels, datamodule.label_space, source.label_space)
        drawn = GeneratedImages(source, n, conditions, seed=seed, options=options or {})
        name = source.source or type(source).__name__
        return Opened(name=name, images=drawn, labels=labels, n=n, generator=source, n_real=len(real))
    if options:
        raise ValueError(f"sampling options {', '.join(options)} are for generators, but images were given")
    name, labels, translator, target, n_real = "images", None, None, None, len(real)
    if isinstance(source, Translator):
        name, translator = source.source or type(source).__name__, source
        images: ImageSet = (translated := TranslatedImages(source, real))
        labels = translated.labels
    else:
        images = source
    if isinstance(source, ImageFolder):
        name = _apart(str(source.folder), real.split)
        labels = source.labels(datamodule.label_space)
        if source.target is not None:
            target, n_real = _target(source.target, real)
    total = len(images)
    if n is not None and n > total:
        raise ValueError(f"n is {n}, but there are {total} images; leave n out to take all")
    n = total if n is None else n
    if n < 2:
        raise ValueError(f"there is {n} image; statistics need at least two")
    if n < total:  # at random: the first ones of a folder may be of one class
        rows = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:n].sort().values
        images, labels = Picked(images, rows), None if labels is None else labels[rows]
    return Opened(name=name, images=images, labels=labels, n=n, translator=translator, target=target, n_real=n_real)


def _target(domain: str, real: RealImages) -> tuple[int, int]:
    """The class of the data that a folder was translated to, and its number of real images."""
    space = real.datamodule.label_space
    if space.kind != "single" or domain not in space.names or real.labels is None:
        raise ValueError(
            f"the images were translated to {domain}, which is no class of the data "
            f"({', '.join(space.names) or 'none'}); set label_kind to single, and label_names of the data to the "
            "domains of the translator"
        )
    number = space.index(domain)
    count = int((real.labels == number).sum())
    if count < 2:
        raise ValueError(f"{real.split} has {count} real images of {domain}; statistics need at least two")
    return number, count


def _apart(folder: str, split: str) -> str:
    """Name of a folder, changed if it equals that of a split."""
    return f"{folder}/" if folder in (split, *SPLITS) else folder


def _sides(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def measure(
    generated: FeatureSet, real: FeatureSet, network: FeatureNetwork, metrics: Iterable[str] | None = None
) -> dict[str, Score]:
    """Compute metrics on two sets from `compare`; by default all for which the sets are large enough.

    Raises:
        ValueError: If a metric is unknown, or is named and needs more images.
    """
    if metrics is None:
        fewest = min(generated.n, real.n)
        metrics = measurable(METRICS, fewest)
        if left_out := [name for name in METRICS if name not in metrics]:
            logger.warning("%s are left out: %d images are too few for them", ", ".join(left_out), fewest)
    check_metrics(metrics)
    scores = {}
    for metric_name in metrics:
        metric = METRICS[metric_name](network.dim).to(accumulator_device(network))
        metric.update(real.features[network.name].to(metric.device), real=True)
        metric.update(generated.features[network.name].to(metric.device), real=False)
        numbers = {name: float(value) for name, value in metric.compute().items()}
        for name, value in numbers.items():
            if name.endswith(("_low", "_high")):
                continue
            label = f"{name}_{network.slug}" if metric.network_in_name else name
            interval = (numbers[f"{name}_low"], numbers[f"{name}_high"]) if f"{name}_low" in numbers else None
            scores[label] = score(label, value, generated, real, network, interval=interval)
    return scores


def measurable(metrics: Iterable[str], n: int) -> list[str]:
    """Metrics for which sets of `n` images are large enough."""
    return [name for name in metrics if n >= METRICS[name].least]


def check_metrics(metrics: Iterable[str]) -> None:
    """Refuse unknown names of metrics.

    Raises:
        ValueError: With all known names.
    """
    if unknown := [name for name in metrics if name not in METRICS]:
        raise ValueError(f"metric {unknown[0]!r} is unknown; use {', '.join(METRICS)}")


def accumulator_device(network: FeatureNetwork) -> torch.device:
    """Device of float64 sums: that of the network, or the CPU for Apple's GPUs, which lack float64."""
    device = network.mean.device
    return torch.device("cpu") if device.type == "mps" else device


def evaluate(
    source: Source,
    datamodule: ImageDataModule,
    metrics: Sequence[str] | None = None,
    *,
    n: int | None = None,
    split: str = "test",
    seed: int = 0,
    network: str | FeatureNetwork = DEFAULT_NETWORK,
    batch_size: int = 16,
    trained_with: Sequence[str] = (),
    **options: Any,
) -> dict[str, Score]:
    """Measure a generator or a set of images against real data.

    In a distributed run the processes share the work; all must call, and all get equal numbers.

    Args:
        source: A generator; images (n, C, H, W) in [0, 1]; or, as text, a checkpoint folder, a name of the zoo or a
            folder of images.
        datamodule: The real data, at the generator's image size.
        metrics: Names of `METRICS`; by default all for which there are enough images.
        n: Number of generated images; by default that of the real images. Fréchet distances of different numbers do not
            compare.
        split: The real images: ``train``, ``val``, ``test``, or several joined by ``+``.
        seed: Seed of the generated images.
        network: The feature network or its name; see `medgen.evaluation.judges.networks.feature_network`.
        batch_size: Images drawn and processed together.
        trained_with: Networks in the training losses of the model; a warning is logged if `network` is one of them.
        **options: Sampling options of the family, such as ``steps``.

    Returns:
        Scores by name, such as ``fd_efficientnet_lite0``, ``precision``, ``recall`` and ``f1``.

    Raises:
        ValueError: If a metric, a network or a model is unknown, or the sets do not match or are too small.
    """
    check_metrics(metrics or ())
    judge = network if isinstance(network, FeatureNetwork) else feature_network(network)
    if isinstance(source, PublishedModel):
        judge = judge.to(source.device)
    warn_of_bias(judge.name, trained_with)
    sets = compare(source, datamodule, [judge], n=n, split=split, seed=seed, batch_size=batch_size, options=options)
    return measure(*sets, judge, metrics)


def warn_of_bias(judge: str, trained_with: Iterable[str]) -> list[str]:
    """Warn if the judging network was in the training loss of the model, and return the warnings."""
    if judge not in trained_with:
        return []
    warning = f"{judge} was in the training loss of the model it judges, so its numbers flatter; choose another network"
    logger.warning(warning)
    return [warning]
