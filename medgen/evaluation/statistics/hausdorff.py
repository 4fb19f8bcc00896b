"""Hausdorff distance between label maps, in pixels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def hausdorff(predicted: Tensor, truth: Tensor, classes: int, *, quantile: float = 0.95) -> Tensor:
    """Hausdorff distance of each image and class but the background in pixels, (B, K - 1), of class numbers (B, H, W).

    Border pixels of a class have a neighbour above, below, left or right that is outside the class or the image. The
    distances from border pixels of one mask to the nearest border pixel of the other are reduced to a quantile: 0.95
    leaves out the farthest 5 %, such as stray pixels; 1 gives the maximum. The larger one of both directions counts. It
    is NaN if both masks lack the class, and the image diagonal, an upper limit, if one mask lacks it.

    Raises:
        ValueError: If shapes differ, class numbers are out of range, or `quantile` is not in (0, 1].

    Source: Huttenlocher et al. 1993, "Comparing images using the Hausdorff distance"; the quantile as in Menze et al.
    2015, "The multimodal brain tumor image segmentation benchmark (BRATS)".
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile is {quantile}; give a number above 0 and at most 1, which is the maximum")
    borders = [_borders(part) for part in paired_class_maps(predicted, truth, classes)]
    found = torch.full(borders[0].shape[:2], torch.nan, dtype=torch.float64)
    for image, k in (borders[0] | borders[1]).any(-1).any(-1).nonzero().tolist():
        a, b = (border[image, k].nonzero().double() for border in borders)
        found[image, k] = _distance(a, b, quantile) if len(a) and len(b) else math.hypot(*predicted.shape[-2:])
    return found


def paired_class_maps(predicted: Tensor, truth: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Convert two batches of masks of equal shape to `class_maps`.

    Raises:
        ValueError: If shapes differ, or class numbers are out of range.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"predicted is {tuple(predicted.shape)}, truth {tuple(truth.shape)}; give the same shapes")
    return class_maps(predicted, classes), class_maps(truth, classes)


def class_maps(masks: Tensor, classes: int) -> Tensor:
    """Binary map of each class but the background, (B, K - 1, H, W) bool, of class numbers (B, H, W).

    Raises:
        ValueError: If masks have another shape, or class numbers are out of range.
    """
    if masks.dim() != 3 or masks.is_floating_point():
        raise ValueError(
            f"masks are {masks.dtype} of shape {tuple(masks.shape)}; give whole numbers of shape (B, H, W)"
        )
    if masks.numel() and not 0 <= int(masks.min()) <= int(masks.max()) < classes:
        raise ValueError(
            f"masks hold the numbers {int(masks.min())} to {int(masks.max())}; {classes} classes are 0 to {classes - 1}"
        )
    return F.one_hot(masks.long(), classes).movedim(-1, 1)[:, 1:].bool()


def _borders(shown: Tensor) -> Tensor:
    """Pixels with one of four neighbours outside the class or the image, (B, K - 1, H, W) bool."""
    padded = F.pad(shown, (1, 1, 1, 1))
    rows, columns = padded[..., 1:-1], padded[..., 1:-1, :]
    inside = rows[..., :-2, :] & rows[..., 2:, :] & columns[..., :-2] & columns[..., 2:]
    return shown & ~inside


def _distance(a: Tensor, b: Tensor, quantile: float) -> float:
    """Distance between border pixels (n, 2) and (m, 2), float64."""
    try:
        from scipy.spatial import KDTree
    except ImportError as error:
        raise ImportError('Hausdorff distances need scipy; run: pip install "medgen[eval]"') from error
    directed = (KDTree(there.numpy()).query(here.numpy())[0] for here, there in ((a, b), (b, a)))
    return max(float(torch.from_numpy(distances).quantile(quantile)) for distances in directed)
