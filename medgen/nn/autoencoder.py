"""Autoencoders with a Gaussian (KL) or quantised (VQ) latent.

Source: Mueller-Franzes et al. 2023, "A multimodal comparison of latent denoising diffusion probabilistic models and
generative adversarial networks for medical image synthesis".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from medgen.nn.blocks import ConvBlock, DownLevel, LevelsConfig, UpLevel, shrinkage
from medgen.nn.gaussian import reparameterise
from medgen.nn.layers import convolution
from medgen.nn.quantize import Quantized, VectorQuantizer

_LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(LevelsConfig):
    """Shape of an autoencoder; the defaults are those published for radiographs.

    Attributes:
        kind: ``kl`` for a Gaussian latent, ``vq`` for a quantised one.
        latent_channels: Channels of the latent; the paper found 4 too few and used 8.
        num_codes: Size of the codebook of ``vq``.

    Raises:
        ValueError: If the kind is unknown, or the levels do not fit each other.
    """

    kind: Literal["kl", "vq"] = "kl"
    latent_channels: int = 8
    num_codes: int = 8192
    hidden: tuple[int, ...] = (64, 128, 256, 512)
    extra_heads: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in ("kl", "vq"):
            raise ValueError(f"kind is {self.kind!r}; use 'kl' or 'vq'")
        if not 0 <= self.extra_heads < len(self.levels):
            raise ValueError(
                f"extra_heads {self.extra_heads} is out of range; {len(self.levels)} levels allow "
                f"0-{len(self.levels) - 1}"
            )

    @property
    def shrinkage(self) -> tuple[int, ...]:
        """Ratio of image to latent size along each dimension."""
        return shrinkage(self.levels, self.spatial_dims)


class Encoder(nn.Module):
    """A stem and a `DownLevel` for each level after the first."""

    def __init__(self, config: AutoencoderConfig, channels: int) -> None:
        super().__init__()
        levels = config.levels
        stem = levels[0]
        self.stem = ConvBlock(channels, stem.channels, config, kernel_size=stem.kernel_size, stride=stem.stride)
        self.levels = nn.ModuleList(DownLevel(fine.channels, coarse, config) for fine, coarse in pairwise(levels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, *spatial) to (B, hidden[-1], *latent)."""
        h: Tensor = self.stem(x)
        for level in self.levels:
            h = level(h)
        return h


class Decoder(nn.Module):
    """A stem at the last level, an `UpLevel` to each finer one, and output heads; `heads[i]` reads level i."""

    def __init__(self, config: AutoencoderConfig, channels: int) -> None:
        super().__init__()
        levels = config.levels
        self.stem = ConvBlock(config.latent_channels, levels[-1].channels, config)
        pairs = reversed(list(pairwise(levels)))  # coarse to fine
        self.levels = nn.ModuleList(UpLevel(coarse, fine, config) for fine, coarse in pairs)
        self.heads = nn.ModuleList(  # fine to coarse
            convolution(config.spatial_dims, level.channels, channels, kernel_size=1)
            for level in levels[: config.extra_heads + 1]
        )

    def forward(self, z: Tensor) -> Tensor:
        """(B, latent_channels, *latent) to (B, channels, *spatial)."""
        h = self.stem(z)
        for level in self.levels:
            h = level(h)
        out: Tensor = self.heads[0](h)
        return out

    def multiscale(self, z: Tensor) -> list[Tensor]:
        """Output of every head, full resolution first."""
        features = [self.stem(z)]
        for level in self.levels:
            features.append(level(features[-1]))
        return [head(h) for head, h in zip(self.heads, reversed(features), strict=False)]


