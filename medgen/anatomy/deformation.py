"""Geometric changes of label maps: smooth random deformations, rotations, shifts, scalings and shears.

Each class is interpolated by itself and the largest weight wins, which keeps borders smoother than nearest-neighbour
interpolation. Pixels from beyond the border are background.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from medgen.anatomy.base import MaskTransform, Range, check_number, check_range, draw
from medgen.noise import NoiseSource


@dataclass(frozen=True)
class RandomElastic(MaskTransform):
    """Smooth random deformation.

    Distances between neighbouring pixels change by about ``0.7 * pixels / smoothness``. Hearts look natural up to 0.15
    and torn from about 0.25, even where their topology holds.

    Attributes:
        pixels: Root mean square of the shift along each axis, in pixels.
        smoothness: Standard deviation of the Gaussian that smooths white noise, in pixels.

    Source: Simard et al. 2003, "Best practices for convolutional neural networks applied to visual document analysis",
    section 2, whose strength alpha gives ``pixels = 0.16 * alpha / smoothness``.
    """

    pixels: Range
    smoothness: float

    def __post_init__(self) -> None:
        check_range("pixels", self.pixels, 0)
        check_number("smoothness", self.smoothness, 0.5)

    def _changed(self, masks: Tensor, noise: NoiseSource) -> Tensor:
        height, width = masks.shape[1:]
        strength = draw(noise, self.pixels)[:, None, None, None]
        shifts = (strength * smooth_noise(noise, 2, (height, width), self.smoothness)).to(masks.device)
        across, down = _pixel_grid(masks)
        return resampled(masks, across + shifts[:, 0], down + shifts[:, 1])


@dataclass(frozen=True)
class RandomAffine(MaskTransform):
    """Random rotation, shift, scaling and shear about the middle of the image; all are off by default.

    Attributes:
        rotation_degrees: Largest rotation to either side.
        translation: Largest shift to either side, as a fraction of height and width.
        scaling: Largest change of size, as a fraction: 0.1 gives 0.9 to 1.1.
        shear_degrees: Largest shear of the rows to either side.
    """

    rotation_degrees: float = 0.0
    translation: float = 0.0
    scaling: float = 0.0
    shear_degrees: float = 0.0

    def __post_init__(self) -> None:
        check_number("rotation_degrees", self.rotation_degrees, 0, 180)
        check_number("translation", self.translation, 0, 1)
        check_number("scaling", self.scaling, 0, 0.9)
        check_number("shear_degrees", self.shear_degrees, 0, 60)

    def _changed(self, masks: Tensor, noise: NoiseSource) -> Tensor:
        height, width = masks.shape[1:]
        drawn = (2 * noise.uniform(5) - 1).to(masks.device)[..., None, None].unbind(1)  # each (B, 1, 1) in [-1, 1)
        angle, shear = drawn[0] * math.radians(self.rotation_degrees), drawn[1] * math.radians(self.shear_degrees)
        size = 1 + drawn[2] * self.scaling
        across, down = _pixel_grid(masks)
        middle = ((width - 1) / 2, (height - 1) / 2)
        # Backwards from the result: shift, rotation and scaling, shear.
        across = across - middle[0] - drawn[3] * self.translation * width
        down = down - middle[1] - drawn[4] * self.translation * height
        turned = (angle.cos() * across + angle.sin() * down) / size
        down = (angle.cos() * down - angle.sin() * across) / size
        return resampled(masks, turned - shear.tan() * down + middle[0], down + middle[1])


def resampled(masks: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Resample label maps at given places.

    Args:
        masks: Class of each pixel, (B, H, W) int64.
        across: Source column of each pixel of the result, (B, H', W') float; 0 is the middle of the first.
        down: Source row of each pixel.

    Returns:
        (B, H', W') int64: the class with the largest bilinear weight, the smaller number if equal. A slight blur
        smooths corners; it does not change a map in which nothing moves.
    """
    height, width = masks.shape[1:]
    places = torch.stack([(2 * across + 1) / width - 1, (2 * down + 1) / height - 1], dim=-1)
    soften = torch.tensor([[1.0, 6, 1], [6, 36, 6], [1, 6, 1]], device=masks.device) / 64

    def weight(chosen: Tensor) -> Tensor:
        soft = F.conv2d(chosen[:, None].float(), soften[None, None], padding=1)
        return F.grid_sample(soft, places, align_corners=False)[:, 0]

    strongest = 1 - weight(masks != 0)  # outside the map is background
    result = torch.zeros_like(strongest, dtype=torch.int64)
    for label in masks.unique().tolist():
        if label:
            found = weight(masks == label)
            result = torch.where(found > strongest, label, result)
            strongest = torch.maximum(found, strongest)
    return result


def smooth_noise(noise: NoiseSource, fields: int, size: tuple[int, int], smoothness: float) -> Tensor:
    """White noise smoothed by a Gaussian, with mean 0 and variance 1 at every pixel: (B, fields, H, W) float32.

    ``smoothness`` is the standard deviation of the Gaussian in pixels; the result is on the noise's device.
    """
    reach = math.ceil(3 * smoothness)
    white = noise.normal(fields, size[0] + 2 * reach, size[1] + 2 * reach)
    rows, columns = (_gaussians(side, reach, smoothness).to(white.device) for side in size)
    with torch.autocast(white.device.type, enabled=False):
        # One map at a time, since the rounding of batched products may depend on the batch.
        return torch.stack([rows @ field @ columns.T for field in white])


def _gaussians(side: int, reach: int, smoothness: float) -> Tensor:
    """Gaussian weights of each pixel of a side, (side, side + 2 * reach), with unit norm."""
    places = torch.arange(side + 2 * reach) - reach
    weights = (-(places - torch.arange(side)[:, None]).square() / (2 * smoothness**2)).exp()
    norms: Tensor = weights.norm(dim=1, keepdim=True)
    return weights / norms


def _pixel_grid(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Column and row of each pixel, each (1, H, W)."""
    sides = [torch.arange(side, device=masks.device, dtype=torch.float32) for side in masks.shape[1:]]
    down, across = torch.meshgrid(*sides, indexing="ij")
    return across[None], down[None]
