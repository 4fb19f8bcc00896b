"""Translation of a folder of images into a folder of numbered PNGs with a table."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medgen.data.cache import content_key
from medgen.data.files import FileRoot
from medgen.data.preprocessing import Preprocessing, ResizePolicy
from medgen.data.raw_image import IntensityWindow
from medgen.data.readers import DICOM_SUFFIXES, RASTER_SUFFIXES
from medgen.generator import Precision, check_precision
from medgen.run_folder import MASK_FOLDER, RUN_FILE, RunFolder, numbered
from medgen.translator import Translator

_SUFFIXES = RASTER_SUFFIXES + DICOM_SUFFIXES  # a NIfTI file holds many slices
COLUMNS = ("file", "label", "source", "index", "checkpoint", "revision")


def translate_folder(
    translator: Translator,
    source: str | Path,
    to: str | int,
    folder: str | Path,
    *,
    resize: ResizePolicy = "crop",
    batch_size: int = 16,
    precision: Precision = "float32",
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> Path:
    """Translate the images of a folder or zip archive to a domain, unless they exist already.

    Several processes may share the work, as in `medgen.sampling.sample_to_folder`.

    Files are PNG, JPEG, TIFF or DICOM; the grid and masks of a folder that `medgen sample` wrote are left out. The
    translator's config gives the size and intensity window of images; `resize` is the treatment of those of another
    shape, see `medgen.data.preprocessing`. The domain is given by name or number.

    Returns:
        The table, ``samples.csv``, with the columns of `COLUMNS`; ``label`` is the domain, ``source`` the file.

    Raises:
        ValueError: If an argument is out of range, the domain is unknown, or a file cannot be read.
        FileNotFoundError: If the folder is missing or has no image.
        FileExistsError: If the folder of the run holds another run or other PNG files.
        OSError: If the disk is full; the same call resumes.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; use at least 1")
    check_precision(precision)
    domain = translator.domains[translator.label_space.index(to)]
    root = FileRoot(source)
    if Path(folder).resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(f"folder {folder} lies in {source}, whose images are translated; choose one outside")
    names = _image_names(root)
    if not names:
        raise FileNotFoundError(f"{source} holds no image ({', '.join(_SUFFIXES)})")
    config = translator.config
    reader = Preprocessing(
        image_size=config.image_size,
        channels=config.channels,
        window=IntensityWindow(*config.intensity_window, config.intensity_unit),
        resize=resize,
        axis="axial",
        volume=None,
        voi=None,
    )
    origin = {"checkpoint": translator.source, "revision": translator.revision}
    request = origin | {
        "to": domain,
        "source": str(source),
        "files": content_key([(name, sha256(root.read(name)).hexdigest()) for name in names]),
        "resize": resize,
        "precision": precision,
    }
    target = RunFolder(folder, request)
    for indices in target.batches(len(names), batch_size, rank=rank, world_size=world_size, progress=progress):
        images = torch.stack([_read(reader, root, names[i]) for i in indices])
        translated = translator.translate(images, domain, batch_size=batch_size, precision=precision)
        target.claim()
        for index, image in zip(indices, translated, strict=True):
            text = {"index": str(index), "label": domain, "source": names[index]}
            target.write(numbered(index), image, text | origin)
    return target.write_table(len(names), COLUMNS, lambda i: (numbered(i), domain, names[i], i, *origin.values()))


def _image_names(root: FileRoot) -> list[str]:
    """The images below a root, without the grid and masks of a run."""
    names = root.names()
    if RUN_FILE in names:
        names = [name for name in names if name != "grid.png" and not name.startswith(f"{MASK_FOLDER}/")]
    return [name for name in names if name.lower().endswith(_SUFFIXES)]


def _read(reader: Preprocessing, root: FileRoot, name: str) -> Tensor:
    """Read one image, (C, H, W) float32 in [0, 1], at the translator's size."""
    depth = np.dtype(np.uint16)
    pixels = reader.image(reader.read_raw(root, name, None), root.locate(name), depth)
    return torch.from_numpy(pixels.astype(np.float32) / np.iinfo(np.uint16).max)
