"""Checks of label maps from users, and their reading from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".nii", ".gz", ".dcm")


def checked_masks(masks: object, num_classes: int | None, image_size: tuple[int, int], name: str = "mask") -> Tensor:
    """Check label maps, or maps of instances (no `num_classes`), and return them as int64 (B, H, W) or (H, W).

    Raises:
        ValueError: If they are of another shape or type, or hold other numbers, which are named.
    """
    numbers = "class numbers" if num_classes is not None else "numbers of instances"
    if isinstance(masks, np.ndarray):
        masks = torch.from_numpy(masks.astype(np.int64) if masks.dtype.kind in "iub" else masks)
    if not isinstance(masks, Tensor):
        raise ValueError(
            f"{name} is {masks!r:.80}; give {numbers} as a tensor or array (n, H, W) or, where images are "
            "sampled, a file or folder of index PNGs"
        )
    if masks.dim() == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.dim() not in (2, 3) or tuple(masks.shape[-2:]) != image_size:
        height, width = image_size
        hint = ". Resize maps by nearest neighbour, as other ways make classes that are not there"
        for axis in (1, -1):
            if masks.dim() == 4 and masks.select(axis, 0).shape[1:] == image_size and masks.shape[axis] == num_classes:
                hint = f". It has a channel for each class: take {name}.argmax({axis})"
        raise ValueError(
            f"{name} has shape {tuple(masks.shape)}; expected (n, {height}, {width}), the size of the images{hint}"
        )
    if masks.is_floating_point() or masks.is_complex():
        raise ValueError(f"{name} is of type {masks.dtype}; give whole {numbers}, such as torch.int64")
    masks = masks.to(torch.int64)
    if num_classes is None:
        return masks
    values = masks.unique().tolist()
    if values and not (values[0] >= 0 and values[-1] < num_classes):
        shown = ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
        hint = "; write class numbers, such as 0 and 1, instead of 0 and 255" if values in ([0, 255], [255]) else ""
        raise ValueError(
            f"{name} holds the values {shown}; this generator has the classes 0 to {num_classes - 1}{hint}"
        )
    return masks


def masks_of_files(path: str | Path, indices: range) -> Tensor:
    """Read label maps (n, H, W) for images with these numbers, which take the files of a folder, or one file, in turn.

    Raises:
        FileNotFoundError: If there is no such file, or none in the folder.
        ValueError: If a file is no label map, or they differ in size.
    """
    from medgen.data.readers import read_mask

    path = Path(path)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"mask {path} is a folder without label maps ({', '.join(_SUFFIXES)})")
    if not files[0].is_file():
        raise FileNotFoundError(f"mask {path} is not there; give a label map or a folder of them")
    read = {
        file: torch.from_numpy(read_mask(file).astype("int64")) for file in {files[i % len(files)] for i in indices}
    }
    sizes = {tuple(mask.shape) for mask in read.values()}
    if len(sizes) > 1:
        raise ValueError(f"the label maps in {path} have different sizes: {', '.join(map(str, sorted(sizes)))}")
    return torch.stack([read[files[i % len(files)]] for i in indices])
