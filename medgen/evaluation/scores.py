"""What a measurement returns: a number with what it was measured on, and what the number means."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from medgen.evaluation.features import FeatureNetwork
from medgen.evaluation.intervals import Interval
from medgen.evaluation.sets import FeatureSet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """One number with what it was measured on; numbers of different settings do not compare.

    Attributes:
        name: Such as ``fd_efficientnet_lite0`` or ``precision``; a class or finding stands behind a colon.
        value: The number.
        low: Lower end of its 95 % confidence interval; None where none was made.
        high: Upper end.
        network: The feature network or classifier; empty where none was needed.
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


class Meaning(NamedTuple):
    """How to read a number.

    Attributes:
        section: Part of a report.
        title: What a table calls it.
        better: 1 where more is better, -1 where less is, 0 where neither is.
        text: One sentence for readers who do not know it.
    """

    section: str
    title: str
    better: int
    text: str


SECTIONS = ("fidelity", "variety", "labels", "utility", "privacy", "bias", "efficiency")

_P = "Wilcoxon's signed-rank test of the repetitions, Holm-corrected."

MEANINGS: dict[str, Meaning] = {
    "fd": Meaning(
        "fidelity", "Fréchet distance", -1, "Distance of the distributions; grows as images get fewer, 0 is best."
    ),
    "fd_infinity": Meaning(
        "fidelity",
        "Fréchet distance to infinity",
        -1,
        "The Fréchet distance followed to infinitely many generated images.",
    ),
    "kd": Meaning("fidelity", "Kernel distance", -1, "Distance of the distributions without a bias for few images."),
    "precision": Meaning("fidelity", "Precision", 1, "Share of generated images that lie among real ones."),
    "density": Meaning(
        "fidelity", "Density", 0, "How densely real images lie around generated ones; compare with the controls."
    ),
    "inception_score": Meaning(
        "fidelity", "Inception score", 1, "How clearly images show one class, and how evenly all classes come."
    ),
    "reconstruction_mse": Meaning(
        "fidelity", "Reconstruction error", -1, "Mean square error of the autoencoder on held-out real images."
    ),
    "reconstruction_psnr": Meaning(
        "fidelity", "Reconstruction PSNR", 1, "Of the autoencoder on held-out images, in dB."
    ),
    "reconstruction_ms_ssim": Meaning(
        "fidelity", "Reconstruction MS-SSIM", 1, "Structural likeness of the autoencoder's copies; 1 is perfect."
    ),
    "bits_per_dimension": Meaning(
        "fidelity", "Bits per dimension", -1, "Bits that each code of held-out real images costs; fewer are likelier."
    ),
    "bits_per_dimension_train": Meaning(
        "privacy", "Bits per dimension of train", 0, "Far below that of held-out images, images were learned by heart."
    ),
    "bits_per_dimension_generated": Meaning(
        "fidelity", "Bits per dimension of generated images", 0, "The generator's own; compare with real images."
    ),
    "outlier_auc": Meaning(
        "fidelity", "AUC of odd images", 1, "Whether images changed as said cost more bits than untouched ones."
    ),
    "f1": Meaning("variety", "F1", 1, "Harmonic mean of precision and recall."),
    "recall": Meaning(
        "variety", "Recall", 1, "Share of real images that lie among generated ones: the variety covered."
    ),
    "coverage": Meaning("variety", "Coverage", 1, "Share of real images with a generated one near by."),
    "mean_image_png_bytes": Meaning(
        "variety", "Mean image as PNG (bytes)", 0, "Varied images have a blurred mean, whose file is small."
    ),
    "mean_image_jpeg_bytes": Meaning(
        "variety", "Mean image as lossless JPEG (bytes)", 0, "Varied images have a blurred mean, whose file is small."
    ),
    "ms_ssim": Meaning(
        "variety", "MS-SSIM of pairs", 0, "Likeness of two random images of one class; compare with real."
    ),
    "label_auc": Meaning("labels", "AUC of labels", 1, "Whether a classifier of real images sees the asked-for label."),
    "class_distance": Meaning(
        "labels",
        "Fréchet distance of classes",
        0,
        "Sets of equal size; a generated class is to lie nearest to its own.",
    ),
    "consistency_dice": Meaning(
        "labels", "Dice of masks", 1, "How well a segmentation network of real images finds the asked-for masks."
    ),
    "consistency_dice_ratio": Meaning(
        "labels", "Dice of masks, by that of real", 0, "1 where images show their masks as clearly as real ones do."
    ),
    "consistency_hausdorff": Meaning(
        "labels", "Hausdorff distance of masks", -1, "How far that network's borders lie from the masks', in pixels."
    ),
    "consistency_hausdorff_ratio": Meaning(
        "labels", "Hausdorff distance, by that of real", 0, "1 where images place borders as well as real ones do."
    ),
    "style_dice": Meaning(
        "labels",
        "Dice of two styles",
        1,
        "What that network sees of one mask; 1 where a style leaves anatomy alone.",
    ),
    "style_intensity": Meaning(
        "labels",
        "Intensities of two styles",
        0,
        "How far a style moves them, in a range of 1; 0 where it moves none.",
    ),
    "prevalence": Meaning("labels", "Label prevalence", 0, "How often a classifier of real images sees the label."),
    "prevalence_difference": Meaning(
        "labels", "Prevalence, generated less real", 0, "Below 0, the generator drops the label."
    ),
    "utility_augmentation": Meaning(
        "utility", "Augmentation", 1, "AUC on real test patients of a classifier trained on what the row says."
    ),
    "utility_features": Meaning(
        "utility", "Feature extraction", 1, "AUC of a classifier with these features and a last layer of real images."
    ),
    "utility_gan_train": Meaning(
        "utility",
        "GAN-train",
        1,
        "AUC on real test patients of classifiers of generated images, or of as many real ones.",
    ),
    "utility_gan_test": Meaning(
        "utility", "GAN-test", 1, "AUC of a classifier of real images: does it tell the asked-for labels?"
    ),
    "utility_features_without_borders": Meaning(
        "bias", "Feature extraction without borders", 1, "The same with the outer 15 % on each side hidden."
    ),
    "utility_gan_train_without_borders": Meaning(
        "bias", "GAN-train without borders", 1, "The same with the outer 15 % on each side hidden."
    ),
    "utility_features_without_boxes": Meaning(
        "bias", "Feature extraction without boxes", 1, "The same with the given boxes hidden."
    ),
    "utility_gan_train_without_boxes": Meaning(
        "bias", "GAN-train without boxes", 1, "The same with the given boxes hidden."
    ),
    "p_of": Meaning("utility", "p of the difference", 0, _P),
    "p_of_features_without": Meaning("bias", "p of the difference", 0, _P),
    "p_of_gan_train_without": Meaning("bias", "p of the difference", 0, _P),
    "nearest_train_ratio": Meaning(
        "privacy", "Distance to train, against unseen", 0, "Median over that of unseen real images; below 1 is nearer."
    ),
    "near_train_share": Meaning(
        "privacy", "Share nearer to train than 99 % of unseen", -1, "About 0.01 where nothing is copied."
    ),
    "authenticity": Meaning(
        "privacy",
        "Authenticity",
        0,
        "Share of images that are no mere variants of a training image; compare with real.",
    ),
    "copying_z": Meaning("privacy", "Copying (C_T)", 0, "A z score; below -3 images crowd around training images."),
    "near_copies": Meaning(
        "privacy",
        "Near copies",
        -1,
        "Images that are a training image: moved, mirrored, turned, enlarged or of other contrast.",
    ),
    "border_saliency": Meaning(
        "bias",
        "Saliency near the border",
        0,
        "Share of saliency in the outer 15 % on each side, which are 0.51 of a square.",
    ),
    "seconds_per_image": Meaning("efficiency", "Seconds per image", -1, "Wall clock on the device of the report."),
    "peak_memory_mb": Meaning(
        "efficiency", "Peak memory (MB)", -1, "Of the GPU while sampling, or of the process since it began."
    ),
    "steps_fd": Meaning("efficiency", "Fréchet distance with fewer steps", -1, "Of as many images of the same seed."),
    "evaluations_per_image": Meaning(
        "efficiency", "Network evaluations per image", -1, "Calls of the sampled network."
    ),
    "parameters_million": Meaning("efficiency", "Parameters (million)", -1, "Of the whole generator."),
}


def meaning(name: str) -> Meaning:
    """How to read a score: that of the longest name in `MEANINGS` that this one begins with."""
    plain = name.partition(":")[0]
    known = [key for key in MEANINGS if plain == key or plain.startswith(f"{key}_")]
    return MEANINGS[max(known, key=len)] if known else Meaning("fidelity", name, 0, "")


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
    """A number with the two sets, and the network or the judge, it was measured with.

    `n_generated` and `n_real` say of how many images, where it is not of all.
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
    """Write ``metrics.json`` and ``metrics.csv``.

    Args:
        scores: The numbers.
        folder: Where to; made if missing.
        **about: What else the JSON file says, such as the source, the seed and the sampling options.
    """
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
