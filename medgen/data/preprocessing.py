"""Preprocessing of images: size, channels, intensity window, and the depth kept on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medgen.data.files import FileRoot
from medgen.data.raw_image import DECLARED_RANGE, IntensityWindow, Pixels, RawImage, SliceAxis
from medgen.data.readers import decode_image, decode_mask

ResizePolicy: TypeAlias = Literal["crop", "pad", "stretch"]
Pixel = TypeVar("Pixel", np.float32, np.uint8)

_VERSION = 1  # raise it when the same file would give other pixels, so that old caches are not used
_EIGHT_BIT_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Settings that turn a file into a training image.

    Attributes:
        image_size: Height and width in pixels.
        channels: 1 (grey) or 3 (red, green, blue).
        window: The physical values that become 0 and 1.
        resize: ``"crop"`` takes the largest centred part of the right shape, ``"pad"`` keeps everything and adds black
            borders, ``"stretch"`` changes the aspect ratio.
        axis: Plane of NIfTI slices.
        volume: Volume of 4-D NIfTI files.
        voi: Display window of DICOM files; ``None`` keeps physical values.
    """

    image_size: tuple[int, int]
    channels: int
    window: IntensityWindow
    resize: ResizePolicy
    axis: SliceAxis
    volume: int | None
    voi: int | None

    def __post_init__(self) -> None:
        if min(self.image_size) < 1:
            raise ValueError(f"image_size is {self.image_size}; give height and width in pixels")
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}; use 1 for grey or 3 for colour")
        if self.resize not in ("crop", "pad", "stretch"):
            raise ValueError(f"resize is {self.resize!r}; use 'crop', 'pad' or 'stretch'")

    def describe(self) -> dict[str, object]:
        """All settings as JSON values, for keys and fingerprints."""
        return asdict(self) | {"resampling": "bicubic", "version": _VERSION}

    def depth(self, names: list[str]) -> np.dtype[np.generic]:
        """Type of the stored pixels: ``uint8`` for 8-bit files and a window at most 255 wide, else ``uint16``."""
        coarse = self.window.unit != DECLARED_RANGE and self.window.high - self.window.low <= 255
        whole = all(name.lower().endswith(_EIGHT_BIT_SUFFIXES) for name in names)
        return np.dtype(np.uint8 if coarse and whole else np.uint16)

    def read_raw(self, root: FileRoot, name: str, frame: int | None) -> RawImage:
        """Read an image as it is in the file."""
        return decode_image(
            root.read(name), root.locate(name), frame=frame, axis=self.axis, volume=self.volume, voi=self.voi
        )

    def image(self, raw: RawImage, path: str, depth: np.dtype[np.generic]) -> NDArray[np.generic]:
        """Make a training image (C, H, W), from 0 (low end of the window) to the maximum of ``depth`` (high end)."""
        black, _ = self.window.bounds(raw, path)
        pixels = resized(raw.to_channels(self.channels), self.image_size, self.resize, fill=black)
        shown = self.window.apply(replace(raw, pixels=pixels), path)
        steps = np.iinfo(depth).max  # type: ignore[type-var]
        return np.ascontiguousarray(np.round(shown * steps).transpose(2, 0, 1), dtype=depth)

    def read_mask(self, root: FileRoot, name: str, frame: int | None, num_classes: int) -> NDArray[np.uint8]:
        """Read a label map (H, W) as it is in the file.

        Raises:
            ValueError: If it holds values that are not classes 0 to ``num_classes - 1``.
        """
        path = root.locate(name)
        classes = decode_mask(root.read(name), path, frame=frame, axis=self.axis)
        if int(classes.max()) >= num_classes:
            values = np.unique(classes)
            shown = ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
            hint = "; it is an image, not a mask" if len(values) > max(32, num_classes) else ""
            if values.tolist() in ([0, 255], [255]):
                hint = "; write the mask as 0 and 1 instead of 0 and 255"
            raise ValueError(
                f"mask {path} holds the values {shown}, but mask_classes allows 0..{num_classes - 1}{hint}"
            )
        return classes.astype(np.uint8)


def resized(pixels: Pixels, size: tuple[int, int], policy: ResizePolicy, *, fill: float = 0.0) -> Pixels:
    """Resize pixels (H, W, C): bicubic, antialiased when they shrink, clipped to the range they had."""
    if pixels.shape[:2] == size:
        return pixels
    box, inner = _geometry(pixels.shape[:2], size, policy)
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(inner[::-1], Image.Resampling.BICUBIC, box=box))
        for plane in pixels.transpose(2, 0, 1)
    ]
    return _placed(np.clip(np.stack(planes, axis=2), pixels.min(), pixels.max()), size, fill)


def resized_mask(classes: NDArray[np.uint8], size: tuple[int, int], policy: ResizePolicy) -> NDArray[np.uint8]:
    """Resize a label map (H, W) by nearest neighbour, with the geometry of `resized`; borders are class 0."""
    if classes.shape == size:
        return classes
    box, inner = _geometry((classes.shape[0], classes.shape[1]), size, policy)
    nearest = Image.fromarray(classes).resize(inner[::-1], Image.Resampling.NEAREST, box=box)
    return _placed(np.asarray(nearest), size, 0)


def _geometry(
    old: tuple[int, ...], new: tuple[int, int], policy: ResizePolicy
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """Part of the old image to keep (left, top, right, bottom), and its new size (height, width)."""
    height, width = old[0], old[1]
    scales = (new[0] / height, new[1] / width)
    if policy == "crop":
        crop_height, crop_width = new[0] / max(scales), new[1] / max(scales)
        top, left = (height - crop_height) / 2, (width - crop_width) / 2
        return (max(left, 0), max(top, 0), min(left + crop_width, width), min(top + crop_height, height)), new
    if policy == "pad":
        scale = min(scales)
        return (0, 0, width, height), (max(round(height * scale), 1), max(round(width * scale), 1))
    return (0, 0, width, height), new


def _placed(pixels: NDArray[Pixel], size: tuple[int, int], fill: float) -> NDArray[Pixel]:
    if pixels.shape[:2] == size:
        return pixels
    framed = np.full((*size, *pixels.shape[2:]), fill, dtype=pixels.dtype)
    top, left = (size[0] - pixels.shape[0]) // 2, (size[1] - pixels.shape[1]) // 2
    framed[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return framed
