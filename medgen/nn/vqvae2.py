"""VQ-VAE-2 autoencoder, whose latent is a coarse and a fine map of codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medgen.config import Config
from medgen.nn.quantize import MovingAverageQuantizer, Quantized

TOP_STRIDE = 8
"""Image pixels per code of the top map, along each side."""
BOTTOM_STRIDE = 4
"""Image pixels per code of the bottom map, along each side."""


@dataclass(frozen=True, kw_only=True)
class VQVAE2AutoencoderConfig(Config):
    """Shape of the autoencoder; the defaults are the published ones.

    Attributes:
        hidden_channels: Channels of all layers between image and codes.
        residual_blocks: Residual blocks of each encoder and decoder.
        residual_channels: Channels within residual blocks.
        code_dim: Length of a code.
        num_codes: Size of each codebook.
    """

    hidden_channels: int = 128
    residual_blocks: int = 2
    residual_channels: int = 32
    code_dim: int = 64
    num_codes: int = 512


class Codes(NamedTuple):
    """Code maps of images: top (B, H / 8, W / 8) and bottom (B, H / 4, W / 4), int64."""

    top: Tensor
    bottom: Tensor


class Quantization(NamedTuple):
    """Quantised latents of both levels."""

    top: Quantized
    bottom: Quantized

    @property
    def codes(self) -> Codes:
        """Codebook indices of both levels."""
        return Codes(self.top.indices, self.bottom.indices)

    @property
    def loss(self) -> Tensor:
        """Commitment terms of both levels, a scalar."""
        return self.top.loss + self.bottom.loss


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, hidden, 3, padding=1)
        self.narrow = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        out: Tensor = x + self.narrow(F.relu(self.widen(F.relu(x))))
        return out


class _Encoder(nn.Sequential):
    """Strided convolutions, then residual blocks."""

    def __init__(self, in_channels: int, config: VQVAE2AutoencoderConfig, *, stride: int) -> None:
        half, full = config.hidden_channels // 2, config.hidden_channels
        steps = [nn.Conv2d(in_channels, half, 4, stride=2, padding=1), nn.ReLU()]
        if stride == 4:
            steps += [nn.Conv2d(half, full, 4, stride=2, padding=1), nn.ReLU()]
        last = nn.Conv2d(full if stride == 4 else half, full, 3, padding=1)
        blocks = [_ResidualBlock(full, config.residual_channels) for _ in range(config.residual_blocks)]
        super().__init__(*steps, last, *blocks, nn.ReLU())


class _Decoder(nn.Sequential):
    """Residual blocks, then transposed convolutions."""

    def __init__(self, in_channels: int, out_channels: int, config: VQVAE2AutoencoderConfig, *, stride: int) -> None:
        half, full = config.hidden_channels // 2, config.hidden_channels
        blocks = [_ResidualBlock(full, config.residual_channels) for _ in range(config.residual_blocks)]
        steps: list[nn.Module] = [nn.ConvTranspose2d(full, out_channels, 4, stride=2, padding=1)]
        if stride == 4:
            steps = [
                nn.ConvTranspose2d(full, half, 4, stride=2, padding=1),
                nn.ReLU(),
                nn.ConvTranspose2d(half, out_channels, 4, stride=2, padding=1),
            ]
        super().__init__(nn.Conv2d(in_channels, full, 3, padding=1), *blocks, nn.ReLU(), *steps)


class VQVAE2(nn.Module):
    """Two-level VQ-VAE: a top map for the layout, and a bottom map, conditioned on the top one, for details.

    Args:
        config: Shape of the networks.
        channels: Channels of the images.
        decay: Decay of the codebooks' moving averages.

    Source: Razavi et al. 2019, "Generating diverse high-fidelity images with VQ-VAE-2", section 3.1 and algorithm 1.
    """

    def __init__(self, config: VQVAE2AutoencoderConfig, channels: int = 3, *, decay: float = 0.99) -> None:
        super().__init__()
        dim, width = config.code_dim, config.hidden_channels
        self.encode_bottom = _Encoder(channels, config, stride=4)
        self.encode_top = _Encoder(width, config, stride=2)
        self.to_top = nn.Conv2d(width, dim, 1)
        self.top_codes = MovingAverageQuantizer(config.num_codes, dim, decay=decay)
        self.decode_top = _Decoder(dim, dim, config, stride=2)
        self.to_bottom = nn.Conv2d(dim + width, dim, 1)
        self.bottom_codes = MovingAverageQuantizer(config.num_codes, dim, decay=decay)
        self.upsample_top = nn.ConvTranspose2d(dim, dim, 4, stride=2, padding=1)
        self.decode_both = _Decoder(2 * dim, channels, config, stride=4)

    def encode(self, images: Tensor) -> Quantization:
        """Encode images (B, C, H, W) in [-1, 1], sides divisible by 8; updates the codebooks in training."""
        fine = self.encode_bottom(images)  # (B, channels, H / 4, W / 4)
        top = self.top_codes(self.to_top(self.encode_top(fine)))  # (B, dim, H / 8, W / 8)
        bottom = self.bottom_codes(self.to_bottom(torch.cat([self.decode_top(top.latent), fine], dim=1)))
        return Quantization(top, bottom)

    def decode(self, top: Tensor, bottom: Tensor) -> Tensor:
        """Decode latents (B, dim, H / 8, W / 8) and (B, dim, H / 4, W / 4) to images (B, C, H, W), about [-1, 1]."""
        images: Tensor = self.decode_both(torch.cat([self.upsample_top(top), bottom], dim=1))
        return images

    def decode_codes(self, codes: Codes) -> Tensor:
        """Decode codes to images (B, C, H, W), about [-1, 1]."""
        return self.decode(self.top_codes.lookup(codes.top), self.bottom_codes.lookup(codes.bottom))

    def forward(self, images: Tensor) -> tuple[Tensor, Quantization]:
        """Reconstruct images (B, C, H, W) in [-1, 1]; also returns their quantisation."""
        quantized = self.encode(images)
        return self.decode(quantized.top.latent, quantized.bottom.latent), quantized
