"""Every DICOM file of the development data, and made ones for what those lack, against pydicom's own LUT functions."""

import csv
import io
import zipfile
from importlib.util import find_spec

import numpy as np
import pytest

from medgen.data.readers import read_image
from tests.data.conftest import data_folder

pydicom = pytest.importorskip("pydicom")
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut  # noqa: E402

INDEX = data_folder("dicom") / "index.csv"
ROWS = list(csv.DictReader(INDEX.open())) if INDEX.is_file() else []
READABLE = [
    pytest.param(
        row["file"],
        marks=pytest.mark.skipif(
            row["transfer_syntax"].startswith("JPEG Lossless") and find_spec("libjpeg") is None,
            reason="JPEG Lossless needs pylibjpeg-libjpeg, which is under the GPL",
        ),
    )
    for row in ROWS
    if row["decodes_with"]
]
UNREADABLE = [row["file"] for row in ROWS if not row["decodes_with"]]
REASONS = {
    "cr_hip_mono2_jpegext12_odd.dcm": "JPEG Extended",
    "mr_slope9_jpegext12.dcm": "JPEG Extended",
    "ct_noheader_retired.dcm": "Transfer Syntax",
    "mr_truncated.dcm": "less than expected",
    "sr_no_pixels.dcm": "no pixels",
}

needs_data = pytest.mark.skipif(
    not ROWS, reason="needs the development data 'dicom'; set MEDGEN_DATA to its parent folder"
)


@pytest.fixture(scope="module")
def archive():
    with zipfile.ZipFile(INDEX.parent / "dicom.zip") as opened:
        yield opened


def path(name: str) -> str:
    return f"{INDEX.parent / 'dicom.zip'}/{name}"


def opened(archive, name):
    return pydicom.dcmread(io.BytesIO(archive.read(name)))


def expected(dataset, frame, voi=None):
    """What pydicom gives for one frame, with the rescale and window of a frame's functional groups at the top level."""
    pixels = dataset.pixel_array
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        pixels = pixels[frame]
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return apply_color_lut(pixels, dataset)
    if pixels.ndim == 3:
        return pixels
    for groups in (dataset.get("SharedFunctionalGroupsSequence"), dataset.get("PerFrameFunctionalGroupsSequence")):
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            group = groups[0 if len(groups) == 1 else frame] if groups else pydicom.Dataset()
            for element in group[name].value[0] if name in group else []:
                dataset[element.tag] = element
    values = apply_modality_lut(pixels, dataset)
    return values if voi is None else apply_voi_lut(values, dataset, index=voi)


def upright(values, dataset, image):
    return image.low + image.high - values if dataset.PhotometricInterpretation == "MONOCHROME1" else values


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("name", READABLE)
def test_every_readable_file_has_the_modality_values_pydicom_gives(archive, name):
    dataset = opened(archive, name)
    frames = int(dataset.get("NumberOfFrames") or 1)
    image = read_image(path(name), frame=frames - 1)
    values = upright(expected(opened(archive, name), frames - 1), dataset, image)
    np.testing.assert_allclose(image.pixels, values, rtol=1e-6, atol=1e-3)
    assert image.pixels.dtype == np.float32
    assert image.low <= image.pixels.min()
    assert image.pixels.max() <= image.high


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("name", READABLE)
def test_every_display_window_shows_what_pydicom_shows(archive, name):
    dataset = opened(archive, name)
    frames = int(dataset.get("NumberOfFrames") or 1)
    frame = frames - 1
    values = expected(dataset, frame)
    sequence = dataset.get("VOILUTSequence")
    windows = len(sequence) if sequence else dataset["WindowWidth"].VM if "WindowWidth" in dataset else 0
    if values.ndim == 3:
        windows = 0
    for voi in range(windows):
        image = read_image(path(name), frame=frame, voi=voi)
        shown = upright(apply_voi_lut(values, dataset, index=voi), dataset, image)
        np.testing.assert_allclose(image.pixels, shown, rtol=1e-6, atol=1e-2)
        assert image.unit == "display value"
    if values.ndim == 2:
        with pytest.raises(ValueError, match=f"has {windows} display windows"):
            read_image(path(name), frame=frame, voi=windows)


