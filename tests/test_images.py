import os

import numpy as np
import pytest
import torch
from PIL import Image

from medgen.images import coloured, from_uint8, image_grid, save_images, save_png, to_pil, to_uint8


def test_every_byte_survives_the_way_through_float():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)


def test_values_are_rounded_to_nearest_and_clipped():
    values = torch.tensor([-1.0, 0.0, 0.49 / 255, 0.51 / 255, 1.0, 2.0])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_are_taken(dtype):
    assert to_uint8(torch.tensor([0.0, 1.0], dtype=dtype)).tolist() == [0, 255]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_uint8(torch.tensor([1, 2])), "images are torch.int64; expected floating point"),
        (lambda: to_uint8(torch.tensor([torch.nan])), "images hold NaN; the model that made them has diverged"),
        (lambda: from_uint8(torch.zeros(2)), "images are torch.float32; expected uint8"),
        (lambda: to_pil(torch.zeros(2, 4, 4)), r"image has shape \(2, 4, 4\); expected \(1, H, W\) or \(3, H, W\)"),
        (lambda: to_pil(torch.zeros(4, 4)), "expected"),
        (lambda: image_grid(torch.zeros(2, 1, 4, 4), columns=2, captions=["a"]), "captions has 1 texts for 2 images"),
    ],
)
def test_what_is_no_image_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_saved_images_come_back_pixel_by_pixel(tmp_path, channels, mode):
    images = torch.rand(2, channels, 5, 7)
    paths = save_images(images, tmp_path / "new" / "folder", first_index=41)
    assert [path.name for path in paths] == ["000041.png", "000042.png"]
    for path, image in zip(paths, images, strict=True):
        picture = Image.open(path)
        assert (picture.mode, picture.size) == (mode, (7, 5))
        pixels = torch.from_numpy(np.array(picture)).reshape(5, 7, channels).permute(2, 0, 1)
        assert torch.equal(pixels, to_uint8(image))


def test_text_goes_into_the_file(tmp_path):
    save_png(torch.zeros(1, 2, 2), tmp_path / "a.png", {"seed": "7"})
    assert Image.open(tmp_path / "a.png").text == {"seed": "7"}


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    save_png(torch.zeros(1, 2, 2), tmp_path / "a.png")

    def fail(self, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save_png(torch.ones(1, 2, 2), tmp_path / "a.png")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert np.array(Image.open(tmp_path / "a.png")).max() == 0


def test_two_processes_may_write_the_same_picture_at_once(tmp_path, monkeypatch):
    real = Image.Image.save

    def save(self, path, **options):
        real(self, path, **options)
        monkeypatch.undo()
        monkeypatch.setattr(os, "getpid", lambda: 1)  # the other process begins and ends while this one is half way
        save_png(torch.zeros(1, 2, 2), tmp_path / "a.png")

    monkeypatch.setattr(Image.Image, "save", save)
    save_png(torch.ones(1, 2, 2), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert np.array(Image.open(tmp_path / "a.png")).min() == 255


def test_the_grid_places_images_row_by_row():
    images = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0]).reshape(5, 1, 1, 1).expand(5, 1, 8, 6)
    grid = image_grid(images, columns=3, scale=2)
    pixels = np.array(grid)
    assert (grid.mode, grid.size) == ("L", (3 * 16 + 4, 2 * 20 + 4))
    for i in range(5):
        top, left = 4 + (i // 3) * 20, 4 + (i % 3) * 16
        assert (pixels[top : top + 16, left : left + 12] == to_uint8(images[i]).max().item()).all()
    assert (pixels[24:40, 36:48] == 0).all()  # the sixth place is empty


def test_captions_are_drawn_under_the_images():
    images = torch.zeros(2, 3, 16, 64)
    grid = np.array(image_grid(images, columns=1, captions=["Edema", ""]))
    assert grid[20:34].max() > 0
    assert grid[54:].max() == 0


def test_masks_of_other_classes_have_other_colours_on_black():
    pictures = coloured(torch.arange(30).view(1, 5, 6), 30)
    assert pictures.shape == (1, 3, 5, 6)
    assert len(pictures.flatten(2)[0].T.unique(dim=0)) == 30
    assert pictures[0, :, 0, 0].tolist() == [0, 0, 0]
    assert pictures.flatten(2)[0, :, 1:].amax(0).min() == 1
