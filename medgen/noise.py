"""One random stream per image, so that samples do not depend on batch size, processes and n."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from typing import Protocol, SupportsIndex

import torch
from torch import Tensor


def stream_seed(*key: SupportsIndex | str) -> int:
    """Hash a key to a 63-bit seed."""
    plain = tuple(part if isinstance(part, str) else whole_number("a part of the seed", part) for part in key)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def whole_number(name: str, value: SupportsIndex) -> int:
    """Convert an integer of any library (``np.int64(3)``) to an int; ValueError if it is not one."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}; use a whole number") from None


class Noise(Protocol):
    """Source of random numbers for a sampler: a batch of independent streams."""

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, (B, *shape)."""
        ...


class NoiseSource:
    """Independent random streams for a batch of images, keyed by (seed, index).

    An image gets the same numbers in every batch, process and run. They are drawn on the CPU in float32 and then moved,
    so that all devices get the same.

    Args:
        seed: Seed of the run.
        indices: Number of each image in the run, (B,).
        device: Device of the numbers.
    """

    def __init__(self, seed: int, indices: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._streams = [torch.Generator().manual_seed(stream_seed("image", seed, index)) for index in indices]

    def __len__(self) -> int:
        return len(self._streams)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, (B, *shape) float32."""
        return torch.stack([torch.randn(shape, generator=stream) for stream in self._streams]).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), (B, *shape) float32."""
        return torch.stack([torch.rand(shape, generator=stream) for stream in self._streams]).to(self.device)
