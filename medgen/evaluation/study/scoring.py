"""Scores of a reader study: identification and error rates with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medgen.evaluation.statistics.intervals import RESAMPLES, Interval, share
from medgen.evaluation.study.server import Study


@dataclass(frozen=True, kw_only=True)
class ReaderScore:
    """Results of one reader; intervals are Wilson's.

    Attributes:
        fake_identification_rate: Share of synthetic images called synthetic (FIR).
        false_alarm_rate: Share of real images called synthetic.
        error_rate: Share of wrong calls.
        seconds: Median time of an answer.
        threshold: Milliseconds at which the staircase of a timed study settled (median of its second half), or None.
    """

    reader: str
    answered: int
    fake_identification_rate: Interval
    false_alarm_rate: Interval
    error_rate: Interval
    seconds: float
    threshold: float | None


@dataclass(frozen=True, kw_only=True)
class StudyScore:
    """Results of all readers; intervals resample readers and images.

    Attributes:
        fake_identification_rate: Share of synthetic images called synthetic (FIR), mean over answers; 0.5 is random in
            designs without a time limit.
        error_rate: Share of wrong calls, HYPE-infinity without a time limit; 0.5 is indistinguishable.
        agreement: Fleiss' kappa of the readers; NaN with one reader or without images that several have judged.
        by_class: Identification rate of each class in the key.
    """

    design: str
    readers: Sequence[ReaderScore]
    fake_identification_rate: Interval
    error_rate: Interval
    agreement: float
    by_class: Mapping[int, Interval]


def score_study(folder: str | Path, *, seed: int = 0) -> StudyScore:
    """Score the answers in a study folder.

    Raises:
        FileNotFoundError: If the folder holds no study.
        ValueError: If there are no answers.

    Source: Zhou et al. 2019, "HYPE: a benchmark for human eye perceptual evaluation of generative models"; "The beauty
    or the beast: which aspect of synthetic medical images deserves our focus?" for the fake identification rate.
    """
    study = Study(Path(folder))
    answers = [answer for answer in study.answers() if answer["trial"] in study.trials]
    if not answers:
        raise ValueError(f"{folder} has no answers yet; medgen study serve {folder}")
    votes = _votes(answers, study.kinds)
    synthetic, wrong = votes.synthetic, votes.called != votes.synthetic
    labels = [study.key[image]["label"] for image in votes.images]
    classes = np.array([-1 if label is None else label for label in labels])[votes.image]
    found = sorted(set(classes[synthetic]) - {-1})
    return StudyScore(
        design=study.content["design"],
        readers=[_reader(name, answers, votes, seed) for name in votes.readers],
        fake_identification_rate=_crossed(votes.called, synthetic, votes, seed),
        error_rate=_crossed(wrong, np.ones_like(wrong), votes, seed),
        agreement=fleiss_kappa(votes.table()),
        by_class={int(c): _crossed(votes.called, synthetic & (classes == c), votes, seed) for c in found},
    )


@dataclass(frozen=True)
class _Votes:
    """One entry for each image judged by a reader, (n,)."""

    readers: list[str]
    images: list[str]
    reader: NDArray[np.int64]
    image: NDArray[np.int64]
    trial: NDArray[np.int64]
    called: NDArray[np.bool_]
    synthetic: NDArray[np.bool_]

    def table(self) -> NDArray[np.int64]:
        """Number of readers who called each image real and synthetic, (images, 2)."""
        counts: NDArray[np.int64] = np.zeros((len(self.images), 2), dtype=np.int64)
        np.add.at(counts, (self.image, self.called.astype(np.int64)), 1)
        return counts


def _votes(answers: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> _Votes:
    readers = sorted({answer["reader"] for answer in answers})
    images = sorted({image for answer in answers for image in answer["images"]})
    place = {name: i for i, name in enumerate(images)}
    trials = {name: i for i, name in enumerate(sorted({answer["trial"] for answer in answers}))}
    rows = [
        (
            readers.index(answer["reader"]),
            place[image],
            trials[answer["trial"]],
            image in answer["synthetic"],
            kinds[image] == "synthetic",
        )
        for answer in answers
        for image in answer["images"]
    ]
    reader, image, trial, called, synthetic = (np.array(column) for column in zip(*rows, strict=True))
    return _Votes(readers, images, reader, image, trial, called.astype(bool), synthetic.astype(bool))


def _crossed(values: NDArray[np.bool_], among: NDArray[np.bool_], votes: _Votes, seed: int) -> Interval:
    """Mean of some votes; readers and questions are both resampled, and weights of votes multiply.

    Votes of one question are not independent: of a pair, both are right or both are wrong.

    Source: Owen 2007, "The pigeonhole bootstrap".
    """
    if not among.any():
        return Interval(float("nan"), float("nan"), float("nan"))
    random = np.random.default_rng(seed)
    questions = int(votes.trial.max()) + 1
    readers = len(votes.readers) if len(np.unique(votes.reader[among])) > 1 else 1
    drawn = []
    for _ in range(RESAMPLES):
        weight = np.ones(len(values))
        if readers > 1:
            weight *= np.bincount(random.integers(readers, size=readers), minlength=readers)[votes.reader]
        weight *= np.bincount(random.integers(questions, size=questions), minlength=questions)[votes.trial]
        total = weight[among].sum()
        drawn.append((weight * values)[among].sum() / total if total else np.nan)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Interval(float(values[among].mean()), float(low), float(high))


def _reader(name: str, answers: Sequence[Mapping[str, Any]], votes: _Votes, seed: int) -> ReaderScore:
    own = [answer for answer in answers if answer["reader"] == name]
    mine = votes.reader == votes.readers.index(name)
    called, synthetic = torch.from_numpy(votes.called[mine]), torch.from_numpy(votes.synthetic[mine])
    wrong = votes.called != votes.synthetic
    several = len(own) < mine.sum()
    exposures = [answer["exposure"] for answer in own if "exposure" in answer]
    return ReaderScore(
        reader=name,
        answered=len(own),
        fake_identification_rate=_share(called[synthetic]),
        false_alarm_rate=_share(called[~synthetic]),
        error_rate=_crossed(wrong, mine, votes, seed) if several else _share(called != synthetic),
        seconds=median(answer["milliseconds"] for answer in own) / 1000,
        threshold=median(exposures[len(exposures) // 2 :]) if exposures else None,
    )


def _share(hits: torch.Tensor) -> Interval:
    return share(hits) if len(hits) else Interval(float("nan"), float("nan"), float("nan"))


def fleiss_kappa(table: NDArray[np.int64]) -> float:
    """Agreement of readers beyond that of random answers: 1 is perfect, 0 is random.

    The table has the number of readers who chose each answer, (images, answers); images with fewer than two do not
    count.

    Source: Fleiss 1971, "Measuring nominal scale agreement among many raters"; with missing answers, agreement is over
    all pairs of readers who judged an image.
    """
    table = table[table.sum(1) >= 2]
    if not len(table):
        return float("nan")
    readers = table.sum(1)
    observed = float(((table**2).sum(1) - readers).sum() / (readers * (readers - 1)).sum())
    expected = float(((table.sum(0) / table.sum()) ** 2).sum())
    return 1.0 if expected == 1 else (observed - expected) / (1 - expected)
