"""Slices of NIfTI volumes in radiological display orientation."""

from __future__ import annotations

import gzip
import io
import threading
import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from medgen.data.raw_image import RawImage, SliceAxis, checked_frame, finite_range

_DAMAGED = (OSError, EOFError, zlib.error, ValueError, TypeError, OverflowError, MemoryError)
_ONE_AT_A_TIME = threading.Lock()
_AXES: dict[SliceAxis, int] = {"sagittal": 0, "coronal": 1, "axial": 2}


def read_nifti(
    data: bytes, name: str, *, frame: int | None = None, axis: SliceAxis = "axial", volume: int | None = None
) -> RawImage:
    """Read one slice of a NIfTI volume from the bytes of a file, gzipped or not, with the file's scaling applied.

    The volume is first brought to the closest canonical orientation (RAS+: the three axes run to the patient's right,
    front and head) by swapping and flipping axes, without interpolation. ``frame`` counts along the axis of the plane
    from the left-most, hindmost or lowest slice. Slices are shown in radiological orientation: axial and coronal ones
    with the patient's right side on the left; front up (axial) or head up (coronal, sagittal); sagittal ones face left.

    In terms of the canonical array ``v``: axial ``v[::-1, ::-1, k].T``, coronal ``v[::-1, k, ::-1].T``, sagittal
    ``v[k, ::-1, ::-1].T``.

    A 4-D file with several volumes needs ``volume``, counted from 0.

    Raises:
        ValueError: If it is damaged, not a volume, or the slice or volume does not exist.
        ImportError: Without the ``nifti`` extra.
    """
    try:
        import nibabel  # noqa: F401
    except ImportError as error:
        raise ImportError(f'reading {name} needs nibabel: pip install "medgen[nifti]"') from error
    if axis not in _AXES:
        raise ValueError(f"axis is {axis!r}; use {', '.join(_AXES)}")
    with _ONE_AT_A_TIME:  # else threads that read slices of one volume would each unpack it
        values, low, high = _canonical(data, name, volume)
    along = _AXES[axis]
    chosen = checked_frame(frame, values.shape[along], f"{name} ({axis})")
    picture: NDArray[np.float32] = np.take(values, chosen, axis=along)[::-1, ::-1]
    return RawImage(np.ascontiguousarray(picture.T), low, high, None)


@lru_cache(maxsize=2)  # tables list the slices of a volume one after the other
def _canonical(data: bytes, name: str, volume: int | None) -> tuple[NDArray[np.float32], float, float]:
    """Read a volume in RAS+ with its declared range (if floating point, the range of its values)."""
    import nibabel
    from nibabel.arrayproxy import ArrayProxy
    from nibabel.filebasedimages import ImageFileError
    from nibabel.orientations import OrientationError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    try:
        raw = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        size = int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big")
        image_class = nibabel.Nifti2Image if 540 in size else nibabel.Nifti1Image
        image = image_class.from_stream(io.BytesIO(raw))
        shape = image.shape
        if len(shape) < 3 or any(extent > 1 for extent in shape[4:]):
            raise ValueError(f"its shape is {shape}; medgen reads 3-D and 4-D volumes")
        volumes = shape[3] if len(shape) > 3 else 1
        if volume is None and volumes > 1:
            raise ValueError(f"it is 4-D with {volumes} volumes; choose one with volume=0..{volumes - 1}")
        if volume is not None and not 0 <= volume < volumes:
            raise ValueError(f"volume {volume} does not exist; it has volumes 0..{volumes - 1}")
        whole = np.asarray(image.dataobj).reshape(*shape[:3], volumes)[..., volume or 0]
        flips = nibabel.io_orientation(image.affine)  # type: ignore[no-untyped-call]
        values = nibabel.apply_orientation(whole, flips).astype(np.float32)  # type: ignore[no-untyped-call]
    except (*_DAMAGED, ImageFileError, HeaderDataError, WrapStructError, OrientationError) as error:
        reason = str(error) or "it is larger than the memory"  # a MemoryError has no text
        raise ValueError(f"{name} cannot be read as a NIfTI volume: {reason}") from error
    dtype = image.get_data_dtype()  # type: ignore[no-untyped-call]
    if not np.issubdtype(dtype, np.integer):
        return values, *finite_range(values)
    ends = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max], dtype=np.float64)
    assert isinstance(image.dataobj, ArrayProxy)  # true of every image read from a file
    low, high = np.sort(ends * image.dataobj.slope + image.dataobj.inter).tolist()
    return values, low, high
