"""Reconstruction: the loss of the autoencoder of a generator, before anything is generated."""

from __future__ import annotations

from collections.abc import Callable

import torch

from medgen.evaluation.checks.case import Case, Check, Figure, Findings
from medgen.evaluation.checks.controls import pick_matched
from medgen.evaluation.checks.variety import LEAST_SIDE, ms_ssim
from medgen.evaluation.run import compare, measurable, measure
from medgen.evaluation.scores import Meaning, Score, score
from medgen.evaluation.sets import RealImages, batches
from medgen.evaluation.statistics.intervals import bootstrap_mean
from medgen.images import from_uint8, image_grid, to_uint8


def reconstruction(case: Case) -> Findings:
    """Measure mean square error, PSNR and MS-SSIM of copies of real images, and metrics of copied training images.

    Metrics of copied training images are the best that a model with this autoencoder can reach.

    Source: Mueller-Franzes et al. 2023, table 2: on the reference and on an independent test set.
    """
    generator = case.generator
    copy = getattr(generator, "reconstruct", None)
    found = Findings()
    if copy is None:
        return found

    def copied(images: torch.Tensor) -> torch.Tensor:
        return from_uint8(to_uint8(copy(images.to(generator.device)).clamp(0, 1).cpu()))

    sides = {"": case.real}
    if case.train_apart:
        sides["_train"] = case.train
        found.scores += _copies_as_images(case, copied)
    examples: list[torch.Tensor] = []
    for suffix, part in sides.items():
        errors, similarity = [], []
        for images in batches(part.images, range(part.n), case.settings.batch_size):
            copies = copied(images)
            errors.append((copies - images).square().flatten(1).mean(1))
            if min(images.shape[-2:]) >= LEAST_SIDE:
                similarity.append(ms_ssim(copies, images))
            if not examples:
                examples = [images[:8], copies[:8]]
        mse = torch.cat(errors)
        numbers = {
            "mse": bootstrap_mean(mse),
            "psnr": bootstrap_mean(-10 * mse.clamp(min=1e-10).log10()),
        }
        if similarity:
            numbers["ms_ssim"] = bootstrap_mean(torch.cat(similarity))
        found.scores += [
            score(f"reconstruction_{name}{suffix}", value, case.generated, part) for name, value in numbers.items()
        ]
    found.figures.append(
        Figure(
            name="reconstructions",
            title="What the autoencoder keeps",
            caption="Held-out real images above, their copies below.",
            image=image_grid(torch.cat(examples), columns=len(examples[0]), scale=max(1, 96 // examples[0].shape[-1])),
            patients=True,
        )
    )
    return found


def _copies_as_images(case: Case, copied: Callable[[torch.Tensor], torch.Tensor]) -> list[Score]:
    """Measure the metrics on copies of as many training images as were generated."""
    train, reference = RealImages(case.datamodule, "train"), RealImages(case.datamodule, case.settings.split)
    images = pick_matched(train, reference, case.generated.n, seed=case.settings.seed)
    copies = torch.cat([copied(part) for part in images.split(case.settings.batch_size)])
    name = f"train, through the autoencoder of {case.generated.name}"
    sets = compare(copies, case.datamodule, [case.judge], split=case.settings.split, name=name)
    return list(measure(*sets, case.judge, measurable(case.settings.metrics, min(sets[0].n, sets[1].n))).values())


MEANINGS = {
    "reconstruction_mse": Meaning(
        "fidelity", "Reconstruction error", -1, "Mean square error of copies of held-out images."
    ),
    "reconstruction_psnr": Meaning("fidelity", "Reconstruction PSNR", 1, "Of copies of held-out images, in dB."),
    "reconstruction_ms_ssim": Meaning(
        "fidelity", "Reconstruction MS-SSIM", 1, "Structural similarity of the autoencoder's copies; 1 is perfect."
    ),
}

CHECK = Check(run=reconstruction, train=False, generator=True, meanings=MEANINGS)
