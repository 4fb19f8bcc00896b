"""One image file to a float array whose physical range is declared: PNG, JPEG, TIFF, DICOM and NIfTI.

A reader never scales intensities. It says what the numbers are (``low``, ``high``, ``unit``), and an explicit
`IntensityWindow` maps them to [0, 1]; the window is kept with the data set and with every checkpoint.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medgen.data.files import read_bytes

Pixels: TypeAlias = NDArray[np.float32]
SliceAxis: TypeAlias = Literal["sagittal", "coronal", "axial"]

RASTER_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
SUFFIXES = RASTER_SUFFIXES + DICOM_SUFFIXES + NIFTI_SUFFIXES

STORED = "stored value"
DISPLAY = "display value"
DECLARED_RANGE = "declared range"

_PNG = b"\x89PNG\r\n\x1a\n"
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as JPEG and PNG tools use


@dataclass(frozen=True)
class RawImage:
    """Pixels as the file means them.

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
        unit: What ``low`` and ``high`` are: ``"HU"``, ``"stored value"``, ... With ``"declared range"`` they are
            fractions of each image's own declared range, so that 8-, 12- and 16-bit files can be mixed.
    """

    low: float = 0.0
    high: float = 255.0
    unit: str = STORED

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"intensity_window is ({self.low}, {self.high}); give two finite numbers, low < high")

    def bounds(self, image: RawImage, name: str) -> tuple[float, float]:
        """The window in the units of one image.

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
        """Pixels mapped to [0, 1], of the same shape, clipped at both ends of the window."""
        low, high = self.bounds(image, name)
        shown: Pixels = np.clip((image.pixels - low) / (high - low), 0, 1).astype(np.float32)
        return shown


def read_image(
    path: str | Path,
    *,
    frame: int | None = None,
    axis: SliceAxis = "axial",
    volume: int | None = None,
    voi: int | None = None,
) -> RawImage:
    """Read one image in its physical values.

    Args:
        path: File, also inside a zip archive (``scans.zip/images/a.png``).
        frame: Frame of a multi-frame DICOM or multi-page TIFF, or slice number of a NIfTI volume, counted from 0.
            May be left out where there is only one.
        axis: Plane of a NIfTI slice; see `medgen.data.nifti.read_nifti` for how it is oriented.
        volume: Volume of a 4-D NIfTI file, counted from 0.
        voi: Which of a DICOM file's display windows (or VOI lookup tables) to apply, counted from 0. The values are
            then ``"display value"``; without it they are modality values such as HU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, of an unsupported type, holds NaN or infinite pixels, or the frame does not
            exist; the message names the file and the cause.
        ImportError: If the format needs an extra that is not installed.
    """
    return decode_image(read_bytes(path), str(path), frame=frame, axis=axis, volume=volume, voi=voi)


def read_mask(
    path: str | Path, *, frame: int | None = None, axis: SliceAxis = "axial", volume: int | None = None
) -> NDArray[np.int64]:
    """Read a label map as class numbers (H, W); palette files give their indices, not their colours.

    Raises:
        FileNotFoundError, ValueError, ImportError: As `read_image`; also if values are not whole numbers >= 0 or the
            file holds a colour image.
    """
    return decode_mask(read_bytes(path), str(path), frame=frame, axis=axis, volume=volume)


def decode_image(
    data: bytes,
    name: str,
    *,
    frame: int | None = None,
    axis: SliceAxis = "axial",
    volume: int | None = None,
    voi: int | None = None,
) -> RawImage:
    """As `read_image`, from the bytes of a file; ``name`` tells its type and is used in messages."""
    kind = _file_type(name, data)
    if kind == "dicom":
        from medgen.data.dicom import read_dicom

        image = read_dicom(data, name, frame=frame, voi=voi)
    elif kind == "nifti":
        from medgen.data.nifti import read_nifti

        image = read_nifti(data, name, frame=frame, axis=axis, volume=volume)
    else:
        image = _read_raster(data, name, frame=frame, keep_indices=False)
    bad = image.pixels.size - int(np.isfinite(image.pixels).sum())
    if bad:
        raise ValueError(
            f"{name} has {bad} NaN or infinite pixels of {image.pixels.size}; replace them in the file first"
        )
    return image


def decode_mask(
    data: bytes, name: str, *, frame: int | None = None, axis: SliceAxis = "axial", volume: int | None = None
) -> NDArray[np.int64]:
    """As `read_mask`, from the bytes of a file."""
    if _file_type(name, data) == "raster":
        values = _read_raster(data, name, frame=frame, keep_indices=True).pixels
    else:
        values = decode_image(data, name, frame=frame, axis=axis, volume=volume).pixels
    if values.ndim != 2:
        raise ValueError(f"{name} is a colour image, not a mask; a mask is a single-channel file of class numbers")
    classes = values.astype(np.int64)
    if not np.array_equal(classes, values) or classes.min() < 0:
        raise ValueError(f"{name} is not a mask: it holds values that are not whole class numbers 0, 1, 2, ...")
    return classes


def looks_like_mask(image: RawImage) -> bool:
    """Whether an image has so few distinct whole values that it is a label map rather than a picture.

    True for up to 32 distinct colours or whole grey values in an image of at least 256 pixels; a dark photograph can
    be among them, so decide over several images, never over one.
    """
    flat = image.pixels.reshape(-1, image.pixels.shape[2]) if image.pixels.ndim == 3 else image.pixels.reshape(-1, 1)
    if len(flat) < 256 or not np.array_equal(flat, np.round(flat)):
        return False
    return len(np.unique(flat @ np.array([1, 1 << 8, 1 << 16][: flat.shape[1]]))) <= 32


