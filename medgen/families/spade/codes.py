"""Codes of styles and label maps: their distribution for each label, and the codes of given images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from medgen.labels import LabelSpace
from medgen.nn.label_vector import label_vector_length

_SMALLEST_SPREAD = 1e-4


class CodePrior(nn.Module):
    """Normal distributions of codes: one over all images and, where there are labels, one for each of them.

    Means are linear in the label vector: each class has its own, findings and numbers add up. A finding alone has one
    even if training images show it only beside others. Each dimension has its own standard deviation, for each class,
    or for all labels of other kinds together. Distributions are standard normal before `fit`.
    """

    def __init__(self, dim: int, space: LabelSpace) -> None:
        super().__init__()
        self.dim = dim
        self.space = space
        length = label_vector_length(space)
        kinds = 1 + (length if space.kind == "single" else min(length, 1))
        self.mean = nn.Parameter(torch.zeros(dim), requires_grad=False)
        self.slope = nn.Parameter(torch.zeros(length, dim), requires_grad=False)
        self.log_spread = nn.Parameter(torch.zeros(kinds, dim), requires_grad=False)

    @torch.no_grad()
    def fit(self, codes: Tensor, vectors: Tensor | None = None) -> None:
        """Fit the distributions to codes (N, dim) of training images and their label vectors (N, K), if there are any.

        Raises:
            ValueError: If there are fewer than two codes.
        """
        if len(codes) < 2:
            raise ValueError(f"a distribution of {len(codes)} codes has no spread; give at least two")
        codes = codes.double()
        mean = codes.mean(0)
        rest = codes - mean
        spreads = [rest.std(0)]
        slope = torch.zeros_like(self.slope, dtype=torch.float64)
        if vectors is not None and vectors.shape[1]:
            vectors = vectors.double()
            slope = torch.linalg.pinv(vectors, rtol=1e-6) @ rest
            residual = rest - vectors @ slope
            if self.space.kind == "single":
                groups = [residual[vectors[:, k] > 0] for k in range(vectors.shape[1])]
                spreads += [group.std(0) if len(group) > 1 else spreads[0] for group in groups]
            else:
                spreads.append(residual.std(0))
        self.mean.copy_(mean)
        self.slope.copy_(slope)
        self.log_spread.copy_(torch.stack(spreads).clamp(min=_SMALLEST_SPREAD).log())

    def moments(self, vectors: Tensor | None, n: int) -> tuple[Tensor, Tensor]:
        """Compute means and standard deviations, each (n, dim), for label vectors (n, K) or None."""
        spread = self.log_spread.exp()
        if vectors is None or not vectors.shape[1]:
            return self.mean.expand(n, -1), spread[0].expand(n, -1)
        known = (vectors != 0).any(1)
        kind = 1 + vectors.argmax(1) if self.space.kind == "single" else torch.ones_like(known, dtype=torch.int64)
        return self.mean + vectors @ self.slope, spread[torch.where(known, kind, 0)]

    def draw(self, vectors: Tensor | None, normal: Tensor) -> Tensor:
        """Draw codes (n, dim) from standard normal numbers (n, dim)."""
        mean, spread = self.moments(vectors, len(normal))
        return mean + spread * normal


@dataclass(frozen=True)
class StyleCodes:
    """Styles of images, as codes (n, style_dim) of the style encoder whose weights have a hash."""

    values: Tensor
    encoder: str

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, which: int | slice) -> StyleCodes:
        if isinstance(which, int):
            if not -len(self) <= which < len(self):  # which also ends a loop over styles
                raise IndexError(f"style {which} is asked for, but there are {len(self)}; use 0 to {len(self) - 1}")
            which = slice(which, which + 1 or None)
        return replace(self, values=self.values[which])

    def blend(self, other: StyleCodes, share: float | Tensor) -> StyleCodes:
        """Interpolate between these styles, at 0, and others of the same encoder, at 1.

        The share is one number, or one per image, (n,), such as ``torch.linspace(0, 1, 5)`` for 5 steps.

        Raises:
            ValueError: If the others are from another encoder, or the numbers of styles differ.
        """
        if not isinstance(other, StyleCodes):
            raise ValueError(f"other is {other!r:.80}; give styles, the result of encode_style")
        if other.encoder != self.encoder:
            raise ValueError("the styles to blend are of two checkpoints; encode both images with the same one")
        share = torch.as_tensor(share, dtype=self.values.dtype).reshape(-1, 1)
        counts = {count for count in (len(self), len(other), len(share)) if count > 1}
        if len(counts) > 1:
            raise ValueError(
                f"there are {len(self)} styles, {len(other)} others and {len(share)} shares; give equally many, or one"
            )
        return replace(self, values=self.values + share * (other.values - self.values))
