"""Design of a reader study: a blinded, balanced folder of questions."""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from torch import Tensor

from medgen.evaluation.sets import ImageSet
from medgen.images import save_png, to_pil

Design: TypeAlias = Literal["single", "grid", "pair", "timed"]
DESIGNS: tuple[Design, ...] = get_args(Design)

STUDY_FILE, KEY_FILE, ANSWERS_FILE, IMAGE_FOLDER = "study.json", "key.json", "answers.jsonl", "images"
FORMAT = 1
GRID = 6
IMAGES_PER_TRIAL = {"single": 1, "grid": GRID, "pair": 2, "timed": 1}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One question: a random name, and random file names of its images without suffix."""

    id: str
    images: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Images that a study draws from, and their name in the key, such as a checkpoint.

    Classes (n,) get equal shares among real and synthetic images; None without classes.
    """

    images: ImageSet | Tensor
    labels: Tensor | None
    origin: str


def check_plan(out: str | Path, design: str, trials: int) -> None:
    """Refuse a plan that `make_study` would refuse, before images are drawn for it.

    Raises:
        ValueError: If the design is unknown, or the number of trials does not suit it.
        FileExistsError: If the folder holds a study.
    """
    if design not in DESIGNS:
        raise ValueError(f"design is {design!r}; use {', '.join(DESIGNS)}")
    if trials < 2 or (IMAGES_PER_TRIAL[design] == 1 and trials % 2):
        raise ValueError(f"trials is {trials}; use an even number, since half of the images are real")
    if (Path(out) / KEY_FILE).exists():
        raise FileExistsError(f"{out} holds a study already; give another folder, or delete it with its answers")


def make_study(
    real: Candidates,
    synthetic: Candidates,
    out: str | Path,
    *,
    design: Design = "single",
    trials: int = 40,
    seed: int = 0,
) -> Path:
    """Write a study folder: questions and images under random names, and the key beside them.

    Half of the images are real, each class has equal shares on both sides, and no image is shown twice. Readers get
    ``study.json`` and ``images``, never ``key.json``.

    Args:
        real: Real images.
        synthetic: Synthetic images of equal size and channels.
        out: Target folder; must not hold a study.
        design: ``single`` images; ``grid`` of six, half of them real; ``pair`` of one real and one synthetic; or
            ``timed``: single images shown for a time that adapts to the reader.
        trials: Number of questions.
        seed: Seed of images and order; file names are secret and differ every time.

    Raises:
        ValueError: If the sets do not match or are too small.
        FileExistsError: If the folder holds a study.

    Source: Zhou et al. 2019, "HYPE: a benchmark for human eye perceptual evaluation of generative models".
    """
    check_plan(out, design, trials)
    folder = Path(out)
    shapes = [tuple(part.images[0:1].shape[1:]) for part in (real, synthetic)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"real images are {shapes[0]}, synthetic ones {shapes[1]} (channels, height, width)")
    each = trials * IMAGES_PER_TRIAL[design] // 2
    draw = random.Random(seed)
    rows = _balanced_rows(real, synthetic, each, draw)
    (folder / IMAGE_FOLDER).mkdir(parents=True, exist_ok=True)
    tokens: dict[str, list[str]] = {}
    truth: dict[str, dict[str, object]] = {}
    for kind, part, picked in (("real", real, rows[0]), ("synthetic", synthetic, rows[1])):
        tokens[kind] = [secrets.token_hex(8) for _ in picked]
        for token, row in zip(tokens[kind], picked, strict=True):
            save_png(to_pil(part.images[row : row + 1][0]), folder / IMAGE_FOLDER / f"{token}.png")
            label = None if part.labels is None else int(part.labels[row])
            truth[token] = {"kind": kind, "origin": part.origin, "row": row, "label": label}
    questions = _trials(design, tokens["real"], tokens["synthetic"], draw)
    channels, height, width = shapes[0]
    study = {
        "format": FORMAT,
        "design": design,
        "grey": channels == 1,
        "size": [height, width],
        "trials": [asdict(trial) for trial in questions],
    }
    (folder / STUDY_FILE).write_text(json.dumps(study, indent=1) + "\n")
    (folder / KEY_FILE).write_text(json.dumps({"format": FORMAT, "seed": seed, "images": truth}, indent=1) + "\n")
    return folder


def _balanced_rows(
    real: Candidates, synthetic: Candidates, each: int, draw: random.Random
) -> tuple[list[int], list[int]]:
    """Rows of `each` real and synthetic images, with equal shares of each class that both sides have."""
    sides = (real, synthetic)
    if any(part.labels is None for part in sides):
        pools: list[tuple[list[int], list[int]]] = [(list(range(len(real.images))), list(range(len(synthetic.images))))]
    else:
        classes = sorted(set(real.labels.tolist()) & set(synthetic.labels.tolist()) - {-1})  # type: ignore[union-attr]
        pools = [tuple((part.labels == c).nonzero()[:, 0].tolist() for part in sides) for c in classes]
    wanted = [each // len(pools) + (i < each % len(pools)) for i in range(len(pools))] if pools else []
    rows: tuple[list[int], list[int]] = ([], [])
    for pool, count in zip(pools, wanted, strict=True):
        for side, name in ((0, "real"), (1, "synthetic")):
            if len(pool[side]) < count:
                raise ValueError(
                    f"the study needs {count} {name} images of each class, but there are {len(pool[side])}; ask for "
                    "fewer trials"
                )
            rows[side].extend(draw.sample(pool[side], count))
    if len(rows[0]) < each:
        raise ValueError(
            "real and synthetic images have no class in common; a study needs the same classes on both sides"
        )
    return rows


def _trials(design: Design, real: Sequence[str], synthetic: Sequence[str], draw: random.Random) -> list[Trial]:
    if design in ("single", "timed"):
        groups = [[token] for token in (*real, *synthetic)]
    else:
        half = IMAGES_PER_TRIAL[design] // 2
        shuffled = [draw.sample(list(side), len(side)) for side in (real, synthetic)]
        groups = [
            [*shuffled[0][i : i + half], *shuffled[1][i : i + half]]
            for i in range(0, len(shuffled[0]) - half + 1, half)
        ]
    for group in groups:
        draw.shuffle(group)
    draw.shuffle(groups)
    return [Trial(id=secrets.token_hex(6), images=tuple(group)) for group in groups]
