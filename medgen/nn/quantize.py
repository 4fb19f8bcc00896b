"""Vector quantisation: maps vectors to the nearest entry of a learned codebook."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn


class Quantized(NamedTuple):
    """A quantised latent.

    Attributes:
        latent: Nearest codes, (B, D, *spatial); gradients pass straight through to the input.
        indices: Codebook indices, (B, *spatial) int64.
        loss: Codebook term + beta * commitment term, a scalar.
    """

    latent: Tensor
    indices: Tensor
    loss: Tensor


def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the closest codebook row (N, D) to each vector (M, D), (M,) int64; the first one on a tie."""
    # |v - c|^2 = |v|^2 + |c|^2 - 2 v.c needs one matrix product instead of M * N * D differences.
    distance = vectors.pow(2).sum(dim=1, keepdim=True) + codebook.pow(2).sum(dim=1) - 2 * vectors @ codebook.T
    return distance.argmin(dim=1)


class _Quantizer(nn.Module):
    codebook: Tensor

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes (B, D, *spatial) of codebook indices (B, *spatial)."""
        return nn.functional.embedding(indices, self.codebook).movedim(-1, 1)

    def _nearest(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (M, D) of a latent and their codebook indices (B, *spatial); in bf16 near codes would swap places."""
        vectors = rearrange(latent.detach(), "b d ... -> (b ...) d")
        with torch.autocast(latent.device.type, enabled=False):
            index = nearest_code(vectors, self.codebook.detach())
        return vectors, index.view(latent.shape[0], *latent.shape[2:])


class VectorQuantizer(_Quantizer):
    """A codebook trained by its own gradient.

    Args:
        num_codes: Number of codebook entries.
        dim: Length of each entry, equal to the channels of the latent.
        beta: Weight of the commitment term, which pulls the latent to its code.

    Source: van den Oord et al. 2017, "Neural discrete representation learning", eq. 3.
    """

    def __init__(self, num_codes: int, dim: int, beta: float = 0.25) -> None:
        super().__init__()
        self.beta = beta
        self.codebook = nn.Parameter(torch.empty(num_codes, dim).uniform_(-1 / num_codes, 1 / num_codes))

    def forward(self, latent: Tensor) -> Quantized:
        """Quantise a latent (B, D, *spatial), in the codebook's precision."""
        latent = latent.to(self.codebook.dtype)
        _, indices = self._nearest(latent)
        codes = self.lookup(indices)
        commitment = (codes.detach() - latent).pow(2).mean()
        loss = (codes - latent.detach()).pow(2).mean() + self.beta * commitment
        return Quantized(latent + (codes - latent).detach(), indices, loss)


class MovingAverageQuantizer(_Quantizer):
    """A codebook whose entries follow the moving average of the vectors assigned to them, without gradients.

    Averages are in float32 under any precision and are taken over all processes of a distributed run.

    Args:
        num_codes: Number of codebook entries.
        dim: Length of each entry, equal to the channels of the latent.
        decay: Share of the old average that a step keeps.
        restart_below: Entries used less often than this, on average per step, are reset to vectors of the batch; 0, as
            published, never resets entries.
        eps: Keeps unused entries finite.

    Source: van den Oord et al. 2017, "Neural discrete representation learning", appendix A.1.
    """

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
        """Quantise a latent (B, D, *spatial), then in training update the codebook; the loss is the commitment term."""
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.float()
            vectors, indices = self._nearest(latent)
            codes = self.lookup(indices)
            if self.training:
                self._update(vectors, indices.flatten())
            commitment = (codes - latent).pow(2).mean()
        return Quantized(latent + (codes - latent).detach(), indices, commitment)

    def usage(self) -> tuple[Tensor, Tensor]:
        """Share of the codes that are in use, and the perplexity of the codes (the effective number in use)."""
        share = self.counts / self.counts.sum().clamp(min=self.eps)
        entropy = -(share * share.clamp(min=1e-12).log()).sum()
        return (share * len(share) > 0.01).float().mean(), entropy.exp()

    @torch.no_grad()
    def _update(self, vectors: Tensor, index: Tensor) -> None:
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
        """Reset rarely used codes to vectors of the batch, the same in all processes."""
        dead = self.counts < self.restart_below
        if not bool(dead.any()):
            return
        picked = vectors[torch.randint(len(vectors), (len(dead),), device=vectors.device)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(picked, src=0)
        self.codebook.copy_(torch.where(dead[:, None], picked, self.codebook))
        self.counts.masked_fill_(dead, self.restart_below)
        self.sums.copy_(torch.where(dead[:, None], self.codebook * self.restart_below, self.sums))