@needs_data
@pytest.mark.parametrize("name", UNREADABLE)
def test_every_unreadable_file_is_refused_by_name_and_reason(name):
    with pytest.raises(ValueError, match=REASONS[name.rsplit("/", 1)[1]]) as refusal:
        read_image(path(name))
    assert name in str(refusal.value)


@needs_data
def test_computed_tomography_is_in_hounsfield_units():
    image = read_image(path("dicom/ct_chest_rle_signed.dcm"))
    assert image.unit == "HU"
    assert image.pixels[0, 0] == -2000 - 1024  # padding, outside of the scanner's circle


@needs_data
def test_enhanced_frames_use_the_rescale_of_their_own_group():
    assert read_image(path("dicom/ct_enhanced_2frame.dcm"), frame=1).pixels.min() == -1024


@needs_data
def test_monochrome1_shows_air_dark_and_bone_bright():
    image = read_image(path("dicom/cr_leg_mono1_rle.dcm"))
    beside_the_leg, tibia = image.pixels[850:900, 500:550], image.pixels[850:900, 790:840]
    assert (image.low, image.high) == (0, 1023)
    assert np.median(beside_the_leg) < 100 < 600 < np.median(tibia)


@needs_data
def test_two_windows_of_one_file_differ():
    name = path("dicom/mr_overlays.dcm")
    assert not np.array_equal(read_image(name, voi=0).pixels, read_image(name, voi=1).pixels)


@needs_data
def test_several_frames_need_a_choice():
    with pytest.raises(ValueError, match=r"has 16 frames or slices; choose one with frame=0\.\.15"):
        read_image(path("dicom/mr_heart_16frame_8bit.dcm"))
    with pytest.raises(ValueError, match=r"frame 16 .* does not exist"):
        read_image(path("dicom/mr_heart_16frame_8bit.dcm"), frame=16)


@needs_data
def test_dicom_without_a_suffix_is_recognised(archive, tmp_path):
    (tmp_path / "IM000001").write_bytes(archive.read("dicom/mr_small_raw.dcm"))
    np.testing.assert_array_equal(
        read_image(tmp_path / "IM000001").pixels, read_image(path("dicom/mr_small_raw.dcm")).pixels
    )


def encoded(syntax: str) -> bytes:
    """A picture of 16 x 16 zeros as a DICOM file."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, "1.2.3"
    dataset.Rows = dataset.Columns = 16
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 7, 0, 1
    dataset.PhotometricInterpretation, dataset.PixelData = "MONOCHROME2", bytes(256)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_a_deflated_dicom_file_that_is_cut_off_is_refused_by_name(tmp_path):
    data = encoded(pydicom.uid.DeflatedExplicitVRLittleEndian)
    (tmp_path / "whole.dcm").write_bytes(data)
    assert not read_image(tmp_path / "whole.dcm").pixels.any()
    (tmp_path / "cut.dcm").write_bytes(data[:-20])
    with pytest.raises(ValueError, match=r"cut\.dcm cannot be read as a DICOM image"):
        read_image(tmp_path / "cut.dcm")


def test_a_dicom_file_with_a_damaged_type_is_refused_by_name(tmp_path):
    data = encoded(pydicom.uid.ExplicitVRLittleEndian)
    photometric = b"\x28\x00\x04\x00"  # 12 letters: no whole number of doubles
    (tmp_path / "broken.dcm").write_bytes(data.replace(photometric + b"CS", photometric + b"FD"))
    with pytest.raises(ValueError, match=r"broken\.dcm cannot be read as a DICOM image"):
        read_image(tmp_path / "broken.dcm")


def test_a_corrupt_dicom_file_is_refused_by_name(tmp_path):
    (tmp_path / "broken.dcm").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(ValueError, match=r"broken\.dcm cannot be read as a DICOM image"):
        read_image(tmp_path / "broken.dcm")
