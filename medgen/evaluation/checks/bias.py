"""Bias: where a classifier looks, and what utility is left when borders or given boxes are hidden."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from medgen.evaluation.checks.case import CLASS_LEAST, Case, Check, Figure, Findings
from medgen.evaluation.checks.utility import P_MEANING, add_outcomes, feature_utility, gan_train, utility_setup
from medgen.evaluation.checks.variety import mean_image
from medgen.evaluation.judges.classifier import train_classifier
from medgen.evaluation.judges.saliency import (
    border_share,
    mean_saliency,
    saliency_picture,
    without_borders,
    without_boxes,
)
from medgen.evaluation.scores import Meaning, score
from medgen.evaluation.sets import known_and_positive
from medgen.images import image_grid


def bias(case: Case) -> Findings:
    """Draw saliency maps of each class, and repeat GAN-train and feature extraction with borders or boxes hidden."""
    setup = utility_setup(case)
    classifier = train_classifier([setup.train], setup.val, setup.recipe, case.space, device=setup.device)
    found, pictures, captions = Findings(), [], []
    for k, label in enumerate(case.space.names):
        sides = (("real", setup.test, case.held_out("test")), ("generated", setup.synthetic, case.generated))
        rows = {kind: data.rows[known_and_positive(data.labels[data.rows], k)[1]] for kind, data, _ in sides}
        if not all(len(shown) for shown in rows.values()):
            found.warnings.append(f"saliency: {label} is missing on one side")
            continue
        for kind, data, part in sides:
            saliency = mean_saliency(classifier, data, k)
            pictures.append(saliency_picture(mean_image(data.images, rows[kind]), saliency))
            captions.append(f"{kind} {label}")
            found.scores.append(
                score(
                    f"border_saliency_{kind}:{label}",
                    border_share(saliency),
                    part,
                    case.train,
                    judge=setup.recipe.network,
                    n_generated=len(rows[kind]),
                )
            )
    if pictures:
        found.figures.append(
            Figure(
                name="saliency",
                title="Where a classifier looks",
                caption="Grad-CAM of a classifier trained on real images, averaged over each class, on the mean image.",
                image=image_grid(
                    torch.stack(pictures), columns=2, captions=captions, scale=max(1, 128 // pictures[0].shape[-1])
                ),
                patients=_few_real(case, setup.test.labels[setup.test.rows]),
            )
        )
    boxes = case.settings.hide
    hidden = "boxes" if boxes else "borders"
    where = "The given boxes" if boxes else "The outer 15 % on each side, where burned-in letters are,"
    bare = replace(setup, change=partial(without_boxes, boxes=boxes) if boxes else without_borders)
    for name, title, outcomes in (
        ("gan_train", "Trained on synthetic, tested on real", gan_train(bare)),
        ("features", "Feature-extraction utility", feature_utility(bare)),
    ):
        name, title = f"{name}_without_{hidden}", f"{title}, without {hidden}"
        add_outcomes(found, case, name, title, outcomes, bare, f"{where} were hidden. ")
    return found


def _few_real(case: Case, labels: torch.Tensor) -> bool:
    """Whether the mean of some class is of so few real images that it shows a patient."""
    counts = [int(known_and_positive(labels, k)[1].sum()) for k in range(len(case.space.names))]
    return any(0 < count < CLASS_LEAST for count in counts)


_BORDERS = "The same with the outer 15 % on each side hidden."
_BOXES = "The same with the given boxes hidden."

MEANINGS = {
    "utility_features_without_borders": Meaning("bias", "Feature extraction without borders", 1, _BORDERS),
    "utility_gan_train_without_borders": Meaning("bias", "GAN-train without borders", 1, _BORDERS),
    "utility_features_without_boxes": Meaning("bias", "Feature extraction without boxes", 1, _BOXES),
    "utility_gan_train_without_boxes": Meaning("bias", "GAN-train without boxes", 1, _BOXES),
    "p_of_features_without": Meaning("bias", "p of the difference", 0, P_MEANING),
    "p_of_gan_train_without": Meaning("bias", "p of the difference", 0, P_MEANING),
    "border_saliency": Meaning(
        "bias", "Saliency near the border", 0, "Share in the outer 15 % on each side, which are 0.51 of a square."
    ),
}

CHECK = Check(run=bias, labels=True, packages=("matplotlib", "scipy", "sklearn"), meanings=MEANINGS)