def _file_type(name: str, data: bytes) -> Literal["raster", "dicom", "nifti"]:
    lower = name.lower()
    if lower.endswith(NIFTI_SUFFIXES):
        return "nifti"
    if lower.endswith(RASTER_SUFFIXES):
        return "raster"
    if lower.endswith(DICOM_SUFFIXES) or data[128:132] == b"DICM":  # archives export DICOM under any name
        return "dicom"
    raise ValueError(f"{name} is of an unsupported type; medgen reads {', '.join(SUFFIXES)}")


def _as_raw(values: NDArray[np.generic]) -> RawImage:
    if values.dtype == np.bool_:
        low, high = 0.0, 1.0
    elif np.issubdtype(values.dtype, np.integer):
        limits = np.iinfo(values.dtype)  # type: ignore[type-var]
        low, high = float(limits.min), float(limits.max)
    else:
        low, high = finite_range(values)
    return RawImage(values.astype(np.float32), low, high, STORED)


def _read_raster(data: bytes, name: str, *, frame: int | None, keep_indices: bool) -> RawImage:
    """PNG, JPEG, TIFF or BMP with the range of the type it was stored in."""
    from PIL import Image

    try:
        if data.startswith(_PNG) and data[24:25] == b"\x10" and data[25:26] != b"\x00":
            return _as_raw(_read_png16_colour(data))
        with Image.open(io.BytesIO(data)) as image:
            return _read_pillow(image, name, frame, keep_indices)
    except _Refused as refusal:
        raise ValueError(str(refusal)) from None
    except (
        OSError,  # also Pillow's "cannot identify" and "truncated"
        SyntaxError,  # Pillow's broken PNG
        ValueError,
        TypeError,  # a TIFF tag that should be a number and is text
        IndexError,
        RuntimeError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise ValueError(f"{name} is not a readable image: {error}") from error


class _Refused(Exception):
    """A file that is in order but cannot be taken; carries the whole message."""


def _read_pillow(image: object, name: str, frame: int | None, keep_indices: bool) -> RawImage:
    from PIL import Image, ImageOps

    assert isinstance(image, Image.Image)
    tiff = image.format == "TIFF"
    frames = int(getattr(image, "n_frames", 1)) if tiff else 1
    image.seek(checked_frame(frame, frames, name))
    tags: Mapping[int, Any] = image.tag_v2 if tiff else {}  # type: ignore[attr-defined]
    bits = tags.get(258, (1,))
    if len(bits) > 1 and max(bits) > 8:
        raise _Refused(
            f"{name} is a {max(bits)}-bit colour TIFF, which would lose depth; store it as 16-bit colour PNG"
        )
    image = ImageOps.exif_transpose(image)
    if tiff and image.mode in ("L", "I", "I;16", "I;16B"):
        return _tiff_grey(np.asarray(image), tags)
    if image.mode == "P" and keep_indices:
        return _as_raw(np.asarray(image))
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    if image.mode in ("LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
    pixels: NDArray[np.generic] = np.asarray(image)
    if image.mode == "RGBA":
        pixels = _over_black(pixels)
    return _as_raw(_collapse_grey(pixels))


def _tiff_grey(values: NDArray[np.generic], tags: Mapping[int, Any]) -> RawImage:
    """Whole numbers in the depth that BitsPerSample (258) and SampleFormat (339) state, larger ones brighter.

    Pillow holds them in the next type it has: 16 signed bits in 32, 32 unsigned ones in 32 signed, 8 signed ones in 8
    unsigned. It turns WhiteIsZero (tag 262 is 0) around up to 8 bits, and spreads less than 8 over 0 to 255.
    """
    bits, signed = max(8, *tags.get(258, (1,))), 2 in tags.get(339, (1,))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    stored = values.astype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2 if bits <= 16 else 4}").astype(np.float64)
    if tags.get(262) == 0 and bits > 8:
        stored = low + high - stored
    return RawImage(stored.astype(np.float32), low, high, STORED)


def _read_png16_colour(data: bytes) -> NDArray[np.generic]:
    # Pillow silently reduces 16-bit colour (and grey with alpha) PNG to 8 bit, torchvision does not.
    import torch
    from torchvision.io import ImageReadMode, decode_png

    planes = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.UNCHANGED)
    pixels = planes.permute(1, 2, 0).numpy()  # (H, W, 2 to 4) uint16
    if pixels.shape[2] in (2, 4):
        pixels = _over_black(pixels)
    return _collapse_grey(pixels)


def _over_black(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """Colours as they appear on a black ground; unchanged where alpha is opaque, which it nearly always is."""
    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    limit = np.iinfo(pixels.dtype).max  # type: ignore[type-var]
    if (alpha == limit).all():
        return colour
    return np.round(colour.astype(np.float64) * (alpha.astype(np.float64) / limit)).astype(pixels.dtype)


def _collapse_grey(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """(H, W) where all three colours are the same, as in radiographs stored as RGB."""
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    return pixels


def finite_range(values: NDArray[np.generic]) -> tuple[float, float]:
    """Smallest and largest number among values that may hold NaN: the range of a floating point image."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def checked_frame(frame: int | None, frames: int, name: str) -> int:
    """The frame to read, from 0.

    Raises:
        ValueError: If the file has several frames and none was chosen, or the chosen one does not exist.
    """
    if frame is None and frames > 1:
        raise ValueError(f"{name} has {frames} frames or slices; choose one with frame=0..{frames - 1}")
    if frame is not None and not 0 <= frame < frames:
        raise ValueError(f"frame {frame} of {name} does not exist; it has frames 0..{frames - 1}")
    return frame or 0
