"""Pixels in the physical values of their file, and the window that maps them to [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.float32]
SliceAxis: TypeAlias = Literal["sagittal", "coronal", "axial"]

STORED = "stored value"
DISPLAY = "display value"
DECLARED_RANGE = "declared range"

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as JPEG and PNG tools use


@dataclass(frozen=True)
class RawImage:
    """One image in the physical values of its file.

    Attributes:
        pixels: (H, W) grey or (H, W, 3) red-green-blue, float32, in ``unit``. Grey that was stored as RGB is (H, W).
        low: Smallest value the file could hold, in ``unit``.
        high: Largest value the file could hold, in ``unit``.
        unit: ``"HU"``, ``"stored value"`` (plain numbers without a physical meaning), ``"display value"`` (after a
            DICOM display window), any other unit a DICOM file names, or ``None`` where the format cannot say (NIfTI).
    """

    pixels: Pixels
    low: float
    high: float
    unit: str | None

    @classmethod
    def stored(cls, values: NDArray[np.generic]) -> RawImage:
        """Wrap stored values; their range is that of the type, or of the values if floating point."""
        if values.dtype == np.bool_:
            low, high = 0.0, 1.0
        elif np.issubdtype(values.dtype, np.integer):
            limits = np.iinfo(values.dtype)  # type: ignore[type-var]
            low, high = float(limits.min), float(limits.max)
        else:
            low, high = finite_range(values)
        return cls(values.astype(np.float32), low, high, STORED)

    def to_channels(self, channels: int) -> Pixels:
        """Pixels as (H, W, channels): grey repeated three times, or colour as its luma (ITU-R BT.601)."""
        colour = self.pixels.ndim == 3
        if channels == 3:
            return self.pixels if colour else np.repeat(self.pixels[..., None], 3, axis=2)
        grey: Pixels = np.dot(self.pixels, _LUMA) if colour else self.pixels
        return np.expand_dims(grey, 2)


@dataclass(frozen=True)
class IntensityWindow:
    """The physical values that become 0 and 1.

    Attributes:
        low: Value shown as 0; everything below is 0 too.
        high: Value shown as 1; everything above is 1 too.
        unit: Unit of ``low`` and ``high``: ``"HU"``, ``"stored value"``, ... With ``"declared range"`` they are
            fractions of each image's own declared range, so that 8-, 12- and 16-bit files can be mixed.
    """

    low: float = 0.0
    high: float = 255.0
    unit: str = STORED

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"intensity_window is ({self.low}, {self.high}); give two finite numbers, low < high")

    def bounds(self, image: RawImage, name: str) -> tuple[float, float]:
        """The window in the unit of one image.

        Raises:
            ValueError: If the image is in another unit than the window.
        """
        if self.unit == DECLARED_RANGE:
            width = image.high - image.low
            return image.low + self.low * width, image.low + self.high * width
        if image.unit is not None and image.unit != self.unit:
            raise ValueError(
                f"{name} holds {image.unit!r} from {image.low:g} to {image.high:g}, but the intensity window "
                f"({self.low:g}, {self.high:g}) is in {self.unit!r}; set intensity_unit to {image.unit!r} and choose "
                f"the window in it, or use intensity_unit {DECLARED_RANGE!r} with the window (0, 1)"
            )
        return self.low, self.high

    def apply(self, image: RawImage, name: str = "image") -> Pixels:
        """Map pixels to [0, 1], clipped at both ends of the window; the shape stays."""
        low, high = self.bounds(image, name)
        shown: Pixels = np.clip((image.pixels - low) / (high - low), 0, 1).astype(np.float32)
        return shown


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest whole number of a bit depth."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def finite_range(values: NDArray[np.generic]) -> tuple[float, float]:
    """Smallest and largest finite value: the range of a floating point image."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def checked_frame(frame: int | None, frames: int, name: str) -> int:
    """The frame to read, from 0; ValueError if it does not exist, or is None although there are several."""
    if frame is None and frames > 1:
        raise ValueError(f"{name} has {frames} frames or slices; choose one with frame=0..{frames - 1}")
    if frame is not None and not 0 <= frame < frames:
        raise ValueError(f"frame {frame} of {name} does not exist; it has frames 0..{frames - 1}")
    return frame or 0
