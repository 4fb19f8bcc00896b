"""Fréchet distances between the classes of real and of generated images."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medgen.evaluation.checks.case import CLASS_LEAST, Case, Check, Figure, Findings
from medgen.evaluation.judges.features import FeatureNetwork
from medgen.evaluation.metrics.frechet import frechet_distance
from medgen.evaluation.report.plots import dendrogram_plot, distances_plot
from medgen.evaluation.scores import Meaning, score
from medgen.evaluation.sets import FeatureSet, known_and_positive
from medgen.labels import LabelSpace


def class_distances_check(case: Case) -> Findings:
    """Measure `class_distances`, draw them, and warn of generated classes that lie nearer to another real class."""
    found = class_distances(case.generated, case.real, case.judge, case.space)
    sides = [name.partition(": ") for name in found.names]
    real = {j: label for j, (kind, _, label) in enumerate(sides) if kind == "real"}
    warnings = []
    for i, (kind, _, label) in enumerate(sides):
        nearest = real[min(real, key=lambda j: found.matrix[i, j])]
        if kind == "generated" and nearest != label:
            warnings.append(f"generated images of {label} lie nearer to real {nearest} than to their own class")
    scores = [
        score(
            f"class_distance:{a} to {b}",
            found.matrix[i, j],
            case.generated,
            case.real,
            case.judge,
            n_generated=found.n,
            n_real=found.n,
        )
        for (i, a), (j, b) in itertools.combinations(enumerate(found.names), 2)
    ]
    return Findings(
        scores=scores,
        figures=[
            Figure(
                name="class_distances",
                title="Classes by their Fréchet distances",
                caption="Multidimensional scaling: near on paper is near in distribution.",
                image=distances_plot(found.matrix, found.names),
            ),
            Figure(
                name="class_dendrogram",
                title="Which classes are alike",
                caption="Average linkage of the same distances.",
                image=dendrogram_plot(found.matrix, found.names),
            ),
        ],
        warnings=warnings,
    )


@dataclass(frozen=True, kw_only=True)
class ClassDistances:
    """Fréchet distances between all classes of the real and of the generated images.

    Attributes:
        names: Names of the K sets, ``real: CLASS`` and ``generated: CLASS``.
        matrix: Distances, symmetric, (K, K).
        n: Number of images of each set.
    """

    names: list[str]
    matrix: NDArray[np.float64]
    n: int


def class_distances(
    generated: FeatureSet, real: FeatureSet, network: FeatureNetwork, space: LabelSpace, *, least: int = CLASS_LEAST
) -> ClassDistances:
    """Compute Fréchet distances between classes, of sets cut to the size of the smallest.

    Classes with fewer than `least` images on either side are left out.

    Raises:
        ValueError: If fewer than two classes are left.

    Source: Segal et al. 2021: distances of classes to one another, by multidimensional scaling and dendrogram.
    """
    sets = {}
    for k, name in enumerate(space.names):
        for kind, part in (("real", real), ("generated", generated)):
            if part.labels is not None:
                _, positive = known_and_positive(part.labels, k)
                sets[f"{kind}: {name}"] = part.features[network.name][positive]
    small = {name.partition(": ")[2] for name, vectors in sets.items() if len(vectors) < least}
    sets = {name: vectors for name, vectors in sets.items() if name.partition(": ")[2] not in small}
    if len(sets) < 2:
        raise ValueError(f"fewer than two classes have {least} images on each side")
    n = min(len(vectors) for vectors in sets.values())
    generator = torch.Generator().manual_seed(0)
    picked = [vectors[torch.randperm(len(vectors), generator=generator)[:n]].double() for vectors in sets.values()]
    moments = [(vectors.mean(0), vectors.T.cov()) for vectors in picked]
    matrix = np.zeros((len(sets), len(sets)))
    for i, j in itertools.combinations(range(len(sets)), 2):
        matrix[i, j] = matrix[j, i] = max(0.0, float(frechet_distance(*moments[i], *moments[j])))
    return ClassDistances(names=list(sets), matrix=matrix, n=n)


MEANINGS = {
    "class_distance": Meaning(
        "labels", "Fréchet distance of classes", 0, "A generated class should lie nearest to its own real class."
    ),
}

CHECK = Check(run=class_distances_check, labels=True, train=False, packages=("matplotlib", "scipy"), meanings=MEANINGS)
