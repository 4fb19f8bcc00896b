"""Fréchet distances of a checkpoint's samples to the real images of `cxr`: what is lost by sampling faster.

The real images are the validation and test splits of the folder ``cxr`` in MEDGEN_DATA (default: ``../shared/data``
beside the repository), at the size and of the classes that the checkpoint knows.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import medgen
from medgen.data import TableDataModule
from medgen.evaluation.judges.networks import feature_network
from medgen.evaluation.run import compare, measure
from medgen.evaluation.sets import RealImages, matched_labels, translated_labels
from medgen.generator import Generator

DATA = Path(os.environ.get("MEDGEN_DATA", Path(__file__).parents[2] / "shared" / "data"))
SPLIT = "val+test"


@dataclass(frozen=True)
class Run:
    """Samples drawn in one way: their distance, and how long drawing them took."""

    distance: float
    seconds: float


def load_generator(checkpoint: Path) -> Generator:
    """The generator of a checkpoint folder."""
    return medgen.load(str(checkpoint))


def real_images(generator: Generator, **options: Any) -> TableDataModule:
    """The images of `cxr` whose classes the generator knows, as it sees them, with more options of the data module."""
    config = generator.config
    names = list(config.label_names)
    return TableDataModule(
        csv=DATA / "cxr" / "labels.csv",
        root=DATA / "cxr" / "images.zip",
        image_column="image",
        label_column="label",
        label_names=names,
        where={"label": names},
        patient_column="patient_id",
        split_column="split",
        image_size=config.image_size,
        channels=config.channels,
        intensity_window=config.intensity_window,
        **options,
    )


def frechet_distances(generator: Generator, n: int, ways: Mapping[str, Mapping[str, Any]]) -> dict[str, Run]:
    """Distances in EfficientNet-Lite0 features of `n` samples drawn from the same seed with each set of options."""
    data = real_images(generator)
    network = feature_network()
    real = RealImages(data, SPLIT)
    assert real.labels is not None  # the table has a label column
    labels = translated_labels(matched_labels(real.labels, n), data.label_space, generator.label_space)
    runs = {}
    for name, options in ways.items():
        start = time.perf_counter()
        images = generator.sample(n, labels, seed=0, **options)
        elapsed = time.perf_counter() - start
        scores = measure(*compare(images, data, [network], split=SPLIT), network, ["frechet_distance"])
        runs[name] = Run(next(iter(scores.values())).value, elapsed)
    return runs
