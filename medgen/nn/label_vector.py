"""Labels as vectors that networks read."""

from __future__ import annotations

import torch
from torch import Tensor

from medgen.labels import LabelSpace


def label_vector_length(space: LabelSpace) -> int:
    """Length of the vector: the number of names, or twice that for numbers."""
    return len(space) * (2 if space.kind == "continuous" else 1)


def label_vector(label: Tensor | None, space: LabelSpace, batch: int, device: torch.device) -> Tensor | None:
    """What the networks read of labels, (B, K), K being `label_vector_length`.

    A class is 1 at its place and 0 elsewhere, a finding is 1, one that is absent -1. A number is a point on the circle,
    by stereographic projection, -1 and 1 being opposite ones: the networks divide what they make of the vector by its
    length, so that 0.4 and 0.8 alone would be the same. What is unknown is 0, as is everything where no label is given.

    Args:
        label: Conditions, (B,) or (B, K), or None.
        space: What they mean.
        batch: Number of images.
        device: Where the vector is needed.

    Returns:
        None for networks without labels.
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
