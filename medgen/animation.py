"""Animations of pictures as GIF or MP4 files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from medgen.images import written_whole

_FASTEST = {".gif": 50, ".mp4": 120}  # frames per second; GIF players slow down frames of one hundredth of a second


def check_animation(path: str | Path, fps: int) -> None:
    """Check the suffix of a file and the frames per second before frames are drawn, see `save_animation`."""
    kind = Path(path).suffix.lower()
    if kind not in _FASTEST:
        raise ValueError(f"out is {str(path)!r}; use a name that ends in {' or '.join(_FASTEST)}")
    if not 1 <= fps <= _FASTEST[kind]:
        raise ValueError(f"fps is {fps}; use 1 to {_FASTEST[kind]} frames per second for {kind}")
    if kind == ".mp4":
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise ImportError('MP4 needs PyAV; run: pip install "medgen[video]", or write a .gif') from error


def save_animation(
    frames: Sequence[Image.Image], path: str | Path, *, fps: int = 20, text: Mapping[str, str] | None = None
) -> Path:
    """Write pictures as an animation, atomically.

    A GIF loops and keeps all grey values or 256 colours; equal frames give equal files, byte by byte, and a repeated
    picture is stored once with a longer duration. An MP4 is H.264 of high quality; a black line makes odd sides even.

    Args:
        frames: Pictures of one size, mode L or RGB.
        path: File that ends in ``.gif`` or ``.mp4``; its folder is created if missing.
        fps: Frames per second, up to 50 (GIF, rounded to hundredths of a second per frame) or 120 (MP4).
        text: Provenance for the file's comment.

    Raises:
        ValueError: If there are no frames, they differ in size or mode, or the suffix or `fps` is not supported.
        ImportError: If PyAV is missing for MP4.
    """
    target = Path(path)
    check_animation(target, fps)
    if not frames:
        raise ValueError("frames is empty; give at least one picture")
    if len(kinds := {(frame.mode, frame.size) for frame in frames}) > 1:
        raise ValueError(f"frames differ in mode or size: {sorted(kinds)}; give pictures of one kind")
    target.parent.mkdir(parents=True, exist_ok=True)
    comment = "; ".join(f"{key}: {value}" for key, value in (text or {}).items())
    with written_whole(target) as partial:
        (_write_gif if target.suffix.lower() == ".gif" else _write_mp4)(frames, partial, fps, comment)
    return target


def _write_gif(frames: Sequence[Image.Image], path: Path, fps: int, comment: str) -> None:
    first, *others = frames
    options = {"duration": 10 * round(100 / fps), "loop": 0, "comment": comment.encode()}
    first.save(path, format="GIF", save_all=True, append_images=others, **options)


def _write_mp4(frames: Sequence[Image.Image], path: Path, fps: int, comment: str) -> None:
    import av

    width, height = (side + side % 2 for side in frames[0].size)  # H.264 stores colours of 2 x 2 pixels
    with av.open(str(path), "w", format="mp4") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("h264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "14"}
        for frame in frames:
            even = Image.new("RGB", (width, height))
            even.paste(frame)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(even), format="rgb24")))
        container.mux(stream.encode())
