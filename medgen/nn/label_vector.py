"""Encoding of labels as network inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from medgen.labels import LabelSpace


def label_vector_length(space: LabelSpace) -> int:
    """Length K of a `label_vector`: the number of names, or twice that for continuous labels."""
    return len(space) * (2 if space.kind == "continuous" else 1)


def label_vector(label: Tensor | None, space: LabelSpace, batch: int, device: torch.device) -> Tensor | None:
    """Encode labels as vectors (B, K), K being `label_vector_length`; None for networks without labels.

    Classes are one-hot; findings are 1 if present and -1 if absent; unknown values, and all without a label, are 0. A
    number is projected stereographically onto the circle, with -1 and 1 opposite: networks normalise the embedding of
    the vector, after which 0.4 and 0.8 alone would be equal.

    Args:
        label: Conditions, (B,) or (B, number of names), or None.
        space: Kind and names of the labels.
        batch: Number of images.
        device: Device of the result.
    """
    if space.kind == "none":
        return None
    if label is None:
        return torch.zeros(batch, label_vector_length(space), device=device)
    if space.kind == "single":
        places = torch.arange(len(space), device=device)
        return (label[:, None] == places).float()  # unknown, -1, is none of them
    known = label.float() * 2 - 1
    if space.kind == "continuous":
        number = label.float()
        known = torch.cat([1 - number.square(), 2 * number], dim=1) / (1 + number.square()).repeat(1, 2)
    return known.nan_to_num(0.0)
