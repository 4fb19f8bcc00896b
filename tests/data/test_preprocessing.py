"""Size, channels, window and depth of one training image, by known answers."""

import numpy as np
import pytest
from PIL import Image

from medgen.data.files import FileRoot
from medgen.data.preprocessing import Preprocessing, resized, resized_mask
from medgen.data.readers import IntensityWindow, read_image


def settings(**changes):
    defaults = {"image_size": (4, 4), "channels": 1, "window": IntensityWindow(), "resize": "crop"}
    return Preprocessing(**defaults | {"axis": "axial", "volume": None, "voi": None} | changes)


def grey(rows):
    return np.array(rows, dtype=np.float32)[..., None]


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = np.tile(grey([[0], [100]]), (32, 64, 1))  # the finest stripes there can be
    small = resized(stripes, (16, 16), "stretch")
    np.testing.assert_allclose(small[2:-2], 50, atol=1)


def test_shrinking_keeps_the_mean():
    pixels = np.random.default_rng(0).random((60, 90, 1), dtype=np.float32)
    assert resized(pixels, (16, 24), "stretch").mean() == pytest.approx(pixels.mean(), abs=2e-3)


def test_enlarging_stays_within_the_old_range():
    pixels = grey([[0, 100], [100, 0]])
    large = resized(pixels, (16, 16), "stretch")
    assert (large.min(), large.max()) == (0, 100)


def test_crop_takes_the_centre_of_the_right_shape():
    pixels = grey([[9, 1, 2, 9], [9, 3, 4, 9]])
    np.testing.assert_array_equal(resized(pixels, (2, 2), "crop"), grey([[1, 2], [3, 4]]))


def test_pad_keeps_everything_and_fills_the_borders():
    pixels = grey([[1, 2, 3, 4]])
    np.testing.assert_array_equal(resized(pixels, (3, 4), "pad", fill=-1), grey([[-1] * 4, [1, 2, 3, 4], [-1] * 4]))


@pytest.mark.parametrize("policy", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(17, 40), (64, 20), (50, 50)])
def test_masks_move_with_their_images(policy, size):
    classes = np.zeros((50, 30), dtype=np.uint8)
    classes[20:40, 10:20] = 1
    image = resized(classes[..., None].astype(np.float32), size, policy)[..., 0]
    mask = resized_mask(classes, size, policy)
    assert mask.shape == size
    assert set(np.unique(mask)) == {0, 1}
    assert np.abs(image - mask).mean() < 0.06  # they differ at the edges of the square only


def test_colours_stay_apart_when_resized():
    pixels = np.zeros((8, 8, 3), dtype=np.float32)
    pixels[..., 1] = 7
    np.testing.assert_array_equal(resized(pixels, (4, 4), "crop")[0, 0], [0, 7, 0])


def test_8_bit_pictures_at_their_own_size_are_kept_exactly(tmp_path):
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = settings().image(read_image(tmp_path / "a.png"), "a.png", np.dtype(np.uint8))
    np.testing.assert_array_equal(image, pixels[None])


def test_16_bit_pictures_keep_their_depth(tmp_path):
    pixels = (np.arange(16, dtype=np.uint16) * 4369).reshape(4, 4)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    how = settings(window=IntensityWindow(0, 65535))
    depth = how.depth(["a.png"])
    assert depth == np.uint16
    np.testing.assert_array_equal(how.image(read_image(tmp_path / "a.png"), "a.png", depth), pixels[None])


@pytest.mark.parametrize(
    ("window", "names", "bits"),
    [
        (IntensityWindow(0, 255), ["a.png", "b.JPG"], 8),
        (IntensityWindow(0, 255), ["a.png", "b.dcm"], 16),
        (IntensityWindow(-160, 240, "HU"), ["a.png"], 16),
        (IntensityWindow(0, 1, "declared range"), ["a.png"], 16),
        (IntensityWindow(0, 1), ["a.nii.gz"], 16),
    ],
)
def test_one_byte_is_kept_only_where_nothing_is_lost(window, names, bits):
    assert settings(window=window).depth(names).itemsize * 8 == bits


def mask_file(tmp_path, values):
    Image.fromarray(np.array(values, dtype=np.uint8)).save(tmp_path / "m.png")
    return FileRoot(tmp_path)


def test_masks_keep_their_classes(tmp_path):
    root = mask_file(tmp_path, [[0, 1], [2, 3]])
    np.testing.assert_array_equal(settings().read_mask(root, "m.png", None, 4), [[0, 1], [2, 3]])


def test_a_mask_with_too_many_classes_is_refused_with_its_values(tmp_path):
    root = mask_file(tmp_path, [[0, 1], [2, 3]])
    with pytest.raises(ValueError, match=r"m\.png holds the values 0, 1, 2, 3, but mask_classes allows 0\.\.2"):
        settings().read_mask(root, "m.png", None, 3)


def test_a_0_and_255_mask_is_refused_with_the_way_out(tmp_path):
    root = mask_file(tmp_path, [[0, 255], [0, 0]])
    with pytest.raises(ValueError, match="write the mask as 0 and 1 instead of 0 and 255"):
        settings().read_mask(root, "m.png", None, 2)


def test_an_image_passed_as_a_mask_is_called_one(tmp_path):
    root = mask_file(tmp_path, np.arange(64).reshape(8, 8))
    with pytest.raises(ValueError, match="it is an image, not a mask"):
        settings().read_mask(root, "m.png", None, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (0, 4)}, r"image_size is \(0, 4\)"),
        ({"channels": 2}, "channels is 2; use 1 for grey or 3 for colour"),
        ({"resize": "squash"}, "resize is 'squash'"),
    ],
)
def test_settings_without_meaning_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)
