"""Report of generators or folders of images, side by side."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

import medgen
from medgen.evaluation.checks import CHECKS, load_check
from medgen.evaluation.checks.case import Case, Findings, Settings
from medgen.evaluation.judges.classifier import RECIPES, ClassifierRecipe
from medgen.evaluation.judges.features import FeatureNetwork
from medgen.evaluation.judges.networks import DEFAULT_NETWORK, feature_network
from medgen.evaluation.judges.saliency import Box, checked_boxes
from medgen.evaluation.judges.segmentation import SegmenterRecipe
from medgen.evaluation.metrics import METRICS
from medgen.evaluation.report.page import Judged, all_scores, write_page
from medgen.evaluation.run import Opened, check_size, compare, measurable, measure, opened, warn_of_bias
from medgen.evaluation.scores import Score
from medgen.evaluation.sets import RealImages, StoredImages, known_and_positive, open_source
from medgen.generator import Generator

if TYPE_CHECKING:
    from medgen.data.base import ImageDataModule
    from medgen.data.image_table import Split

logger = logging.getLogger(__name__)

FEW = 1000
"""Number of images below which Fréchet distances depend strongly on that number."""


def report(
    sources: str | Path | Sequence[str | Path],
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
    recipe: str | ClassifierRecipe = "small",
    folds: int = 8,
    seeds: int = 1,
    hide: Sequence[Box] = (),
    segmenter: SegmenterRecipe | None = None,
    patients: bool = True,
    command: str = "",
    **options: Any,
) -> list[Score]:
    """Measure, and write ``index.html``, ``metrics.json``, ``metrics.csv`` and the pictures.

    Images are drawn once and kept in a temporary file. Findings are written after each check, so that an error loses
    nothing that took long.

    Args:
        sources: Checkpoint folders, names of the zoo or the Hub, or folders of images; one or several.
        datamodule: The real data.
        out: Target folder; created if missing.
        metrics: Names of `METRICS` and `CHECKS`; by default all that the data allow.
        n: Number of generated images; by default that of the real images.
        split: The real images to compare with.
        seed: Seed of all random draws.
        network: The feature network or its name.
        weights: File with weights, for a network without bundled weights.
        batch_size: Images drawn and processed together.
        device: Device of the networks; by default the best available.
        recipe: Training of the classifiers of ``utility`` and ``bias``, or its name in `RECIPES`.
        folds: Repetitions of each training, on other training patients.
        seeds: Repetitions of each fold.
        hide: Boxes that ``bias`` hides, see `Settings`.
        segmenter: Training of the segmentation network of ``consistency``; None for the default.
        patients: Whether to show real images; without them the report can be shared where the data may not.
        command: Command line shown on the page, to repeat the report.
        **options: Sampling options of the family, such as ``steps``.

    Raises:
        ValueError: If a metric, a network or a model is unknown, or the sets do not match or are too small.
    """
    names = [sources] if isinstance(sources, (str, Path)) else list(sources)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice} is given twice; give each once")
    if not names:
        raise ValueError("there is nothing to judge; give a checkpoint or a folder of images")
    check_names(metrics)
    for argument, value, least in (("batch_size", batch_size, 1), ("folds", folds, 2), ("seeds", seeds, 1)):
        if value < least:
            raise ValueError(f"{argument} is {value}; use at least {least}")
    if Path(out).resolve() in [Path(name).resolve() for name in names]:
        raise ValueError(f"out is {str(out)!r}, which is also what is judged; give another folder")
    if isinstance(recipe, str) and recipe not in RECIPES:
        raise ValueError(f"recipe {recipe!r} is unknown; use {', '.join(RECIPES)}")
    where = device or _best_device()
    check_device(where)
    real = RealImages(datamodule, split)
    found = []
    for name in names:
        thing = open_source(name, channels=datamodule.channels)
        own = options if isinstance(thing, Generator) else {}
        found.append(opened(thing, datamodule, real, n=n, seed=seed, options=own))
    if options and all(item.generator is None for item in found):
        raise ValueError(f"sampling options {', '.join(options)} are for generators, but images were given")
    chosen = [_chosen(metrics, datamodule, split, min(item.n, item.n_real), item) for item in found]
    judge = network if isinstance(network, FeatureNetwork) else feature_network(network, weights=weights)
    settings = Settings(
        judge=judge.to(where),
        split=split,
        seed=seed,
        batch_size=batch_size,
        recipe=RECIPES[recipe] if isinstance(recipe, str) else recipe,
        folds=folds,
        seeds=seeds,
        hide=checked_boxes(hide),
        segmenter=segmenter or SegmenterRecipe(),
    )
    judged: list[Judged] = []
    about = {
        "medgen_version": medgen.__version__,
        "torch_version": torch.__version__,
        "command": command,
        "split": split,
        "seed": seed,
        "options": options,
        "revisions": {item.name: item.model.revision for item in found if item.model is not None},
        "data": {part: datamodule.fingerprint(cast("Split", part)) for part in split.split("+")},
    }
    with tempfile.TemporaryDirectory(prefix="medgen-report-") as folder:
        for i, (item, names_of_checks) in enumerate(zip(found, chosen, strict=True)):
            bias = []
            if item.model is not None:
                item.model.to(where)
                bias = warn_of_bias(judge.name, item.model.about.trained_with)
            path = Path(folder) / f"{i}.raw"
            fewest = min(item.n, item.n_real)
            # Checks such as controls need metrics, even if only the check is requested.
            asked = [name for name in names_of_checks if name in METRICS]
            chosen_metrics = asked or measurable(METRICS, fewest)
            case = _case(
                item, datamodule, replace(settings, metrics=chosen_metrics), path, options if item.generator else {}
            )
            judged.append(Judged(name=case.generated.name, case=case, findings={"metrics": _metrics(case, asked)}))
            warnings = judged[-1].findings["metrics"].warnings
            warnings += bias
            if item.n != found[0].n:
                warnings.append(
                    f"{item.n} images beside {found[0].n} of {found[0].name}: their Fréchet distances do not compare"
                )
            write_page(judged, out, about, patients=patients)
            for name in names_of_checks:
                if name in CHECKS and not (i and load_check(name).shared):
                    judged[-1].findings[name] = _findings(name, case, asked=name in (metrics or ()))
                    write_page(judged, out, about, patients=patients)
    return all_scores(judged)


def _findings(name: str, case: Case, *, asked: bool) -> Findings:
    """Run a check; one that was not requested by name and turns out impossible only gives a warning."""
    try:
        return _finite(load_check(name).run(case))
    except ValueError as error:
        if asked:
            raise
        logger.warning("%s is left out: %s", name, error)
        return Findings(warnings=[f"{name} is left out: {error}"])


def _finite(found: Findings) -> Findings:
    """Replace scores that could not be computed by warnings."""
    lost = [score.name for score in found.scores if not math.isfinite(score.value)]
    found.scores = [score for score in found.scores if math.isfinite(score.value)]
    found.warnings += [f"{name} could not be computed: too few or equal images" for name in lost]
    return found


def _case(
    found: Opened, datamodule: ImageDataModule, settings: Settings, path: Path, options: Mapping[str, Any]
) -> Case:
    """Draw and store the images, and compute features."""
    check = partial(check_size, datamodule=datamodule, name=found.name)
    stored = StoredImages(found.images, found.n, path, batch_size=settings.batch_size, check=check)
    pixels = feature_network("pixels").to(settings.judge.mean.device)
    generated, real = compare(
        replace(found, images=stored),
        datamodule,
        [settings.judge, pixels],
        split=settings.split,
        batch_size=settings.batch_size,
    )
    return Case(
        opened=found, generated=generated, real=real, datamodule=datamodule, settings=settings, options=dict(options)
    )


def _metrics(case: Case, metrics: Sequence[str]) -> Findings:
    found = Findings(scores=list(measure(case.generated, case.real, case.judge, metrics).values()))
    found = _finite(found)
    fewest = min(case.generated.n, case.real.n)
    if fewest < FEW:
        found.warnings.append(
            f"{fewest} images are few: Fréchet distances are inflated, and compare only with others of {fewest} images"
        )
    for k, name in enumerate(case.space.names if case.space.kind in ("single", "multi") else ()):
        for part in (case.generated, case.real):
            if part.labels is not None and not bool(known_and_positive(part.labels, k)[1].any()):
                found.warnings.append(f"there is no image of {name} among the {part.name} images")
    return found


def check_names(metrics: Sequence[str] | None) -> None:
    """Refuse unknown names of metrics and checks.

    Raises:
        ValueError: With all known names.
    """
    known = [*METRICS, *CHECKS]
    if unknown := [name for name in metrics or () if name not in known]:
        raise ValueError(f"metric {unknown[0]!r} is unknown; use {', '.join(known)}")


def _chosen(
    metrics: Sequence[str] | None, datamodule: ImageDataModule, split: str, fewest: int, judged: Opened
) -> list[str]:
    """Requested metrics and checks, or all that the data allow.

    Raises:
        ValueError: If a requested check does not suit the data or the number of images.
        ImportError: If it needs a package that is missing.
    """
    asked = [*METRICS, *CHECKS] if metrics is None else metrics
    chosen = []
    for name in asked:
        blocked: Exception | None = None
        if name in CHECKS:
            blocked = load_check(name).obstacle(name, judged, datamodule, split)
        elif fewest < METRICS[name].least:
            blocked = ValueError(f"{name} needs at least {METRICS[name].least} images in each set; there are {fewest}")
        if blocked is None:
            chosen.append(name)
        elif metrics is not None:
            raise blocked
        else:
            logger.warning("%s is left out: %s", name, blocked)
    return chosen


def check_device(device: str) -> None:
    """Refuse a device that is not available.

    Raises:
        ValueError: With its name.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {device!r}, which is not there ({str(error).splitlines()[0]}); use cpu") from error


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
