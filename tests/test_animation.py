"""Animations: what is written can be read back, and what cannot be written is refused before work is done."""

import sys

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from medgen.animation import check_animation, save_animation


def pictures(n=5, size=(24, 16), mode="L"):
    """Slopes that brighten from picture to picture."""
    slope = np.add.outer(np.arange(size[1]), np.arange(size[0])) * 2
    return [Image.fromarray((slope + 20 * i).astype(np.uint8)).convert(mode) for i in range(n)]


def read(path):
    """Frames as grey levels, (n, H, W)."""
    if path.suffix == ".gif":
        with Image.open(path) as file:
            return np.stack([np.array(frame.convert("L"), int) for frame in ImageSequence.Iterator(file)])
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="gray").astype(int) for frame in container.decode(video=0)])


def grey(frames):
    return np.stack([np.array(frame.convert("L"), int) for frame in frames])


def test_a_greyscale_gif_keeps_every_value_and_repeats(tmp_path):
    path = save_animation(pictures(), tmp_path / "a.gif", fps=25, text={"SyntheticData": "YES", "seed": "3"})
    assert np.array_equal(read(path), grey(pictures()))
    with Image.open(path) as file:
        assert (file.info["loop"], file.info["duration"]) == (0, 40)
        assert file.info["comment"] == b"SyntheticData: YES; seed: 3"


def test_a_gif_of_colours_is_near(tmp_path):
    frames = [Image.merge("RGB", [one, one.transpose(0), one]) for one in pictures()]
    found = read(save_animation(frames, tmp_path / "a.gif"))
    assert found.shape == (5, 16, 24)
    assert np.abs(found - grey(frames)).mean() < 4


def test_equal_pictures_of_a_gif_are_a_longer_stay(tmp_path):
    first, second = pictures(2)
    with Image.open(save_animation([first, first, first, second], tmp_path / "a.gif", fps=20)) as file:
        assert [frame.info["duration"] for frame in ImageSequence.Iterator(file)] == [150, 50]


def test_the_same_pictures_give_the_same_gif(tmp_path):
    one, same, other = (tmp_path / name for name in ("a.gif", "b.gif", "c.gif"))
    for path, frames in ((one, pictures()), (same, pictures()), (other, pictures()[::-1])):
        save_animation(frames, path)
    assert one.read_bytes() == same.read_bytes() != other.read_bytes()


@pytest.mark.parametrize(("size", "even"), [((24, 16), (16, 24)), ((23, 17), (18, 24))])
def test_an_mp4_has_all_pictures_on_an_even_canvas(tmp_path, size, even):
    frames = pictures(size=size)
    path = save_animation(frames, tmp_path / "a.mp4", fps=12, text={"SyntheticData": "YES"})
    found = read(path)
    assert found.shape == (5, *even)
    assert np.abs(found[:, : size[1], : size[0]] - grey(frames)).mean() < 4
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.codec_context.name, stream.pix_fmt) == (12, "h264", "yuv420p")
        assert container.metadata["comment"] == "SyntheticData: YES"


@pytest.mark.parametrize("suffix", [".gif", ".mp4", ".GIF"])
def test_a_single_picture_and_a_new_folder_will_do(tmp_path, suffix):
    path = save_animation(pictures(1), tmp_path / "new" / f"a{suffix}")
    assert path.is_file()


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_what_goes_wrong_leaves_the_file_that_was_there(tmp_path, suffix, monkeypatch):
    path = save_animation(pictures(2), tmp_path / f"a{suffix}")
    before = path.read_bytes()

    def fail(*args, **options):
        raise OSError("the disk is full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="the disk is full"):
        save_animation(pictures(3), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_without_pyav_mp4_is_refused_and_gif_is_not(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'MP4 needs PyAV; run: pip install "medgen\[video\]", or write a .gif'):
        save_animation(pictures(), tmp_path / "a.mp4")
    assert save_animation(pictures(), tmp_path / "a.gif").is_file()


@pytest.mark.parametrize(
    ("name", "fps", "message"),
    [
        ("a.avi", 20, "out is 'a.avi'; use a name that ends in .gif or .mp4"),
        ("gif", 20, "out is 'gif'"),
        ("a.gif", 0, "fps is 0; use 1 to 50 frames per second for .gif"),
        ("a.gif", 51, "fps is 51"),
        ("a.mp4", 121, "fps is 121; use 1 to 120"),
    ],
)
def test_files_and_speeds_that_there_are_not_are_refused(name, fps, message):
    with pytest.raises(ValueError, match=message):
        check_animation(name, fps)


def test_pictures_that_do_not_go_together_are_refused(tmp_path):
    with pytest.raises(ValueError, match="frames is empty; give at least one picture"):
        save_animation([], tmp_path / "a.gif")
    for others in (pictures(1, (24, 18)), pictures(1, mode="RGB")):
        with pytest.raises(ValueError, match="frames differ in mode or size"):
            save_animation(pictures(2) + others, tmp_path / "a.gif")
    assert not any(tmp_path.iterdir())
