"""A batch of training data."""

from typing import TypedDict

from torch import Tensor


class Batch(TypedDict, total=False):
    """Images with their labels and masks, as every loader yields them.

    Attributes:
        image: (B, C, H, W) float32 in [0, 1].
        label: (B,) int64 class, -1 for unknown; or (B, K) float32 findings or conditions, NaN for unknown. Left out
            where the data set has no labels.
        mask: (B, H, W) int64 class numbers. Left out where the data set has no masks.
        index: (B,) int64 position in the split, which identifies an image in every epoch.
    """

    image: Tensor
    label: Tensor
    mask: Tensor
    index: Tensor
