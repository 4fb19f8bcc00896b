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


class MovingAverageQuantizer(nn.Module):
    """A codebook whose entries follow the mean of the vectors they stand for, without a gradient of their own.

    Averages are kept in float32 whatever the precision around them, and are taken over all processes of a distributed
    run, so that every process has the same codebook.

    Args:
        num_codes: Number of codebook entries.
        dim: Length of each entry, the channels of the latent.
        decay: Share of the old average that a step keeps.
        restart_below: Entries used less often than this, on average per step, are put on vectors of the batch; 0, as
            published, leaves unused ones where they are.
        eps: Keeps entries without any vector finite.

    Source: van den Oord et al. 2017, "Neural discrete representation learning", appendix A.1.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self, num_codes: int, dim: int, *, decay: float = 0.99, restart_below: float = 0.0, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.decay = decay
        self.restart_below = restart_below
        self.eps = eps
        start = torch.randn(num_codes, dim)
        self.register_buffer("codebook", start)
        self.register_buffer("counts", torch.zeros(num_codes))
        self.register_buffer("sums", start.clone())

    def forward(self, latent: Tensor) -> Quantized:
        """Quantises a latent (B, D, *spatial); in training the codebook moves afterwards.

        The loss is the commitment term alone.
        """
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.float()
            vectors = rearrange(latent, "b d ... -> (b ...) d")
            index = nearest_code(vectors.detach(), self.codebook)
            indices = index.view(latent.shape[0], *latent.shape[2:])
            codes = self.lookup(indices)
            if self.training:
                self._move(vectors.detach(), index)
            commitment = (codes - latent).pow(2).mean()
        return Quantized(latent + (codes - latent).detach(), indices, commitment)

    def lookup(self, indices: Tensor) -> Tensor:
        """The codes (B, D, *spatial) of codebook indices (B, *spatial)."""
        return nn.functional.embedding(indices, self.codebook).movedim(-1, 1)

    def usage(self) -> tuple[Tensor, Tensor]:
        """Share of the codes that are in use, and their perplexity: how many would be as varied if equally common."""
        share = self.counts / self.counts.sum().clamp(min=self.eps)
        entropy = -(share * share.clamp(min=1e-12).log()).sum()
        return (share * len(share) > 0.01).float().mean(), entropy.exp()

    @torch.no_grad()
    def _move(self, vectors: Tensor, index: Tensor) -> None:
        used = torch.zeros_like(self.counts).index_add_(0, index, torch.ones_like(index, dtype=self.counts.dtype))
        total = torch.zeros_like(self.sums).index_add_(0, index, vectors)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(used)
            torch.distributed.all_reduce(total)
        self.counts.lerp_(used, 1 - self.decay)
        self.sums.lerp_(total, 1 - self.decay)
        n = self.counts.sum()
        smoothed = (self.counts + self.eps) / (n + len(self.counts) * self.eps) * n
        self.codebook.copy_(self.sums / smoothed[:, None])
        self._restart(vectors)

    def _restart(self, vectors: Tensor) -> None:
        """Put codes that are hardly used on vectors of the batch, the same in all processes."""
        dead = self.counts < self.restart_below
        if not bool(dead.any()):
            return
        picked = vectors[torch.randint(len(vectors), (len(dead),), device=vectors.device)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(picked, src=0)
        self.codebook.copy_(torch.where(dead[:, None], picked, self.codebook))
        self.counts.masked_fill_(dead, self.restart_below)
        self.sums.copy_(torch.where(dead[:, None], self.codebook * self.restart_below, self.sums))
