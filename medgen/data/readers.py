"""Readers of image files: PNG, JPEG, TIFF, BMP, DICOM and NIfTI to a `RawImage`.

A reader never scales intensities. It declares their range and unit, and an explicit `IntensityWindow` maps them to
[0, 1]; the window is kept with the data set and with every checkpoint.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medgen.data.dicom import read_dicom
from medgen.data.files import read_bytes
from medgen.data.nifti import read_nifti
from medgen.data.raw_image import STORED, IntensityWindow, RawImage, SliceAxis, checked_frame, integer_range

__all__ = ["IntensityWindow", "RawImage", "decode_image", "decode_mask", "looks_like_mask", "read_image", "read_mask"]

RASTER_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
SUFFIXES = RASTER_SUFFIXES + DICOM_SUFFIXES + NIFTI_SUFFIXES

_PNG = b"\x89PNG\r\n\x1a\n"


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
        frame: Frame of a multi-frame DICOM or multi-page TIFF, or slice of a NIfTI volume, from 0; needed if several.
        axis: Plane of a NIfTI slice; see `medgen.data.nifti.read_nifti` for how it is oriented.
        volume: Volume of a 4-D NIfTI file, from 0.
        voi: Display window or VOI lookup table of a DICOM file to apply, from 0; the unit is then ``"display value"``.
            ``None`` keeps modality values such as HU.

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
    """Read an image from the bytes of a file, see `read_image`; ``name`` gives its type and appears in messages."""
    kind = _file_type(name, data)
    if kind == "dicom":
        image = read_dicom(data, name, frame=frame, voi=voi)
    elif kind == "nifti":
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
    """Read a label map from the bytes of a file, see `read_mask`."""
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
    """Whether an image of at least 256 pixels has at most 32 distinct colours or grey values, all whole.

    This can be true of a dark photograph, so decide over several images.
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


def _read_raster(data: bytes, name: str, *, frame: int | None, keep_indices: bool) -> RawImage:
    from PIL import Image

    try:
        if data.startswith(_PNG) and data[24:25] == b"\x10" and data[25:26] != b"\x00":
            return RawImage.stored(_read_png16_colour(data))
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
    """A sound file of an unsupported kind; carries the whole message."""


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
        return RawImage.stored(np.asarray(image))
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    if image.mode in ("LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
    pixels: NDArray[np.generic] = np.asarray(image)
    if image.mode == "RGBA":
        pixels = _over_black(pixels)
    return RawImage.stored(_collapse_grey(pixels))


def _tiff_grey(values: NDArray[np.generic], tags: Mapping[int, Any]) -> RawImage:
    """Grey values of the type that BitsPerSample (258) and SampleFormat (339) state, larger ones brighter.

    Pillow stores 16 signed bits in 32, 32 unsigned bits as signed, and 8 signed bits as unsigned. Up to 8 bits it
    inverts WhiteIsZero images (tag 262 is 0) itself, and spreads fewer than 8 over 0 to 255.
    """
    bits, signed = max(8, *tags.get(258, (1,))), 2 in tags.get(339, (1,))
    low, high = integer_range(bits, signed)
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
    """Colours on a black background."""
    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    limit = np.iinfo(pixels.dtype).max  # type: ignore[type-var]
    if (alpha == limit).all():
        return colour
    return np.round(colour.astype(np.float64) * (alpha.astype(np.float64) / limit)).astype(pixels.dtype)


def _collapse_grey(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """(H, W) if all three colours are equal, as in radiographs stored as RGB."""
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    return pixels