class KLAutoencoder(nn.Module):
    """An autoencoder whose latent is one Gaussian per pixel and channel.

    Args:
        config: Shape of the networks.
        channels: Channels of the images.
        out_channels: Channels of the reconstructions; None for those of the images.
    """

    def __init__(self, config: AutoencoderConfig, channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        moments = 2 * config.latent_channels
        self.encoder = Encoder(config, channels)
        self.to_moments = nn.Sequential(
            convolution(config.spatial_dims, config.hidden[-1], moments),
            convolution(config.spatial_dims, moments, moments, kernel_size=1),
        )
        self.decoder = Decoder(config, channels if out_channels is None else out_channels)

    def encode_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, clamped to [-30, 20], of the latent of images (B, C, *spatial) in [-1, 1]."""
        mean, logvar = self.to_moments(self.encoder(x)).chunk(2, dim=1)
        return mean, logvar.clamp(*_LOGVAR_RANGE)

    def encode_mean(self, x: Tensor) -> Tensor:
        """Mean of the latent (B, latent_channels, *latent) of images (B, C, *spatial) in [-1, 1]."""
        return self.encode_moments(x)[0]

    def encode(self, x: Tensor, noise: Tensor) -> Tensor:
        """Sample the latent of images (B, C, *spatial) in [-1, 1]; `noise` is standard normal, shaped as the latent."""
        return reparameterise(*self.encode_moments(x), noise)

    def settle(self, z: Tensor) -> Tensor:
        """Input of the decoder for a latent (B, latent_channels, *latent): the latent itself."""
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Decode a latent (B, latent_channels, *latent) to images (B, C, *spatial), about [-1, 1] but unbounded."""
        out: Tensor = self.decoder(z)
        return out

    def decode_multiscale(self, z: Tensor) -> list[Tensor]:
        """Decode a latent at every resolution that has an output head, full resolution first."""
        return self.decoder.multiscale(z)


class VQAutoencoder(nn.Module):
    """An autoencoder whose latent pixels are entries of a learned codebook.

    Args:
        config: Shape of the networks; `latent_channels` is the length of each code.
        channels: Channels of the images.
        out_channels: Channels of the reconstructions; None for those of the images.
        beta: Weight of the commitment term.
    """

    def __init__(
        self, config: AutoencoderConfig, channels: int, out_channels: int | None = None, *, beta: float = 0.25
    ) -> None:
        super().__init__()
        self.encoder = Encoder(config, channels)
        self.to_latent = convolution(config.spatial_dims, config.hidden[-1], config.latent_channels, kernel_size=1)
        self.quantizer = VectorQuantizer(config.num_codes, config.latent_channels, beta)
        self.decoder = Decoder(config, channels if out_channels is None else out_channels)

    def encode(self, x: Tensor) -> Tensor:
        """Latent (B, latent_channels, *latent), not yet quantised, of images (B, C, *spatial) in [-1, 1]."""
        out: Tensor = self.to_latent(self.encoder(x))
        return out

    def encode_mean(self, x: Tensor) -> Tensor:
        """Alias of `encode`, as the latent is deterministic; see `KLAutoencoder.encode_mean`."""
        return self.encode(x)

    def quantize(self, z: Tensor) -> Quantized:
        """Nearest codes of a latent, their indices, and the codebook loss."""
        out: Quantized = self.quantizer(z)
        return out

    def settle(self, z: Tensor) -> Tensor:
        """Input of the decoder for a latent (B, latent_channels, *latent): the nearest codes."""
        return self.quantize(z).latent

    def decode(self, z: Tensor) -> Tensor:
        """Quantise and decode a latent."""
        out: Tensor = self.decoder(self.settle(z))
        return out

    def decode_multiscale(self, z: Tensor) -> tuple[list[Tensor], Quantized]:
        """Decode a latent at every resolution that has an output head; also returns its quantisation."""
        quantized = self.quantize(z)
        return self.decoder.multiscale(quantized.latent), quantized


def make_autoencoder(
    config: AutoencoderConfig, channels: int, out_channels: int | None = None
) -> KLAutoencoder | VQAutoencoder:
    """Build an autoencoder of the config's kind."""
    return (VQAutoencoder if config.kind == "vq" else KLAutoencoder)(config, channels, out_channels)
