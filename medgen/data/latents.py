"""Latents of a training set, encoded once into the cache for diffusion training."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from medgen.data.encoded import EncodedSet
from medgen.nn.autoencoder import KLAutoencoder, VQAutoencoder
from medgen.nn.gaussian import reparameterise

if TYPE_CHECKING:
    from medgen.data.base import ImageDataModule

_BATCH = 64


class LatentStore:
    """Latents of every training image, encoded if they are not in the cache yet.

    Of a ``kl`` autoencoder, mean and log-variance are stored, so that every epoch draws anew.

    ``latent_shape`` is channels, height and width of a latent, ``variants`` the number of augmented versions of each
    image: 1 without augmentation, else more.

    Raises:
        ValueError: If ``variants`` does not go with the data's augmentation.
    """

    def __init__(
        self,
        autoencoder: KLAutoencoder | VQAutoencoder,
        data: ImageDataModule,
        *,
        latent_shape: tuple[int, int, int],
        variants: int,
        device: torch.device,
    ) -> None:
        self._has_moments = isinstance(autoencoder, KLAutoencoder)
        channels, height, width = latent_shape
        self.encoded = EncodedSet.open(
            "latent",
            data,
            "train",
            autoencoder,
            partial(_encode, autoencoder),
            shape=(channels * (2 if self._has_moments else 1), height, width),
            dtype=np.float32,
            variants=variants,
            device=device,
        )

    def draw(self, index: Tensor, epoch: int) -> Tensor:
        """Draw latents (B, c, h, w) of the images with these numbers, from torch's global random state."""
        stored = self.encoded.read(index, epoch)
        if not self._has_moments:
            return stored
        mean, logvar = stored.chunk(2, dim=1)
        return reparameterise(mean, logvar, torch.randn_like(mean))

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every channel, (c, 1, 1) each."""
        array = self.encoded.array
        channels = array.shape[2] // (2 if self._has_moments else 1)
        over = (0, 1, 3, 4)
        # In parts, since the store may exceed the memory; in two passes, since E[x^2] - E[x]^2 would lose digits.
        parts = [array[start : start + _BATCH] for start in range(0, len(array), _BATCH)]
        count = array[:, :, 0].size
        mean = sum(part[:, :, :channels].sum(over, dtype=np.float64) for part in parts) / count
        variance = np.zeros(channels)
        for part in parts:
            variance += np.square(part[:, :, :channels] - mean[:, None, None]).sum(over)
            if self._has_moments:  # law of total variance
                variance += np.exp(part[:, :, channels:]).sum(over, dtype=np.float64)
        mean_and_std = torch.from_numpy(np.stack([mean, np.sqrt(variance / count)])).float()
        return mean_and_std[0, :, None, None], mean_and_std[1, :, None, None]


def _encode(autoencoder: KLAutoencoder | VQAutoencoder, images: Tensor) -> Tensor:
    """Encode images (B, C, H, W) in [-1, 1] as the store keeps them."""
    if isinstance(autoencoder, KLAutoencoder):
        return torch.cat(autoencoder.encode_moments(images), dim=1)
    return autoencoder.encode(images)
