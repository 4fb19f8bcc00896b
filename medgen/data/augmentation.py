"""Augmentation of images with their masks, as a pure function of (seed, epoch, index)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import gaussian_blur


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of training images; all are off by default.

    Attributes:
        horizontal_flip: Mirror left and right in half of the cases. Leave off where sides matter (heart, side markers).
        vertical_flip: Mirror top and bottom in half of the cases.
        rotation_degrees: Largest rotation to either side.
        translation: Largest shift to either side, as a fraction of height and width.
        scaling: Largest change of size, as a fraction: 0.1 gives 0.9 to 1.1.
        shear_degrees: Largest shear to either side.
        elastic_pixels: Strength of a smooth random deformation (``alpha`` of Simard et al. 2003), in pixels; 0 is off.
        elastic_smoothness: Standard deviation of that deformation's smoothing, in pixels.
        brightness: Largest relative change of brightness, as a fraction.
        contrast: Largest relative change of contrast, as a fraction.
    """

    horizontal_flip: bool = False
    vertical_flip: bool = False
    rotation_degrees: float = 0.0
    translation: float = 0.0
    scaling: float = 0.0
    shear_degrees: float = 0.0
    elastic_pixels: float = 0.0
    elastic_smoothness: float = 5.0
    brightness: float = 0.0
    contrast: float = 0.0

    def __post_init__(self) -> None:
        for name in ("translation", "scaling", "brightness", "contrast"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"augment.{name} is {getattr(self, name)}; it is a fraction from 0 to below 1")
        for name in ("rotation_degrees", "shear_degrees", "elastic_pixels"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"augment.{name} is {getattr(self, name)}; it must be 0 or more")
        if self.elastic_smoothness <= 0:
            raise ValueError(f"augment.elastic_smoothness is {self.elastic_smoothness}; it must be above 0")

    def __call__(
        self, images: Tensor, masks: Tensor | None, *, seed: int, epochs: NDArray[np.int64], indices: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor | None]:
        """Augment images (B, C, H, W) in [0, 1] and masks (B, H, W), which move with them by nearest neighbour.

        Each image's changes depend on the seed and its entries in ``epochs`` and ``indices``, (B,) each. Pixels from
        beyond the border are reflections, since a model would learn to draw black borders.
        """
        keys = _mix(_mix(_mix(np.uint64(seed)) ^ epochs.astype(np.uint64)) ^ indices.astype(np.uint64))
        images, masks = self._flip(images, masks, keys)
        warp = self._warp(images.shape[-2], images.shape[-1])
        if not warp:
            return images, masks
        images = images.clone()
        masks = None if masks is None else masks.clone()
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the CPU's global generator
            for position, key in enumerate(keys):
                torch.default_generator.manual_seed(int(key >> np.uint64(1)))  # torch.manual_seed reseeds GPUs as well
                if masks is None:
                    images[position] = warp(tv_tensors.Image(images[position]))
                else:
                    images[position], masks[position] = warp(
                        tv_tensors.Image(images[position]), tv_tensors.Mask(masks[position])
                    )
        return images.clamp_(0, 1), masks

    def _flip(self, images: Tensor, masks: Tensor | None, keys: NDArray[np.uint64]) -> tuple[Tensor, Tensor | None]:
        for wanted, bit, axis in ((self.horizontal_flip, 0, -1), (self.vertical_flip, 1, -2)):
            if wanted:
                chosen = torch.from_numpy(((keys >> np.uint64(bit)) & np.uint64(1)).astype(np.bool_))
                images = torch.where(chosen[:, None, None, None], images.flip(axis), images)
                masks = None if masks is None else torch.where(chosen[:, None, None], masks.flip(axis), masks)
        return images, masks

    def _warp(self, height: int, width: int) -> v2.Compose | None:
        steps: list[v2.Transform] = []
        margin = self._margin(height, width)
        if self.rotation_degrees or self.translation or self.scaling or self.shear_degrees:
            across, down = (self.translation * side / (side + 2 * margin) for side in (width, height))
            steps.append(
                v2.RandomAffine(
                    degrees=self.rotation_degrees,
                    translate=(across, down),
                    scale=(1 - self.scaling, 1 + self.scaling),
                    shear=(-self.shear_degrees, self.shear_degrees) if self.shear_degrees else None,
                    interpolation=v2.InterpolationMode.BILINEAR,
                )
            )
        if self.elastic_pixels:
            steps.append(_Elastic(alpha=self.elastic_pixels, sigma=self.elastic_smoothness))
        if steps:
            steps = [v2.Pad(margin, padding_mode="reflect"), *steps, v2.CenterCrop([height, width])]
        if self.brightness or self.contrast:
            steps.append(v2.ColorJitter(brightness=self.brightness, contrast=self.contrast))
        return v2.Compose(steps) if steps else None

    def _margin(self, height: int, width: int) -> int:
        """Padding that the transforms need; reflection gives at most the image size less one."""
        angle = math.radians(min(90.0, self.rotation_degrees)) + math.radians(min(45.0, self.shear_degrees))
        side = max(height, width)
        reach = side * (self.translation + (self.scaling + math.tan(min(angle, math.pi / 4))) / 2)
        # Elastic shifts are half of blurred uniform noise in (-1, 1), at most six standard deviations.
        blurred = min(1.0, 6 / math.sqrt(3) / (2 * math.sqrt(math.pi) * self.elastic_smoothness))
        return min(math.ceil(reach + self.elastic_pixels / 2 * blurred), height - 1, width - 1)


class _Elastic(v2.ElasticTransform):  # type: ignore[misc]
    """torchvision's deformation with a separable blur, since its 2-D kernel takes most of the time."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = flat_inputs[0].shape[-2:]
        shifts = []
        for alpha, sigma, side in zip(self.alpha, self.sigma, (width, height), strict=True):
            length = int(8 * sigma + 1) | 1  # odd
            noise = torch.rand(1, 1, height, width) * 2 - 1
            for kernel in ([length, 1], [1, length]):
                noise = gaussian_blur(noise, kernel, list(self.sigma))
            shifts.append(noise * alpha / side)
        return {"displacement": torch.cat(shifts, 1).permute(0, 2, 3, 1)}


def _mix(keys: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """Hash keys by the finaliser of SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        mixed = np.asarray(keys, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
