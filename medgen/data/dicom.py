"""DICOM images in their modality values, or through one of their display windows, by pydicom's own LUT functions."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medgen.data.raw_image import DISPLAY, STORED, RawImage, checked_frame, integer_range

if TYPE_CHECKING:
    from pydicom import Dataset

_DAMAGED = (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError, struct.error, zlib.error)


def read_dicom(data: bytes, name: str, *, frame: int | None = None, voi: int | None = None) -> RawImage:
    """Read one frame of a DICOM file from its bytes; the frame (from 0) may be left out if there is only one.

    Grey: stored values through the modality LUT or rescale slope and intercept (HU for CT), then, if ``voi`` is given,
    through that display window or VOI LUT (from 0, as pydicom counts them). In enhanced multi-frame files both are
    those of the frame. MONOCHROME1, where large values are dark, is inverted within the declared range, so that larger
    is always brighter. Colour (RGB, YBR, palette): red, green, blue as stored; overlays are not drawn.

    Raises:
        ValueError: If it is not an image that can be decoded.
        ImportError: Without the ``dicom`` extra.
    """
    try:
        import pydicom
        from pydicom.errors import BytesLengthException
        from pydicom.pixels.processing import apply_color_lut
        from pydicom.pixels.utils import pixel_array
    except ImportError as error:
        raise ImportError(f'reading {name} needs pydicom: pip install "medgen[dicom]"') from error

    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        if not any(tag in dataset for tag in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise ValueError(f"it holds no pixels ({dataset.get('SOPClassUID', 'unknown kind of object')})")
        chosen = checked_frame(frame, int(dataset.get("NumberOfFrames") or 1), name)
        stored = pixel_array(dataset, index=chosen)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            stored = apply_color_lut(stored, dataset)
        if stored.ndim == 3:
            return RawImage.stored(stored)
        return _grey(stored, _with_frame_groups(dataset, chosen), name, voi)
    except (*_DAMAGED, EOFError, BytesLengthException) as error:
        reason = str(error)
        raise ValueError(reason if name in reason else f"{name} cannot be read as a DICOM image: {reason}") from error


def _grey(stored: NDArray[np.generic], dataset: Dataset, name: str, voi: int | None) -> RawImage:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    values = apply_modality_lut(stored, dataset)
    low, high = _modality_range(stored, dataset)
    unit = _unit(dataset)
    if voi is not None:
        windows = _count_windows(dataset)
        if not 0 <= voi < windows:
            raise ValueError(
                f"{name} has {windows} display windows, so voi={voi} does not exist; use voi=None for none"
            )
        values = apply_voi_lut(values, dataset, index=voi)
        unit = DISPLAY
        if dataset.get("VOILUTSequence"):
            low, high = 0.0, float(2 ** dataset.VOILUTSequence[voi].LUTDescriptor[2] - 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        values = low + high - values.astype(np.float64)
    return RawImage(values.astype(np.float32), low, high, unit)


def _modality_range(stored: NDArray[np.generic], dataset: Dataset) -> tuple[float, float]:
    """Range of the modality values that the stored bits can give; PS3.3 C.11.1."""
    if not np.issubdtype(stored.dtype, np.integer):
        return float(stored.min()), float(stored.max())
    if dataset.get("ModalityLUTSequence"):
        return 0.0, float(2 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1)
    bits = int(dataset.BitsStored)
    ends = integer_range(bits, bool(dataset.PixelRepresentation))
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None:
        return float(ends[0]), float(ends[1])
    scaled = sorted(float(end * slope + intercept) for end in ends)
    return scaled[0], scaled[1]


def _unit(dataset: Dataset) -> str:
    """HU for rescaled CT unless the file says otherwise; PS3.3 C.11.1.1.2 calls "US" unspecified."""
    if dataset.get("ModalityLUTSequence"):
        named = dataset.ModalityLUTSequence[0].get("ModalityLUTType")
    elif dataset.get("RescaleSlope") is None:
        return STORED
    else:
        named = dataset.get("RescaleType")
    if named and str(named).upper() != "US":
        return str(named)
    return "HU" if dataset.get("Modality") == "CT" else STORED


def _count_windows(dataset: Dataset) -> int:
    if dataset.get("VOILUTSequence"):
        return len(dataset.VOILUTSequence)
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        return 0
    return int(dataset["WindowWidth"].VM)


def _with_frame_groups(dataset: Dataset, frame: int) -> Dataset:
    """Copy the rescale and windows of one frame to where pydicom looks for them; PS3.3 C.7.6.16."""
    import pydicom

    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    each = dataset.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*shared[:1], *each[frame : frame + 1]]
    if not groups:
        return dataset
    flat = pydicom.Dataset()
    image = ("PhotometricInterpretation", "BitsStored", "PixelRepresentation", "Modality")
    for keyword in (*image, "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"):
        if keyword in dataset:
            flat[keyword] = dataset[keyword]
    for group in groups:
        for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for element in (group.get(macro) or [pydicom.Dataset()])[0]:
                flat[element.tag] = element
    return flat
