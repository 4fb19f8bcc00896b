"""Pictures of every kind Pillow and torchvision can write, read back by known pixels."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from medgen.data.readers import IntensityWindow, RawImage, looks_like_mask, read_image, read_mask
from tests.data.fakes import picture

RAMP8 = np.arange(256, dtype=np.uint8).reshape(16, 16)
RAMP16 = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)


def saved(tmp_path, name, pixels, mode=None, **options):
    Image.fromarray(pixels, mode).save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_8_bit_grey_keeps_its_values(tmp_path, name):
    image = read_image(saved(tmp_path, name, RAMP8))
    np.testing.assert_array_equal(image.pixels, RAMP8)
    assert (image.low, image.high, image.unit, image.pixels.dtype) == (0, 255, "stored value", np.float32)


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bit_grey_keeps_its_values(tmp_path, name):
    image = read_image(saved(tmp_path, name, RAMP16))
    np.testing.assert_array_equal(image.pixels, RAMP16)
    assert (image.low, image.high) == (0, 65535)


def test_16_bit_colour_png_is_not_reduced_to_8_bit(tmp_path):
    colour = np.stack([RAMP16, RAMP16.T, RAMP16 // 2])
    data = encode_png_16(colour)
    (tmp_path / "a.png").write_bytes(data)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels, colour.transpose(1, 2, 0))


def encode_png_16(planes):
    """A 16-bit colour PNG, which neither Pillow nor torchvision can write."""
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    _, height, width = planes.shape
    lines = b"".join(b"\0" + planes[:, row].T.astype(">u2").tobytes() for row in range(height))
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("pixels", [RAMP8, RAMP16])
def test_tiff_in_which_white_is_zero_is_turned_around_in_any_depth(tmp_path, pixels):
    plain = read_image(saved(tmp_path, "plain.tif", pixels))
    stored = np.iinfo(pixels.dtype).max - pixels  # what a scanner of films writes
    (tmp_path / "film.tif").write_bytes(encode_tiff(stored, photometric=0))
    film = read_image(tmp_path / "film.tif")
    np.testing.assert_array_equal(film.pixels, plain.pixels)
    assert (film.low, film.high) == (plain.low, plain.high)


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("<i1", -128, 127), ("<i2", -(2**15), 2**15 - 1), ("<i4", -(2**31), 2**31 - 1), ("<u4", 0, 2**32 - 1)],
)
def test_tiff_declares_the_range_of_the_type_it_stores(tmp_path, dtype, low, high):
    pixels = np.array([[low, high], [0, 100]], dtype=dtype)
    (tmp_path / "a.tif").write_bytes(encode_tiff(pixels))
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.pixels, pixels.astype(np.float32))
    assert (image.low, image.high) == (low, high)


def test_tiff_of_12_bits_declares_12_bits(tmp_path):
    (tmp_path / "a.tif").write_bytes(encode_tiff(np.array([[0x12, 0x3F, 0xFF]], dtype=np.uint8), width=2, bits=12))
    image = read_image(tmp_path / "a.tif")
    assert (image.pixels.tolist(), image.low, image.high) == ([[0x123, 0xFFF]], 0, 4095)


def encode_tiff(rows, *, photometric=1, width=None, bits=None):
    """A grey TIFF of one strip, of types that Pillow reads but does not write."""
    import struct

    tags = {
        256: width or rows.shape[1],
        257: rows.shape[0],
        258: bits or rows.itemsize * 8,
        259: 1,  # not compressed
        262: photometric,
        273: 8,  # where the strip begins
        278: rows.shape[0],
        279: rows.nbytes,
        339: 2 if rows.dtype.kind == "i" else 1,
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + rows.nbytes) + rows.tobytes() + directory


def test_floating_point_tiff_declares_its_own_range(tmp_path):
    image = read_image(saved(tmp_path, "a.tif", np.linspace(-1, 2, 256, dtype=np.float32).reshape(16, 16)))
    assert (image.low, image.high) == (-1, 2)


def test_jpeg_is_read_within_its_loss(tmp_path):
    pixels = picture(0)
    image = read_image(saved(tmp_path, "a.jpg", pixels, quality=95))
    assert np.abs(image.pixels - pixels).max() < 12


def test_colour_keeps_its_channels(tmp_path):
    pixels = picture(0, colour=True)
    np.testing.assert_array_equal(read_image(saved(tmp_path, "a.png", pixels)).pixels, pixels)


def test_palette_pictures_give_their_colours(tmp_path):
    indices = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2), "P")
    indices.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
    indices.save(tmp_path / "a.png")
    colours = [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 8, 7]]]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels, colours)


def test_palette_masks_give_their_indices(tmp_path):
    indices = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2), "P")
    indices.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
    indices.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), [[0, 1], [2, 3]])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_grey_stored_as_colour_is_grey(tmp_path, mode):
    Image.fromarray(RAMP8).convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels, RAMP8)


def test_transparent_pixels_are_black(tmp_path):
    pixels = np.full((4, 4, 4), 200, dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[0, 0, 3] = 0
    image = read_image(saved(tmp_path, "a.png", pixels))
    assert image.pixels[0, 0] == 0
    assert (image.pixels.ravel()[1:] == 200).all()


def test_photographs_are_turned_as_their_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise
    pixels = picture(1, size=(16, 24))
    image = read_image(saved(tmp_path, "a.jpg", pixels, quality=95, exif=exif))
    assert np.abs(image.pixels - np.rot90(pixels, -1)).max() < 12


def test_pages_of_a_tiff_are_frames(tmp_path):
    pages = [Image.fromarray(np.full((4, 4), value, dtype=np.uint8)) for value in (10, 20, 30)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert read_image(tmp_path / "a.tif", frame=2).pixels[0, 0] == 30
    with pytest.raises(ValueError, match=r"a\.tif has 3 frames or slices; choose one with frame=0\.\.2"):
        read_image(tmp_path / "a.tif")


def test_a_file_inside_a_zip_is_read_by_its_path(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(RAMP8).save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.writestr("images/a.png", buffer.getvalue())
    np.testing.assert_array_equal(read_image(tmp_path / "scans.zip/images/a.png").pixels, RAMP8)
    with pytest.raises(FileNotFoundError, match=r"scans\.zip/images/b\.png"):
        read_image(tmp_path / "scans.zip/images/b.png")


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\nnonsense", b"\x89PNG\r\n\x1a\n" + b"\0" * 16 + b"\x10" * 8, b"GIF89a"]
)
def test_a_corrupt_picture_is_refused_by_name(tmp_path, content):
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png is not a readable image"):
        read_image(tmp_path / "broken.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_truncated_picture_is_refused_by_name(tmp_path, name):
    path = saved(tmp_path, name, np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-1500])
    with pytest.raises(ValueError, match=f"{name} is not a readable image"):
        read_image(path)


def test_a_tiff_whose_tags_are_damaged_is_refused_by_name(tmp_path):
    path = saved(tmp_path, "a.tif", RAMP8)
    data = bytearray(path.read_bytes())
    data[data.index(b"\x11\x01\x04\x00") + 2] = 2  # where the pixels begin, now of the type of a text
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.tif is not a readable image"):
        read_image(path)


def test_flipped_bits_in_a_png_are_noticed(tmp_path):
    path = saved(tmp_path, "a.png", np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.png is not a readable image"):
        read_image(path)


def test_unsupported_types_are_refused_with_the_supported_ones(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(ValueError, match=r"notes\.txt is of an unsupported type; medgen reads \.png, \.jpg"):
        read_image(tmp_path / "notes.txt")


def test_nan_pixels_are_counted(tmp_path):
    pixels = np.zeros((4, 4), dtype=np.float32)
    pixels[0, :3] = np.nan
    with pytest.raises(ValueError, match=r"a\.tif has 3 NaN or infinite pixels of 16"):
        read_image(saved(tmp_path, "a.tif", pixels))


def test_a_window_maps_its_ends_to_0_and_1_and_clips():
    image = RawImage(np.array([[-1100, -1000, 0, 1000, 3000]], dtype=np.float32), -1024, 3071, "HU")
    np.testing.assert_allclose(IntensityWindow(-1000, 1000, "HU").apply(image), [[0, 0, 0.5, 1, 1]])


def test_a_window_in_another_unit_is_refused():
    image = RawImage(np.zeros((2, 2), dtype=np.float32), -1024, 3071, "HU")
    with pytest.raises(ValueError, match=r"ct\.dcm holds 'HU' from -1024 to 3071, but the intensity window \(0, 255\)"):
        IntensityWindow(0, 255).apply(image, "ct.dcm")


def test_a_window_of_the_declared_range_suits_any_depth():
    window = IntensityWindow(0, 1, "declared range")
    for high in (255, 1023, 65535):
        image = RawImage(np.array([[0, high]], dtype=np.float32), 0, high, "stored value")
        np.testing.assert_array_equal(window.apply(image), [[0, 1]])


def test_a_window_must_not_be_empty():
    with pytest.raises(ValueError, match=r"intensity_window is \(10, 10\)"):
        IntensityWindow(10, 10)


def test_label_maps_are_told_from_pictures():
    labels = np.repeat(np.arange(16, dtype=np.float32), 16).reshape(16, 16)
    assert looks_like_mask(RawImage(labels, 0, 255, "stored value"))
    assert looks_like_mask(RawImage(np.repeat(labels[..., None] * 3, 3, axis=2), 0, 255, "stored value"))
    assert not looks_like_mask(RawImage(picture(0).astype(np.float32), 0, 255, "stored value"))
    assert not looks_like_mask(RawImage(labels / 16, 0, 1, None))


def test_colour_becomes_luma_and_grey_is_repeated():
    colour = RawImage(np.array([[[100, 200, 50]]], dtype=np.float32), 0, 255, "stored value")
    assert colour.to_channels(1)[0, 0, 0] == pytest.approx(0.299 * 100 + 0.587 * 200 + 0.114 * 50)
    grey = RawImage(np.array([[7]], dtype=np.float32), 0, 255, "stored value")
    assert grey.to_channels(3).tolist() == [[[7, 7, 7]]]


def test_pictures_are_refused_as_masks(tmp_path):
    with pytest.raises(ValueError, match="is a colour image, not a mask"):
        read_mask(saved(tmp_path, "a.png", picture(0, colour=True)))
    with pytest.raises(ValueError, match="not whole class numbers"):
        read_mask(saved(tmp_path, "a.tif", np.full((2, 2), 0.5, dtype=np.float32)))
