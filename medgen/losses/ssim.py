"""Structural similarity of two images or volumes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv1d, relu


def ssim(
    x: Tensor,
    y: Tensor,
    *,
    window: int = 11,
    sigma: float = 1.5,
    k: tuple[float, float] = (0.01, 0.03),
    nonnegative: bool = False,
) -> Tensor:
    """Structural similarity per image, (B,), averaged over pixels and channels: 1 if equal, around 0 if unrelated.

    Dimensions shorter than the window are not smoothed, so that small scales of deep supervision can be compared.

    Args:
        x: Images in [0, 1], (B, C, H, W) or (B, C, D, H, W).
        y: Images to compare with, in the shape of ``x``.
        window: Width of the Gaussian window in pixels, odd. There is no padding.
        sigma: Standard deviation of the window in pixels.
        k: Relative sizes of the constants that keep dark and flat regions stable.
        nonnegative: Clamp the mean of each channel to at least 0, so that gradients never reduce similarity.

    Raises:
        ValueError: If the shapes differ or are not those of images, or the window is not a positive odd number.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", eq. 13.
    """
    if x.shape != y.shape or x.dim() not in (4, 5):
        raise ValueError(f"ssim got shapes {tuple(x.shape)} and {tuple(y.shape)}; give two equal (B, C, H, W) or 3-D")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window is {window}; use an odd number of pixels")
    x, y = (images.to(torch.promote_types(images.dtype, torch.float32)) for images in (x, y))
    offset = torch.arange(window, dtype=x.dtype, device=x.device) - window // 2
    weight = (-offset.square() / (2 * sigma**2)).exp()
    weight = weight / weight.sum()

    mean_x, mean_y = _smooth(x, weight), _smooth(y, weight)
    mean_xx, mean_yy, mean_xy = mean_x * mean_x, mean_y * mean_y, mean_x * mean_y
    variance_x = _smooth(x * x, weight) - mean_xx
    variance_y = _smooth(y * y, weight) - mean_yy
    covariance = _smooth(x * y, weight) - mean_xy
    c1, c2 = k[0] ** 2, k[1] ** 2
    contrast_structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    luminance = (2 * mean_xy + c1) / (mean_xx + mean_yy + c1)
    per_channel = (luminance * contrast_structure).flatten(2).mean(-1)
    return (relu(per_channel) if nonnegative else per_channel).mean(1)


def _smooth(x: Tensor, weight: Tensor) -> Tensor:
    """Gaussian means along every spatial dimension that is at least as long as the window."""
    with torch.autocast(x.device.type, enabled=False):  # variances are small differences: half precision loses them
        for dim in range(2, x.dim()):
            if x.shape[dim] >= len(weight):
                moved = x.movedim(dim, -1)
                rows = conv1d(moved.reshape(-1, 1, moved.shape[-1]), weight.reshape(1, 1, -1))
                x = rows.reshape(*moved.shape[:-1], -1).movedim(-1, dim)
    return x
