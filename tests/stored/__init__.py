"""Images of the bundled checkpoints as they were drawn once, which changes of the code must not change.

`python -m tests.stored` draws those that are not stored yet. A retrained checkpoint gets new ones: delete its file.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
N, SEED = 4, 11

OPTIONS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "medfusion-cxr": (
        {"steps": 10},
        {"steps": 10, "eta": 0.0, "guidance": 2.0},
        {"steps": 6, "sampler": "ancestral"},
    ),
    "spade-cardiac": ({}, {"truncation": 0.5}),
    "stylegan2-cxr": ({}, {"truncation": 0.7, "layer_noise": "fixed"}, {"truncation": 0.5, "truncation_layers": 3}),
    "vqvae2-cxr": ({}, {"temperature": 0.9, "top_k": 20}),
}
"""Sampling options by checkpoint; each set is drawn for every label and, where it needs none, without."""


def cases() -> Iterator[tuple[str, str]]:
    """Checkpoint and key of every stored array: number of the option set, and the label; empty without one."""
    from medgen.zoo import load

    for name, sets in OPTIONS.items():
        names = load(name).label_space.names
        for number, options in enumerate(sets):
            labels = names if "guidance" in options else (*names, "")  # which needs a label
            yield from ((name, f"{number}:{label}") for label in labels)
