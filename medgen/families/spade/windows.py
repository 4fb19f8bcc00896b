"""The different neighbourhoods in label maps, each once.

What a convolution makes of a label map depends on the pixels around each pixel alone, and most pixels of a label map
have the same around them as many others: their own class. What is computed once for each different neighbourhood can
be looked up for all pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_MOST_CHANNELS = 62
"""So many bits fit into a number."""
_LARGEST_SHARE = 1 / 4
"""Of different neighbourhoods in all pixels; with more, looking up is hardly faster than computing."""


class Windows(NamedTuple):
    """What two convolutions in a row, of the same odd kernel size k, see of semantic maps.

    Attributes:
        patches: The V different inputs of the first one, (V, K x k x k), 0 outside the image.
        around: The U different inputs of the second one, (U, k x k) int64: each pixel's patch, from 1 on; 0 outside the
            image.
        numbers: Which of the U inputs a pixel has, (B, H, W) int64, from 0 on.
    """

    patches: Tensor
    around: Tensor
    numbers: Tensor


def find_windows(semantic: Tensor, kernel_size: int) -> Windows | None:
    """The different neighbourhoods in semantic maps.

    Args:
        semantic: (B, K, H, W).
        kernel_size: Of both convolutions, which add zeros around their inputs.

    Returns:
        None where they are of no use: if there are too many, or for values other than 0 and 1.
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
    """Which neighbourhood of so many pixels a side a pixel has, of (B, H, W) numbers; outside differs from all numbers.

    None if they cannot be told apart in 64 bits.
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
    """Equal values as equal numbers, from 0 on without gaps."""
    numbers: Tensor = torch.unique(values, return_inverse=True)[1]
    return numbers


def _places(numbers: Tensor) -> Tensor:
    """For each of the numbers in (B, H, W) a pixel that has it, (N,), counted over all images."""
    flat = numbers.flatten()
    places = torch.empty(int(flat.max()) + 1, dtype=torch.int64, device=flat.device)
    return places.scatter_(0, flat, torch.arange(len(flat), device=flat.device))


def _unfolded(values: Tensor, size: int) -> Tensor:
    """Each pixel with its neighbours: (..., H, W) to (..., H, W, size, size), 0 outside."""
    return F.pad(values, [size // 2] * 4).unfold(-2, size, 1).unfold(-2, size, 1)


def _at(values: Tensor, places: Tensor) -> Tensor:
    """Values (B, H, W, ...) at places that are counted over all images."""
    _, height, width = values.shape[:3]
    return values[places // (height * width), places // width % height, places % width]
