"""Vector quantisation: continuous vectors to the nearest entry of a learned codebook."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What a quantiser makes of a latent."""

    latent: Tensor
    """The nearest codes, (B, D, *spatial); gradients pass straight through to the input."""
    indices: Tensor
    """Which codes they are, (B, *spatial) int64."""
    loss: Tensor
    """Codebook term + beta * commitment term, a scalar."""


def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the closest codebook row (N, D) to each vector (M, D), (M,) int64; the first one on a tie.

    The squared distance is expanded, |v|^2 + |c|^2 - 2 v.c, which needs one matrix product instead of M * N * D
    differences.
    """
    distance = vectors.pow(2).sum(dim=1, keepdim=True) + codebook.pow(2).sum(dim=1) - 2 * vectors @ codebook.T
    return distance.argmin(dim=1)


class VectorQuantizer(nn.Module):
    """A codebook trained by its own gradient.

    Args:
        num_codes: Number of codebook entries.
        dim: Length of each entry, the channels of the latent.
        beta: Weight of the commitment term, which pulls the latent to its code.

    Source: van den Oord et al. 2017, "Neural discrete representation learning", eq. 3.
    """

    def __init__(self, num_codes: int, dim: int, beta: float = 0.25) -> None:
        super().__init__()
        self.beta = beta
        self.codebook = nn.Parameter(torch.empty(num_codes, dim).uniform_(-1 / num_codes, 1 / num_codes))

    def forward(self, latent: Tensor) -> Quantized:
        """Quantises a latent (B, D, *spatial).

        Distances are taken in the codebook's precision, without autocast: in bf16 near codes would change places.
        """
        latent = latent.to(self.codebook.dtype)
        vectors = rearrange(latent, "b d ... -> (b ...) d")
        with torch.autocast(latent.device.type, enabled=False):
            index = nearest_code(vectors.detach(), self.codebook.detach())
        indices = index.view(latent.shape[0], *latent.shape[2:])
        codes = self.lookup(indices)
        commitment = (codes.detach() - latent).pow(2).mean()
        loss = (codes - latent.detach()).pow(2).mean() + self.beta * commitment
        straight_through = latent + (codes - latent).detach()
        return Quantized(straight_through, indices, loss)

    def lookup(self, indices: Tensor) -> Tensor:
        """The codes (B, D, *spatial) of codebook indices (B, *spatial)."""
        return nn.functional.embedding(indices, self.codebook).movedim(-1, 1)
