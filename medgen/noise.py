"""One random stream per image: what makes sampling independent of batch size, process count and n."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from typing import Protocol, SupportsIndex

import torch
from torch import Tensor


def stream_seed(*key: SupportsIndex | str) -> int:
    """A 63-bit seed that depends on every part of ``key``; neighbouring keys give unrelated seeds."""
    plain = tuple(part if isinstance(part, str) else whole_number("a part of the seed", part) for part in key)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def whole_number(name: str, value: SupportsIndex) -> int:
    """A whole number of any library (``np.int64(3)``) as the int it equals, whose text is the same everywhere.

    Raises:
        ValueError: If it is none.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}; use a whole number") from None


class Noise(Protocol):
    """What a sampler draws from: a batch of independent random streams."""

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, (B, *shape)."""
        ...


class NoiseSource:
    """Independent random streams for a batch of images, keyed by (seed, index).

    Image ``index`` of ``seed`` gets the same numbers in whatever batch, process or run it is drawn. Numbers are drawn
    on the CPU in float32 and then moved, so that every device sees the same ones.

    Args:
        seed: The seed of the whole run.
        indices: The number of each image in the run; its length is the batch size B.
        device: Where the numbers are needed.
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
