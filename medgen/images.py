"""Conversion between float images in [0, 1], bytes in [0, 255] and picture files."""

from __future__ import annotations

import colorsys
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, PngImagePlugin
from torch import Tensor

_ROUNDING = 1e-3
_GOLDEN = 0.618034  # steps of the golden ratio keep any number of hues apart


def to_uint8(images: Tensor) -> Tensor:
    """Convert floating point images in [0, 1], without NaN, to bytes in [0, 255], rounded and clipped."""
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; expected floating point in [0, 1]")
    if bool(torch.isnan(images).any()):
        raise ValueError("images hold NaN; the model that made them has diverged or its weights are damaged")
    return images.float().clamp(0, 1).mul(255).round().to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """Convert bytes in [0, 255] to float32 images in [0, 1]."""
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}; expected uint8")
    return images.to(torch.float32).div(255)


def check_images(
    images: Tensor, *, channels: int | None = None, size: tuple[int, int] | None = None, name: str = "images"
) -> None:
    """Raise ValueError unless images are (B, C, H, W) floating point in [0, 1], give or take a thousandth.

    An empty batch is allowed. ``channels`` is None for 1 or 3, ``size`` (height, width) None for any; ``name`` is the
    name in messages.
    """
    sides = f"{size[0]}, {size[1]}" if size else "H, W"
    allowed = (1, 3) if channels is None else (channels,)
    expected = " or ".join(f"(B, {count}, {sides})" for count in allowed)
    if not isinstance(images, Tensor):
        raise ValueError(f"{name} are {images!r:.80}; give a tensor {expected} in [0, 1]")
    if images.dim() != 4 or images.shape[1] not in allowed or size not in (None, tuple(images.shape[2:])):
        raise ValueError(f"{name} have shape {tuple(images.shape)}; expected {expected}")
    if not images.is_floating_point():
        raise ValueError(f"{name} are {images.dtype}; expected floating point in [0, 1], see medgen.images.from_uint8")
    if not images.numel():
        return
    low, high = (float(value) for value in images.aminmax())
    if not math.isfinite(low + high):
        raise ValueError(f"{name} hold NaN or infinite values; give numbers in [0, 1]")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ValueError(
            f"{name} span [{low:.3g}, {high:.3g}]; expected floating point in [0, 1]: divide by the largest grey level"
        )


def to_pil(image: Tensor) -> Image.Image:
    """Convert an image (C, H, W) in [0, 1] to a PIL image: mode L for one channel, RGB for three."""
    if image.dim() != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"image has shape {tuple(image.shape)}; expected (1, H, W) or (3, H, W)")
    pixels: NDArray[np.uint8] = to_uint8(image).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def save_png(image: Tensor | Image.Image, path: Path, text: Mapping[str, str] | None = None) -> None:
    """Write an image (C, H, W) in [0, 1] or a PIL image as PNG, atomically; ``text`` goes into its tEXt chunks."""
    picture = to_pil(image) if isinstance(image, Tensor) else image
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    with written_whole(path) as partial:
        picture.save(partial, format="PNG", pnginfo=info)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` on success and is removed on failure."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")  # several processes may write the same picture
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def save_images(images: Tensor, folder: str | Path, *, first_index: int = 0) -> list[Path]:
    """Write images (n, C, H, W) in [0, 1] as ``000000.png``, ``000001.png`` and so on; returns the files.

    The folder is created if missing; ``first_index`` is the number of the first file.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths = [target / f"{first_index + i:06d}.png" for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        save_png(image, path)
    return paths


def coloured(masks: Tensor, classes: int) -> Tensor:
    """Colour label maps (B, H, W): (B, 3, H, W) in [0, 1], one hue per class, black background (class 0)."""
    hues = [colorsys.hsv_to_rgb(k * _GOLDEN % 1, 0.7, 1.0) for k in range(classes - 1)]
    return torch.tensor([(0.0, 0.0, 0.0), *hues])[masks.long()].movedim(-1, 1)


def image_grid(images: Tensor, *, columns: int, captions: Sequence[str] = (), scale: int = 1) -> Image.Image:
    """Contact sheet (mode L or RGB) of images (n, C, H, W) in [0, 1] with optional captions.

    ``columns`` is the number of images per row; ``scale`` enlarges them by repeating pixels.
    """
    if captions and len(captions) != len(images):
        raise ValueError(f"captions has {len(captions)} texts for {len(images)} images")
    n, channels, height, width = images.shape
    gap, text_height = 4, 14 if captions else 0
    cell_h, cell_w = height * scale + text_height + gap, width * scale + gap
    rows = -(-n // columns)
    sheet = Image.new("L" if channels == 1 else "RGB", (columns * cell_w + gap, rows * cell_h + gap))
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        left, top = gap + (i % columns) * cell_w, gap + (i // columns) * cell_h
        sheet.paste(to_pil(image).resize((width * scale, height * scale), Image.Resampling.NEAREST), (left, top))
        if captions:
            draw.text((left, top + height * scale + 1), captions[i], fill="white" if channels == 3 else 255)
    return sheet
