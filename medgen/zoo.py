"""The checkpoints medgen knows by name, and `load`, the one way to get any of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medgen.generator import Generator

_PACKAGE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """Where a named checkpoint is and what it is.

    Attributes:
        family: The generator family.
        description: One line for `medgen list`.
        licence: Licence of the weights as stated by their owners.
        bundled: Whether the weights come with medgen.
        space: Hub Space that holds the authors' own file.
        pattern: Which file of the Space, a glob.
        repo: Hub repository in medgen's format.
        revision: Commit of `repo` that this release loads.
    """

    family: str
    description: str
    licence: str
    bundled: bool = False
    space: str = ""
    pattern: str = ""
    repo: str = ""
    revision: str = ""


_SPACE = "mueller-franzes/medfusion-app"

ZOO: Mapping[str, ModelEntry] = {
    "medfusion-cxr": ModelEntry(
        family="medfusion",
        description="64 px frontal chest X-rays, No Finding / Pneumonia; small, trained on a CPU",
        licence="see the model card",
        bundled=True,
    ),
    "medfusion-chexpert": ModelEntry(
        family="medfusion",
        description="256 px frontal chest X-rays, cardiomegaly no / yes; the authors' weights",
        licence="not stated by the authors",
        space=_SPACE,
        pattern="runs/2022_11_27_085654_chest_diffusion/last.ckpt",
    ),
    "medfusion-airogs": ModelEntry(
        family="medfusion",
        description="256 px fundus photographs, glaucoma no / yes; the authors' weights",
        licence="not stated by the authors",
        space=_SPACE,
        pattern="runs/*eye_diffusion/last.ckpt",
    ),
    "medfusion-crcdx": ModelEntry(
        family="medfusion",
        description="512 px colorectal histology, microsatellite stable / instable; the authors' weights",
        licence="not stated by the authors",
        space=_SPACE,
        pattern="runs/*@(colon|crc|histo)*diffusion/last.ckpt",
    ),
}


def list_models() -> list[str]:
    """Names that `load` knows, in order of the table."""
    return list(ZOO)


def bundled_folder(name: str) -> Path:
    """Folder of a checkpoint that comes with medgen: inside the installed package, or beside it in a source tree.

    Raises:
        FileNotFoundError: If this installation lacks it.
    """
    for folder in (_PACKAGE / "checkpoints" / name, _PACKAGE.parent / "checkpoints" / name):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(f"checkpoint {name!r} is not in this installation of medgen; reinstall the package")


def load(name: str | Path, *, revision: str | None = None) -> Generator:
    """Get a generator, ready to sample.

    Args:
        name: A name of `list_models`, a checkpoint folder, ``org/repo`` or ``org/repo@revision`` on the Hub.
        revision: Commit, tag or branch on the Hub; another way to write ``@revision``.

    Returns:
        The generator in evaluation mode on the CPU; move it with ``.to("cuda")``.

    Raises:
        KeyError: If there is no such name, folder or repository.
        ConnectionError: If the weights have to be fetched and there is no network; says how to go on offline.
        ValueError: If the files are damaged, foreign or of a newer format.

    Example:
        >>> import medgen
        >>> images = medgen.load("medfusion-cxr").sample(2, label="Pneumonia", seed=0, steps=5)
        >>> images.shape, images.dtype
        (torch.Size([2, 1, 64, 64]), torch.float32)
    """
    from medgen.generator import Generator

    text = str(name)
    if text in ZOO:
        generator = _load_entry(text, ZOO[text])
        generator.source = text
        return generator
    if Path(text).is_dir():
        return Generator.from_pretrained(text)
    repo, _, at = text.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise KeyError(
            f"no checkpoint {text!r}: it is neither one of {', '.join(ZOO)}, nor a folder, nor org/repo on the Hub"
        )
    return Generator.from_pretrained(repo, revision=revision or at or None)


def _load_entry(name: str, entry: ModelEntry) -> Generator:
    from medgen.generator import Generator

    if entry.bundled:
        return Generator.from_pretrained(bundled_folder(name))
    if entry.space:
        from medgen.hub import fetch_official

        return Generator.from_pretrained(fetch_official(entry.space, entry.pattern))
    return Generator.from_pretrained(entry.repo, revision=entry.revision)
