"""Attention layers of UNets: attention alone ("linear") and a transformer block ("spatial")."""

from __future__ import annotations

from typing import Literal

from einops import rearrange
from torch import Tensor, nn

from medgen.nn.layers import LayerSpec, normalisation, zero_init

AttentionKind = Literal["none", "linear", "spatial"]
"""The published name "linear" refers to the projections; the cost is quadratic in the number of pixels."""

_HEADS = 8


class MultiHeadAttention(nn.Module):
    """Residual attention of every pixel to all pixels, or to a single embedding if one is given.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        channels: Channels of the feature map.
        norm: Normalisation of the feature map.
        dropout: Dropout probability after the output projection.
        embedding_dim: Length of the embedding; None for self-attention.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        norm: LayerSpec,
        dropout: float = 0.0,
        embedding_dim: int | None = None,
    ) -> None:
        super().__init__()
        inner = _inner_channels(channels)
        self.norm = normalisation(norm, spatial_dims, channels)
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(embedding_dim or channels, inner)
        self.to_v = nn.Linear(embedding_dim or channels, inner)
        self.to_out = zero_init(nn.Linear(inner, channels))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Feature map (B, C, *spatial) and embedding (B, E) or None to (B, C, *spatial)."""
        tokens = _to_tokens(self.norm(x))  # (B, N, C)
        source = tokens if embedding is None else embedding[:, None]  # (B, N or 1, C or E)
        q, k, v = (
            rearrange(projection, "b n (h d) -> b h n d", h=_HEADS)
            for projection in (self.to_q(tokens), self.to_k(source), self.to_v(source))
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)  # scale d^-0.5, half of it for q and half for k
        out = self.dropout(self.to_out(rearrange(mixed, "b h n d -> b n (h d)")))
        return x + _to_feature_map(out, like=x)


class FeedForward(nn.Module):
    """Residual perceptron on each pixel with a gated GELU and four times as many hidden channels.

    Source: Shazeer 2020, "GLU variants improve transformer", section 2.
    """

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, 2 * 4 * channels)
        self.dropout = nn.Dropout(dropout)
        self.contract = zero_init(nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) to the same shape."""
        value, gate = self.expand(self.norm(_to_tokens(x))).chunk(2, dim=-1)  # (B, N, 4C) each
        out = self.contract(self.dropout(value * nn.functional.gelu(gate)))
        return x + _to_feature_map(out, like=x)


class SpatialTransformer(nn.Module):
    """Residual transformer block: self-attention, attention to the embedding if there is one, perceptron.

    Source: Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models", appendix E.2.1.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        norm: LayerSpec,
        dropout: float = 0.0,
        embedding_dim: int | None = None,
    ) -> None:
        super().__init__()
        inner = _inner_channels(channels)
        self.norm = normalisation(norm, spatial_dims, channels)
        self.project_in = nn.Linear(channels, inner)
        self.self_attention = MultiHeadAttention(spatial_dims, inner, norm=norm, dropout=dropout)
        self.cross_attention = (
            MultiHeadAttention(spatial_dims, inner, norm=norm, dropout=dropout, embedding_dim=embedding_dim)
            if embedding_dim
            else None
        )
        self.feed_forward = FeedForward(inner, dropout)
        self.project_out = zero_init(nn.Linear(inner, channels))

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Feature map (B, C, *spatial) and embedding (B, E) or None to (B, C, *spatial)."""
        h = _to_feature_map(self.project_in(_to_tokens(self.norm(x))), like=x)
        h = self.self_attention(h)
        if self.cross_attention is not None and embedding is not None:
            h = self.cross_attention(h, embedding)
        h = self.feed_forward(h)
        return x + _to_feature_map(self.project_out(_to_tokens(h)), like=x)


def attention(
    kind: AttentionKind,
    spatial_dims: int,
    channels: int,
    *,
    norm: LayerSpec,
    dropout: float = 0.0,
    embedding_dim: int | None = None,
) -> MultiHeadAttention | SpatialTransformer | None:
    """Build the attention layer of one level; None for "none".

    Raises:
        ValueError: If the kind is unknown or the level has fewer channels than there are heads.
    """
    if kind == "none":
        return None
    if kind not in ("linear", "spatial"):
        raise ValueError(f"attention {kind!r} is unknown; use 'none', 'linear' or 'spatial'")
    layer = MultiHeadAttention if kind == "linear" else SpatialTransformer
    return layer(spatial_dims, channels, norm=norm, dropout=dropout, embedding_dim=embedding_dim)


def _inner_channels(channels: int) -> int:
    """Number of channels rounded down to a multiple of the number of heads."""
    if channels < _HEADS:
        raise ValueError(f"attention needs at least {_HEADS} channels, one per head; this level has {channels}")
    return channels // _HEADS * _HEADS


def _to_tokens(x: Tensor) -> Tensor:
    tokens: Tensor = rearrange(x, "b c ... -> b (...) c")
    return tokens


def _to_feature_map(tokens: Tensor, *, like: Tensor) -> Tensor:
    """Reshape tokens (B, N, C) to the spatial shape of `like` (B, any, *spatial): a view, channels last."""
    return tokens.transpose(1, 2).view(len(tokens), -1, *like.shape[2:])
