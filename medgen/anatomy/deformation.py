"""Label maps moved in the plane: smooth random deformations, and rotations, shifts, scalings and shears.

Each class is interpolated by itself and the strongest wins, so that borders stay nearly as smooth as those that people
draw; the nearest neighbour, with which `medgen.data.augmentation` moves masks along with images, leaves them ragged.
What comes in from outside is background, since there is no image whose rim it would have to match.
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
    """A smooth random deformation.

    Distances between pixels near each other change by about ``0.7 * pixels / smoothness``. Up to 0.15, hearts look like
    hearts; from about 0.25 on they look torn, also where their topology holds.

    Attributes:
        pixels: Root mean square of the shift along each axis, in pixels.
        smoothness: Standard deviation of the Gaussian that white noise is smoothed by, in pixels.

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
    """A random rotation, shift, scaling and shear about the middle of the image; each is off unless asked for.

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
    """Label maps whose pixels are taken from given places of others.

    Args:
        masks: Class of each pixel, (B, H, W) int64.
        across: Column that each pixel of the result comes from, (B, H', W') float, in pixels; 0 is the middle of the
            first.
        down: Row that it comes from.

    Returns:
        (B, H', W') int64: the class with the largest bilinear weight, after a blur that smooths some of the corners of
        resampling and is too weak to change a map in which nothing moves. The smaller number where two are equal.
    """
    height, width = masks.shape[1:]
    places = torch.stack([(2 * across + 1) / width - 1, (2 * down + 1) / height - 1], dim=-1)
    soften = torch.tensor([[1.0, 6, 1], [6, 36, 6], [1, 6, 1]], device=masks.device) / 64

    def weight(chosen: Tensor) -> Tensor:
        soft = F.conv2d(chosen[:, None].float(), soften[None, None], padding=1)
        return F.grid_sample(soft, places, align_corners=False)[:, 0]

    strongest = 1 - weight(masks != 0)  # the background goes on outside the map
    result = torch.zeros_like(strongest, dtype=torch.int64)
    for label in masks.unique().tolist():
        if label:
            found = weight(masks == label)
            result = torch.where(found > strongest, label, result)
            strongest = torch.maximum(found, strongest)
    return result


def smooth_noise(noise: NoiseSource, fields: int, size: tuple[int, int], smoothness: float) -> Tensor:
    """White noise smoothed by a Gaussian, with mean 0 and variance 1 at every pixel.

    Args:
        noise: One stream per map.
        fields: Independent fields per map.
        size: Height and width.
        smoothness: Standard deviation of the Gaussian in pixels.

    Returns:
        (B, fields, H, W) float32, on the noise's device.
    """
    reach = math.ceil(3 * smoothness)
    white = noise.normal(fields, size[0] + 2 * reach, size[1] + 2 * reach)
    rows, columns = (_gaussians(side, reach, smoothness).to(white.device) for side in size)
    with torch.autocast(white.device.type, enabled=False):
        # One map at a time: products of other batches may round differently, and a map is not to depend on them.
        return torch.stack([rows @ field @ columns.T for field in white])


def _gaussians(side: int, reach: int, smoothness: float) -> Tensor:
    """Weights of white noise at each pixel of a side, (side, side + 2 * reach), that keep its variance."""
    places = torch.arange(side + 2 * reach) - reach
    weights = (-(places - torch.arange(side)[:, None]).square() / (2 * smoothness**2)).exp()
    norms: Tensor = weights.norm(dim=1, keepdim=True)
    return weights / norms


def _pixel_grid(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Column and row of each pixel, each (1, H, W)."""
    height, width = masks.shape[1:]
    down, across = torch.meshgrid(
        torch.arange(height, device=masks.device, dtype=torch.float32),
        torch.arange(width, device=masks.device, dtype=torch.float32),
        indexing="ij",
    )
    return across[None], down[None]
