"""Distinct neighbourhoods in label maps.

The output of a convolution at a pixel depends on its neighbourhood alone, and most neighbourhoods of a label map are
equal: all of one class. Outputs are computed once for each distinct neighbourhood and looked up for all pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_MOST_CHANNELS = 62
"""Most channels whose bits fit into a number."""
_LARGEST_SHARE = 1 / 4
"""Largest share of distinct neighbourhoods in all pixels; above, looking up is hardly faster than computing."""


class Windows(NamedTuple):
    """Distinct neighbourhoods for two convolutions in a row, of the same odd kernel size k.

    Attributes:
        patches: The V distinct inputs of the first one, (V, K x k x k), 0 outside the image.
        around: The U distinct inputs of the second one, (U, k x k) int64: numbers of patches from 1 on; 0 outside the
            image.
        numbers: Number of each pixel's input of the second one, (B, H, W) int64, from 0 on.
    """

    patches: Tensor
    around: Tensor
    numbers: Tensor


def find_windows(semantic: Tensor, kernel_size: int) -> Windows | None:
    """Find the distinct neighbourhoods in semantic maps (B, K, H, W), for convolutions padded with zeros.

    None if there are too many, or for values other than 0 and 1.
    """
    channels = semantic.shape[1]
    if channels > _MOST_CHANNELS or not bool(((semantic == 0) | (semantic == 1)).all()):
        return None
    bits = 1 << torch.arange(channels, device=semantic.device)
    classes = _numbered((semantic.movedim(1, -1).long() * bits).sum(-1))
    first = _neighbourhoods(classes, kernel_size)
    if first is None or int(first.max()) >= _LARGEST_SHARE * first.numel():
        return None
    second = _neighbourhoods(first, kernel_size)
    if second is None:
        return None
    patches = _at(_unfolded(semantic, kernel_size).movedim(1, 3), _places(first))  # (V, K, k, k)
    around = _at(_unfolded(first + 1, kernel_size), _places(second))  # (U, k, k)
    return Windows(patches.flatten(1), around.flatten(1), second)


def _neighbourhoods(numbers: Tensor, size: int) -> Tensor | None:
    """Number the neighbourhoods, of `size` pixels along each side, in (B, H, W); None if 64 bits are too few.

    Padding differs from all numbers.
    """
    numbers = F.pad(numbers + 1, [size // 2] * 4)
    for axis in (2, 1):
        base = int(numbers.max()) + 1
        if base**size >= 1 << 63:
            return None
        digits = numbers.unfold(axis, size, 1)
        numbers = _numbered((digits * base ** torch.arange(size, device=numbers.device)).sum(-1))
    return numbers


def _numbered(values: Tensor) -> Tensor:
    """Replace values by numbers, from 0 on without gaps."""
    numbers: Tensor = torch.unique(values, return_inverse=True)[1]
    return numbers


def _places(numbers: Tensor) -> Tensor:
    """Find a pixel for each of N numbers in (B, H, W), as a flat index (N,)."""
    flat = numbers.flatten()
    places = torch.empty(int(flat.max()) + 1, dtype=torch.int64, device=flat.device)
    return places.scatter_(0, flat, torch.arange(len(flat), device=flat.device))


def _unfolded(values: Tensor, size: int) -> Tensor:
    """Unfold the neighbourhood of each pixel: (..., H, W) to (..., H, W, size, size), padded by 0."""
    return F.pad(values, [size // 2] * 4).unfold(-2, size, 1).unfold(-2, size, 1)


def _at(values: Tensor, places: Tensor) -> Tensor:
    """Take values (B, H, W, ...) at flat indices."""
    _, height, width = values.shape[:3]
    return values[places // (height * width), places // width % height, places % width]
