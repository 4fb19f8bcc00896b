"""Slices of every NIfTI volume of the development data against nibabel, and orientation by known landmarks."""

import csv
from pathlib import Path

import numpy as np
import pytest

from medgen.data.readers import read_image, read_mask
from tests.data.conftest import data_folder

nibabel = pytest.importorskip("nibabel")

FOLDER = data_folder("nifti")
INDEX = FOLDER / "index.csv"
ROWS = list(csv.DictReader(INDEX.open())) if INDEX.is_file() else []
needs_data = pytest.mark.skipif(
    not ROWS, reason="needs the development data 'nifti'; set MEDGEN_DATA to its parent folder"
)


def pictures(volume: np.ndarray, index: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """The three slices through one voxel of an RAS+ volume, as a radiologist looks at them."""
    x, y, z = index
    return {
        "sagittal": np.flipud(np.fliplr(volume[x].T)),
        "coronal": np.flipud(np.fliplr(volume[:, y].T)),
        "axial": np.flipud(np.fliplr(volume[:, :, z].T)),
    }


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file"])
def test_every_volume_slices_as_nibabel_reads_it(row):
    path = FOLDER / row["file"]
    image = nibabel.as_closest_canonical(nibabel.load(path))
    values = image.get_fdata(dtype=np.float32)
    for volume in range(values.shape[3]) if values.ndim == 4 else [None]:
        one = values if volume is None else values[..., volume]
        index = (one.shape[0] // 3, one.shape[1] // 3, one.shape[2] // 3)
        for axis, picture in pictures(one, index).items():
            number = index[("sagittal", "coronal", "axial").index(axis)]
            got = read_image(path, frame=number, axis=axis, volume=volume)
            np.testing.assert_allclose(got.pixels, picture, rtol=1e-5, atol=1e-4)
            assert got.low <= got.pixels.min()
            assert got.pixels.max() <= got.high


@needs_data
def test_the_scale_slope_is_applied():
    image = read_image(FOLDER / "acdc_patient003_ED.nii.gz", frame=5)
    assert 0.5 < image.pixels.max() <= 1.0
    assert image.high == pytest.approx(32767 / 4095)


@needs_data
def test_label_volumes_give_masks_of_the_same_geometry():
    mask = read_mask(FOLDER / "acdc_patient003_ED_label.nii.gz", frame=5)
    assert mask.shape == read_image(FOLDER / "acdc_patient003_ED.nii.gz", frame=5).pixels.shape
    assert mask.dtype == np.int64
    assert np.unique(mask).tolist() == [0, 1, 2, 3]


@needs_data
def test_a_series_needs_the_choice_of_a_volume():
    with pytest.raises(ValueError, match=r"4-D with 10 volumes; choose one with volume=0\.\.9"):
        read_image(FOLDER / "mr_brain_pcasl_4d.nii.gz", frame=3)


def landmark(tmp_path, axcodes: str) -> str:
    """A volume stored along any axes with one bright voxel at the patient's right, front and head."""
    canonical = np.zeros((4, 5, 6), dtype=np.int16)
    canonical[3, 4, 5] = 100
    to = nibabel.orientations.axcodes2ornt(tuple(axcodes))
    change = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), to)
    image = nibabel.Nifti1Image(canonical, np.diag([2.0, 3.0, 4.0, 1.0])).as_reoriented(change)
    path = tmp_path / f"{axcodes}.nii"
    nibabel.save(image, path)
    return str(path)


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR", "SAL", "ILP"])
def test_patient_right_is_left_front_is_up_and_sagittal_slices_face_left_however_stored(tmp_path, axcodes):
    path = landmark(tmp_path, axcodes)
    axial = read_image(path, frame=5, axis="axial").pixels
    coronal = read_image(path, frame=4, axis="coronal").pixels
    sagittal = read_image(path, frame=3, axis="sagittal").pixels
    assert (axial.shape, coronal.shape, sagittal.shape) == ((5, 4), (6, 4), (6, 5))
    assert axial[0, 0] == coronal[0, 0] == sagittal[0, 0] == 100


def test_a_slice_must_be_chosen_and_exist(tmp_path):
    path = landmark(tmp_path, "RAS")
    with pytest.raises(ValueError, match=r"RAS\.nii \(axial\) has 6 frames or slices"):
        read_image(path)
    with pytest.raises(ValueError, match=r"frame 4 .*\(sagittal\) does not exist"):
        read_image(path, frame=4, axis="sagittal")


def test_nan_voxels_are_counted(tmp_path):
    values = np.zeros((4, 4, 2), dtype=np.float32)
    values[1, 1, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "holes.nii.gz")
    with pytest.raises(ValueError, match=r"holes\.nii\.gz has 1 NaN or infinite pixels of 16"):
        read_image(tmp_path / "holes.nii.gz", frame=0)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b not gzip", b"no header" * 100])
def test_a_corrupt_volume_is_refused_by_name(tmp_path, content):
    (tmp_path / "broken.nii.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.nii\.gz cannot be read as a NIfTI volume"):
        read_image(tmp_path / "broken.nii.gz", frame=0)


@pytest.mark.parametrize(
    ("start", "content"),
    [
        (280, np.array([2, 0, 0, 0, 0, 0, 0, 0, 0], dtype="<f4")),  # srow: two axes without a direction
        (42, np.array([32767, 32767, 32767, 1], dtype="<i2")),  # dim: more voxels than fit into any memory
    ],
    ids=["orientation", "shape"],
)
def test_a_volume_with_a_damaged_header_is_refused_by_name(tmp_path, start, content):
    data = bytearray(Path(landmark(tmp_path, "RAS")).read_bytes())
    data[start : start + content.nbytes] = content.tobytes()
    (tmp_path / "broken.nii").write_bytes(data)
    with pytest.raises(ValueError, match=r"broken\.nii cannot be read as a NIfTI volume: \w"):
        read_image(tmp_path / "broken.nii", frame=0)


def test_a_truncated_volume_is_refused_by_name(tmp_path):
    path = landmark(tmp_path, "RAS")
    (tmp_path / "short.nii").write_bytes(Path(path).read_bytes()[:400])
    with pytest.raises(ValueError, match=r"short\.nii cannot be read"):
        read_image(tmp_path / "short.nii", frame=0)
