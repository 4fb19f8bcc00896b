"""Splits encoded once by a frozen first stage into the cache, so that later stages never run it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor, nn

from medgen.data.cache import ArrayCache, content_key, open_or_build

if TYPE_CHECKING:
    from medgen.data.base import ImageDataModule
    from medgen.data.image_table import Split

logger = logging.getLogger(__name__)

_BATCH = 64


class EncodedSet:
    """Encoded images of a split, read by number from a cache (N, variants, ...).

    With augmentation, each image is encoded in several variants, and epochs take them in turn.
    """

    def __init__(self, cache: ArrayCache) -> None:
        self.array = cache.array

    def read(self, index: Tensor, epoch: int = 0) -> Tensor:
        """Read the encoded images (B, ...) with these numbers."""
        return torch.from_numpy(self.array[index.cpu().numpy(), epoch % self.array.shape[1]])

    @classmethod
    def open(
        cls,
        name: str,
        data: ImageDataModule,
        split: Split,
        encoder: nn.Module,
        encode: Callable[[Tensor], Tensor],
        *,
        shape: Sequence[int],
        dtype: DTypeLike,
        variants: int,
        device: torch.device,
    ) -> Self:
        """Open the encoded split; encode it if it is not in the cache yet.

        The name, the images and the weights of the encoder make the key. ``encode`` runs the encoder on images
        (B, C, H, W) in [-1, 1] and returns (B, *shape). Images are augmented if the split is ``train`` and the data
        module augments; they then need more than one of ``variants``, else exactly one.

        Raises:
            ValueError: If ``variants`` does not go with the data's augmentation.
        """
        if variants < 1:
            raise ValueError(f"{name}_variants is {variants}; use at least 1")
        augments = split == "train" and data.augment is not None
        if (variants > 1) != augments:
            has = "augments" if augments else "does not augment"
            raise ValueError(
                f"{name}_variants is {variants}, but the data {has}; use several exactly with augmentation"
            )
        dataset = data.dataset(split)
        if not augments:
            dataset.augmentation = None
        whole = (len(dataset), variants, *shape)
        augment = repr(data.augment) if augments else ""
        key = content_key(
            name, data.fingerprint(split), augment, data.seed, variants, weights_hash(encoder.state_dict())
        )

        def fill(array: NDArray[np.generic]) -> None:
            logger.info("encoding %d images in %d variants", len(dataset), variants)
            encoder.to(device).eval()
            with torch.inference_mode():
                for variant in range(variants):
                    for start in range(0, len(dataset), _BATCH):
                        rows = range(start, min(start + _BATCH, len(dataset)))
                        batch = dataset.__getitems__([(variant, row) for row in rows])
                        images = batch["image"].to(device).mul(2).sub(1)
                        array[start : rows.stop, variant] = encode(images).cpu().numpy()

        return cls(open_or_build(key, whole, dtype, fill, folder=data.cache_folder))


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Hash of the names and values of weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
