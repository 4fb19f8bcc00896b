"""Everything there is to say about a generator or a folder of images, in one call: scores, checks and pictures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import medgen
from medgen.evaluation import METRICS
from medgen.evaluation.conditional import label_aucs
from medgen.evaluation.controls import controls
from medgen.evaluation.features import DEFAULT_NETWORK, FeatureNetwork, feature_network
from medgen.evaluation.memorisation import memorisation_scores, nearest_pictures, nearest_training
from medgen.evaluation.run import Score, compare, measure, real_features, warn_of_bias, write_scores
from medgen.evaluation.sets import FeatureSet, RealImages, open_source
from medgen.generator import Generator
from medgen.images import save_png

if TYPE_CHECKING:
    from medgen.data.base import ImageDataModule

logger = logging.getLogger(__name__)

CHECKS = ("label_auc", "memorisation", "controls")
"""What a report holds beside `METRICS`: does the label appear, are patients copied, what do real images get."""


def report(
    source: str | Path,
    datamodule: ImageDataModule,
    out: str | Path,
    metrics: Sequence[str] | None = None,
    *,
    n: int | None = None,
    split: str = "test",
    seed: int = 0,
    network: str | FeatureNetwork = DEFAULT_NETWORK,
    weights: str | None = None,
    batch_size: int = 16,
    device: str | None = None,
    **options: Any,
) -> list[Score]:
    """Measure, and write ``metrics.json``, ``metrics.csv`` and pictures of the nearest training images.

    Args:
        source: A checkpoint folder, a name of the zoo or the Hub, or a folder of images.
        datamodule: The real data.
        out: Folder to write into; made if missing.
        metrics: Names of `METRICS` and `CHECKS`; by default all that the data allow.
        n: Number of generated images; by default as many as real ones.
        split: The real images to compare with.
        seed: Seed of the generated images.
        network: The feature network or its name.
        weights: File with the weights, for a timm network by name.
        batch_size: Images drawn and seen together.
        device: Where networks run; by default the best there is.
        **options: Sampling options of the family, such as ``steps``.

    Returns:
        The scores, those of the controls last.

    Raises:
        ValueError: If a metric, a network or a model is unknown, or the sets do not go together or are too small.
    """
    chosen = _chosen(metrics, datamodule, split)
    names = [name for name in chosen if name in METRICS]
    where = device or _best_device()
    judge = network if isinstance(network, FeatureNetwork) else feature_network(network, weights=weights)
    judge = judge.to(where)
    networks = [judge, feature_network("pixels").to(where)] if "memorisation" in chosen else [judge]
    opened = open_source(source, channels=datamodule.channels)
    if isinstance(opened, Generator):
        opened.to(where)
        warn_of_bias(judge.name, getattr(opened.about, "trained_with", ()))
    generated, real = compare(
        opened, datamodule, networks, n=n, split=split, seed=seed, batch_size=batch_size, options=options
    )
    scores = [*measure(generated, real, judge, names).values()]

    def write() -> None:
        about = {"source": str(source), "split": split, "seed": seed, "options": options}
        write_scores(scores, out, medgen_version=medgen.__version__, **about)

    write()  # an error below loses nothing of what took long
    if {"label_auc", "memorisation"} & set(chosen):
        train = real_features(RealImages(datamodule, "train"), networks, batch_size=batch_size)
        if "label_auc" in chosen and (generated.labels is not None or metrics is not None):
            scores += label_aucs(train, generated, real, judge, datamodule.label_space).values()
        if "memorisation" in chosen:
            scores += _memorisation(generated, train, real, networks, Path(out))
    if "controls" in chosen:
        for control in controls(datamodule, judge, names, n=generated.n, split=split, seed=seed).values():
            scores += control.values()
    write()
    return scores


def _chosen(metrics: Sequence[str] | None, datamodule: ImageDataModule, split: str) -> list[str]:
    """The metrics and checks asked for, or all that the data allow; refused before anything is drawn.

    Raises:
        ValueError: If a name is unknown, or a check was asked for that the data do not allow.
        ImportError: If it needs a package that is missing.
    """
    known = [*METRICS, *CHECKS]
    if unknown := [name for name in metrics or () if name not in known]:
        raise ValueError(f"metric {unknown[0]!r} is unknown; use {', '.join(known)}")
    chosen = []
    for name in known if metrics is None else metrics:
        obstacle = _obstacle(name, datamodule, split) if name in CHECKS else None
        if obstacle is None:
            chosen.append(name)
        elif metrics is not None:
            raise obstacle
        else:
            logger.warning("%s is left out: %s", name, obstacle)
    return chosen


def _obstacle(check: str, datamodule: ImageDataModule, split: str) -> Exception | None:
    """Why the data do not allow a check."""
    if "train" in split.split("+"):
        return ValueError(f"split is {split!r}; {check} compares with training images, so leave train out of split")
    if not len(datamodule.table.rows("train")):
        return ValueError(f"the data have no train split; {check} needs it")
    if check == "label_auc":
        if datamodule.label_space.kind not in ("single", "multi"):
            return ValueError(f"the data's labels are {datamodule.label_space.kind!r}; label_auc asks for classes")
        if find_spec("sklearn") is None:
            return ImportError('label_auc needs scikit-learn; run: pip install "medgen[eval]"')
    return None


def _memorisation(
    generated: FeatureSet, train: FeatureSet, held_out: FeatureSet, networks: Sequence[FeatureNetwork], out: Path
) -> list[Score]:
    """Scores of the check in each network's space, with one picture for each."""
    out.mkdir(parents=True, exist_ok=True)
    scores: list[Score] = []
    for network in networks:
        found = nearest_training(generated, train, held_out, network)
        scores += memorisation_scores(found, generated, held_out, network).values()
        picture = nearest_pictures(found, generated, train)
        save_png(picture, out / f"nearest_train_{network.slug}.png")
    return scores


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
