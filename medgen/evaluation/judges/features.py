"""Feature networks: images to feature vectors, with preprocessing and range check."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medgen.images import check_images as check_images
from medgen.images import from_uint8, to_uint8

if TYPE_CHECKING:
    from collections.abc import Sequence

Interpolation = Literal["bilinear", "bicubic", "tensorflow bilinear"]


class FeatureNetwork(nn.Module):
    """A frozen network that turns images (B, C, H, W) in [0, 1] into feature vectors (B, dim).

    Images are rounded to 8 bits first, so that a generator and a folder of its saved images get equal numbers.

    Args:
        name: Name in results.
        network: Maps normalised RGB images (B, 3, *size) to vectors (B, dim).
        size: Height and width in pixels that images are resized to.
        dim: Length of a feature vector.
        mean: Subtracted from each RGB channel in [0, 1].
        std: Divisor of each channel afterwards.
        interpolation: How images are resized, with antialiasing; ``tensorflow bilinear`` leaves it to `network`, for
            the network of the FID.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        size: tuple[int, int],
        dim: int,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        interpolation: Interpolation = "bicubic",
    ) -> None:
        super().__init__()
        self.name = name
        # Convolutions on CPUs take half the time in this layout.
        self.network = network.eval().requires_grad_(requires_grad=False).to(memory_format=torch.channels_last)
        self.size = size
        self.dim = dim
        self.interpolation = interpolation
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    @property
    def slug(self) -> str:
        """The name as part of a file name or of a logged key."""
        return self.name.replace(":", "_")

    @property
    def resize(self) -> str:
        """Interpolation and size, such as ``bicubic 224x224``, which are part of the meaning of a number."""
        return f"{self.interpolation} {self.size[0]}x{self.size[1]}"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of name, preprocessing and weights, for the keys of a feature cache."""
        digest = hashlib.sha256(f"{self.name}|{self.resize}".encode())
        for key, value in self.state_dict().items():
            digest.update(key.encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Feature vectors (B, dim) float32 of images (B, C, H, W) in [0, 1]; one channel is repeated to three.

        Raises:
            ValueError: If the images are not floating point in [0, 1] with one or three channels.
        """
        check_images(images)
        rounded = from_uint8(to_uint8(images)).to(self.mean.device).expand(-1, 3, -1, -1)
        with torch.autocast(self.mean.device.type, enabled=False):  # same numbers inside bf16 training
            features: Tensor = self.network((self._resized(rounded) - self.mean) / self.std).float()
        return features

    def _resized(self, images: Tensor) -> Tensor:
        if self.interpolation == "tensorflow bilinear":  # done by the network, in TensorFlow's own way
            return images
        return F.interpolate(images, size=self.size, mode=self.interpolation, antialias=True).clamp(0, 1)
