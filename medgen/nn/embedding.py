"""Embeddings of time steps and labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from medgen.labels import LabelSpace

NO_LABELS = LabelSpace()


def sinusoidal_embedding(
    t: Tensor, dim: int, *, max_period: float = 10_000, shift: float = 1, cosine_first: bool = False
) -> Tensor:
    """Sines and cosines of time at geometrically falling frequencies.

    Args:
        t: Time steps, (B,).
        dim: Length of the result; an odd length ends in a zero.
        max_period: The slowest frequency is about 1 / max_period.
        shift: Subtracted from the number of frequencies in the exponent: 1 makes the slowest one exactly
            1 / max_period.
        cosine_first: Whether the cosines come before the sines.

    Returns:
        (B, dim) float32 in [-1, 1].

    Source: Vaswani et al. 2017, "Attention is all you need", section 3.5.
    """
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(max_period) / (half - shift) * steps)
    angles = t[:, None].float() * frequencies  # (B, half)
    waves = [angles.cos(), angles.sin()] if cosine_first else [angles.sin(), angles.cos()]
    return nn.functional.pad(torch.cat(waves, dim=1), (0, dim % 2))


class ClassEmbedding(nn.Module):
    """One learned vector per class; label -1 (none) gives the zero vector."""

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_classes, dim)

    def forward(self, label: Tensor) -> Tensor:
        """Class indices (B,) int64 to (B, dim)."""
        vector: Tensor = self.table(label.clamp(min=0))
        return vector * (label >= 0)[:, None]


class ConditionEmbedding(nn.Module):
    """Embedding of several findings or continuous values, any of which may be unknown.

    A linear layer sees each value (0 where unknown) and whether it is known; a row without known values gives the zero
    vector.
    """

    def __init__(self, num_conditions: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(2 * num_conditions, dim)

    def forward(self, label: Tensor) -> Tensor:
        """Values (B, K) float32, NaN where unknown, to (B, dim)."""
        known = ~label.isnan()
        features = torch.cat([label.nan_to_num(0.0), known.to(label.dtype)], dim=1)
        vector: Tensor = self.project(features.to(self.project.weight.dtype))
        return vector * known.any(dim=1, keepdim=True)


def label_embedding(label_space: LabelSpace, dim: int) -> ClassEmbedding | ConditionEmbedding | None:
    """Build the embedding of a kind of label; None without labels."""
    if label_space.kind == "none":
        return None
    return (ClassEmbedding if label_space.kind == "single" else ConditionEmbedding)(len(label_space), dim)
