"""Images of the bundled checkpoints, and checkpoint folders of format version 1, which changes of the code must keep.

`python -m tests.stored` draws the images of checkpoints that have none here; a retrained checkpoint gets new ones:
delete its file first. The folders of `version_1` are what medgen 0.1.0 wrote of each family's `tiny()` with random
weights, with images of them; no later code can write them again.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from medgen.checkpoint import read_info
from medgen.generator import Generator
from medgen.images import to_uint8
from medgen.zoo import bundled_folder, load

FOLDER = Path(__file__).parent
VERSION_1 = FOLDER / "version_1"
N, SEED = 4, 11

OPTIONS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "medfusion-cxr": (
        {"steps": 10},
        {"steps": 10, "eta": 0.0, "guidance": 2.0},
        {"steps": 6, "sampler": "ancestral"},
    ),
    "spade-cardiac": ({}, {"truncation_psi": 0.5}),
    "stylegan2-cxr": (
        {},
        {"truncation_psi": 0.7, "noise_mode": "fixed"},
        {"truncation_psi": 0.5, "truncation_cutoff": 3},
    ),
    "vqvae2-cxr": ({}, {"temperature": 0.9, "top_k": 20}),
}
"""Sampling options by checkpoint; each set is drawn with every label and, where it allows that, without one."""


def cases(name: str) -> Iterator[str]:
    """The keys of a checkpoint's arrays: number of the option set, a colon, and the label; empty without one."""
    names = cast("tuple[str, ...]", read_info(bundled_folder(name)).config["label_names"])
    for number, options in enumerate(OPTIONS[name]):
        labels = names if "guidance" in options else (*names, "")  # guidance needs a label
        yield from (f"{number}:{label}" for label in labels)


def drawn(name: str, key: str) -> np.ndarray:
    """The images (N, C, H, W) uint8 of one key, drawn now."""
    number, _, label = key.partition(":")
    images = _loaded(name).sample(N, label or None, seed=SEED, **OPTIONS[name][int(number)])
    return to_uint8(images).numpy()


@cache
def _loaded(name: str) -> Generator:
    return load(name)
