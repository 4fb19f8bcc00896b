"""Scores of a measurement: a number, the images it was measured on, and how to read it."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from medgen.evaluation.judges.features import FeatureNetwork
from medgen.evaluation.sets import FeatureSet
from medgen.evaluation.statistics.intervals import Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """One number and the settings it was measured with; numbers of different settings do not compare.

    Attributes:
        name: Such as ``fd_efficientnet_lite0`` or ``precision``; a class or finding follows a colon.
        value: The number.
        low: Lower end of the 95 % confidence interval; None without an interval.
        high: Upper end.
        network: The feature network or classifier; empty if none was used.
        resize: How images were resized for the network.
        generated: The judged images: a checkpoint or a folder.
        n_generated: Number of judged images.
        real: The real images they were compared with, such as ``val+test``.
        n_real: Number of real images.
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


SECTIONS = ("fidelity", "variety", "labels", "utility", "privacy", "bias", "efficiency")


class Meaning(NamedTuple):
    """Section of a report, one of `SECTIONS`, title of a row, and one sentence for readers who do not know the score.

    `better` is 1 if higher is better, -1 if lower is better, 0 if neither.
    """

    section: str
    title: str
    better: int
    text: str


def score(
    name: str,
    value: float | Interval,
    generated: FeatureSet,
    real: FeatureSet,
    network: FeatureNetwork | None = None,
    *,
    judge: str = "",
    interval: tuple[float, float] | None = None,
    n_generated: int | None = None,
    n_real: int | None = None,
) -> Score:
    """Build the `Score` of a number measured on two sets; ends of an interval that are not finite drop it.

    `judge` names a network that is not a feature network; `n_generated` and `n_real` replace the sizes of the sets.
    """
    if isinstance(value, Interval):
        interval = (value.low, value.high)
        value = value.value
    if interval is not None and not all(math.isfinite(end) for end in interval):
        interval = None
    return Score(
        name=name,
        value=value,
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
        network=network.name if network else judge,
        resize=network.resize if network else "",
        generated=generated.name,
        n_generated=generated.n if n_generated is None else n_generated,
        real=real.name,
        n_real=real.n if n_real is None else n_real,
    )


def write_scores(scores: Iterable[Score], folder: str | Path, **about: object) -> None:
    """Write ``metrics.json``, with entries `about` the run, and ``metrics.csv`` into a folder."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    rows = [dataclasses.asdict(item) for item in scores]
    unfinished = target / "metrics.json.part"
    unfinished.write_text(json.dumps({**about, "scores": rows}, indent=2, allow_nan=False) + "\n")
    unfinished.replace(target / "metrics.json")
    with (target / "metrics.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, [field.name for field in dataclasses.fields(Score)])
        writer.writeheader()
        writer.writerows(rows)
