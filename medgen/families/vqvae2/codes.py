"""Codes of a split, encoded once into the cache: what the priors train on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from medgen.data.cache import ArrayCache
from medgen.data.encoded import encoded_split
from medgen.nn.vqvae2 import Codes

if TYPE_CHECKING:
    from medgen.data.base import ImageDataModule
    from medgen.data.image_table import Split
    from medgen.families.vqvae2.generator import VQVAE2Generator


class CodeStore:
    """Both maps of codes of every image of a split, read by image number from a memory map.

    With augmentation, each image is encoded several times under different changes, and epochs take turns.

    Args:
        cache: (N, variants, codes of an image).
        top_size: Height and width of the top map.
        bottom_size: Height and width of the bottom map.
    """

    def __init__(self, cache: ArrayCache, top_size: tuple[int, int], bottom_size: tuple[int, int]) -> None:
        self._cache = cache
        self._sizes = (top_size, bottom_size)

    @classmethod
    def open(
        cls, generator: VQVAE2Generator, data: ImageDataModule, split: Split, *, variants: int, device: torch.device
    ) -> CodeStore:
        """The store of a split and a generator's first stage; built if it is not in the cache yet.

        Raises:
            ValueError: If ``variants`` does not go with the data's augmentation.
        """
        config, autoencoder = generator.config, generator.autoencoder

        def encode(images: Tensor) -> Tensor:
            codes = autoencoder.encode(images).codes
            return torch.cat([codes.top.flatten(1), codes.bottom.flatten(1)], dim=1)

        count = int(np.prod(config.top_size) + np.prod(config.bottom_size))
        dtype = np.int16 if config.num_codes <= 2**15 else np.int32
        cache = encoded_split(
            "code", data, split, autoencoder, encode, shape=(count,), dtype=dtype, variants=variants, device=device
        )
        return cls(cache, config.top_size, config.bottom_size)

    def read(self, index: Tensor, epoch: int = 0) -> Codes:
        """Codes of the images with these numbers."""
        array = self._cache.array
        rows = torch.from_numpy(array[index.cpu().numpy(), epoch % array.shape[1]].astype(np.int64))
        top, bottom = self._sizes
        first, second = rows.split([int(np.prod(top)), int(np.prod(bottom))], dim=1)
        return Codes(first.unflatten(1, top), second.unflatten(1, bottom))
