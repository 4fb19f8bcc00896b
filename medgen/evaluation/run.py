"""`evaluate`: every number of a generator or a set of images against real data, with what is needed to read it."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from medgen.evaluation import METRICS
from medgen.evaluation.features import DEFAULT_NETWORK, FeatureNetwork, feature_network
from medgen.evaluation.sets import (
    FeatureSet,
    GeneratedImages,
    ImageFolder,
    ImageSet,
    RealImages,
    Source,
    batches,
    matched_labels,
    open_source,
    shard,
    translated_labels,
)
from medgen.generator import Generator

if TYPE_CHECKING:
    from medgen.data.base import ImageDataModule

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """One number with what it was measured on; numbers of different settings do not compare.

    Attributes:
        name: Such as ``fd_efficientnet_lite0`` or ``precision``.
        value: The number.
        low: Lower end of its 95 % confidence interval; None where none was made.
        high: Upper end.
        network: The feature network.
        resize: How images reached it.
        generated: What was judged: the checkpoint or the folder.
        n_generated: How many images of it.
        real: The real images it was compared with, such as ``val+test``.
        n_real: How many.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    network: str
    resize: str
    generated: str
    n_generated: int
    real: str
    n_real: int


def compare(
    source: Source,
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
    """Features of generated and of real images, drawn and read in one pass for all networks.

    Args:
        source: A generator; images (n, C, H, W) in [0, 1]; or, as text, what `open_source` opens.
        datamodule: The real data.
        networks: What sees the images.
        n: Number of generated images; by default as many as real ones, and for given images all of them.
        split: The real images; see `RealImages`.
        seed: Seed of the generated images.
        batch_size: Images drawn and seen together.
        options: Sampling options of the family, such as ``steps``.
        name: What results call the generated images; by default the checkpoint or folder.

    Returns:
        The generated and the real set. Labels of generated images are distributed as those of the real ones. In a
        distributed run each process has its share of both; all must call.

    Raises:
        ValueError: If image sizes or channels differ, labels cannot be matched, or `n` does not go with `source`.
    """
    real = RealImages(datamodule, split)
    found, images, labels, n = _open(source, datamodule, real, n, seed, options or {})
    name = name or found
    rows = shard(n)
    parts: list[list[Tensor]] = [[torch.zeros(0, network.dim)] for network in networks]
    expected = (datamodule.channels, *datamodule.image_size)
    for batch in batches(images, rows, batch_size):
        if batch.shape[1:] != expected:
            raise ValueError(
                f"{name} has images {_sides(batch.shape[1:])}, the data {_sides(expected)} (channels x height x "
                "width); set image_size and channels of the data to the generator's"
            )
        for network, part in zip(networks, parts, strict=True):
            part.append(network(batch).cpu())
    features = {network.name: torch.cat(part) for network, part in zip(networks, parts, strict=True)}
    generated = FeatureSet(name=name, images=images, features=features, labels=labels, n=n, rows=rows)
    return generated, real_features(real, networks, batch_size=batch_size)


def real_features(real: RealImages, networks: Sequence[FeatureNetwork], *, batch_size: int = 16) -> FeatureSet:
    """A real set with its features, from the cache where they were made before; in shares, as `compare` says."""
    rows = shard(len(real))
    features = {n.name: real.features(n, batch_size=batch_size)[rows.start : rows.stop] for n in networks}
    return FeatureSet(name=real.split, images=real, features=features, labels=real.labels, n=len(real), rows=rows)


def _open(
    source: Source,
    datamodule: ImageDataModule,
    real: RealImages,
    n: int | None,
    seed: int,
    options: Mapping[str, Any],
) -> tuple[str, ImageSet, Tensor | None, int]:
    """What is judged: its name, images, labels in the data's label space, and how many images of it."""
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
        generated = GeneratedImages(source, n, conditions, seed=seed, options=options)
        return source.source or type(source).__name__, generated, labels, n
    if options:
        raise ValueError(f"sampling options {', '.join(options)} are for generators, but images were given")
    if n is not None and n > len(source):
        raise ValueError(f"n is {n}, but there are {len(source)} images")
    n = len(source) if n is None else n
    if isinstance(source, ImageFolder):
        labels = source.labels(datamodule.label_space)
        return str(source.folder), source, None if labels is None else labels[:n], n
    return "images", source, None, n


def _sides(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def measure(
    generated: FeatureSet, real: FeatureSet, network: FeatureNetwork, metrics: Iterable[str] = tuple(METRICS)
) -> dict[str, Score]:
    """The numbers of metrics on two sets that `compare` made, by name.

    Raises:
        ValueError: If a metric is unknown.
    """
    check_metrics(metrics)
    scores = {}
    for metric_name in metrics:
        metric = METRICS[metric_name](network.dim).to(accumulator_device(network))
        metric.update(real.features[network.name].to(metric.device), real=True)
        metric.update(generated.features[network.name].to(metric.device), real=False)
        for name, value in metric.compute().items():
            label = f"{name}_{network.slug}" if metric.network_in_name else name
            scores[label] = score(label, float(value), generated, real, network)
    return scores


def check_metrics(metrics: Iterable[str]) -> None:
    """Refuse names of metrics that there are not, before anything is computed.

    Raises:
        ValueError: Naming those there are.
    """
    if unknown := [name for name in metrics if name not in METRICS]:
        raise ValueError(f"metric {unknown[0]!r} is unknown; use {', '.join(METRICS)}")


def accumulator_device(network: FeatureNetwork) -> torch.device:
    """Where metrics keep their float64 sums: beside the network, but for Apple's GPUs, which have no float64."""
    device = network.mean.device
    return torch.device("cpu") if device.type == "mps" else device


def score(
    name: str,
    value: float,
    generated: FeatureSet,
    real: FeatureSet,
    network: FeatureNetwork,
    *,
    interval: tuple[float, float] | None = None,
) -> Score:
    """A number with the two sets and the network it was measured with."""
    return Score(
        name=name,
        value=value,
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
        network=network.name,
        resize=network.resize,
        generated=generated.name,
        n_generated=generated.n,
        real=real.name,
        n_real=real.n,
    )


def evaluate(
    source: Source,
    datamodule: ImageDataModule,
    metrics: Sequence[str] = tuple(METRICS),
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

    In a distributed run the processes share the work; all must call, and all get the same numbers.

    Args:
        source: A generator; images (n, C, H, W) in [0, 1]; or, as text, a checkpoint folder, a name of the zoo or a
            folder of images.
        datamodule: The real data, at the generator's image size.
        metrics: Names of `METRICS`.
        n: Number of generated images; by default as many as real ones. Fréchet distances of different numbers of images
            do not compare.
        split: The real images: ``train``, ``val``, ``test``, or several joined by ``+``.
        seed: Seed of the generated images.
        network: The feature network or its name; see `medgen.evaluation.features.feature_network`.
        batch_size: Images drawn and seen together.
        trained_with: Names of the networks in the model's training losses; one that judges its own pupil is warned of.
        **options: Sampling options of the family, such as ``steps``.

    Returns:
        Scores by name, such as ``fd_efficientnet_lite0``, ``precision``, ``recall`` and ``f1``.

    Raises:
        ValueError: If a metric, a network or a model is unknown, or the sets do not go together or are too small.
    """
    check_metrics(metrics)
    judge = network if isinstance(network, FeatureNetwork) else feature_network(network)
    if isinstance(source, Generator):
        judge = judge.to(source.device)
    warn_of_bias(judge.name, trained_with)
    sets = compare(source, datamodule, [judge], n=n, split=split, seed=seed, batch_size=batch_size, options=options)
    return measure(*sets, judge, metrics)


def warn_of_bias(judge: str, trained_with: Iterable[str]) -> None:
    """Warn where a network judges images that were trained to please it."""
    if judge in trained_with:
        logger.warning(
            "%s was in the training loss of the model it judges, so its numbers flatter; choose another network",
            judge,
        )


def write_scores(scores: Iterable[Score], folder: str | Path, **about: object) -> None:
    """Write ``metrics.json`` and ``metrics.csv``.

    Args:
        scores: The numbers.
        folder: Where to; made if missing.
        **about: What else the JSON file says, such as the source, the seed and the sampling options.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    rows = [dataclasses.asdict(item) for item in scores]
    (target / "metrics.json").write_text(json.dumps({**about, "scores": rows}, indent=2) + "\n")
    with (target / "metrics.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, [field.name for field in dataclasses.fields(Score)])
        writer.writeheader()
        writer.writerows(rows)
