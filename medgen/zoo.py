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
    """A named checkpoint in medgen's own format.

    Attributes:
        family: The generator family.
        description: One line for `medgen list`.
        licence: Licence of the weights as stated by their owners.
        repo: Hub repository; empty if the weights come with medgen.
        revision: Commit of `repo` that this release loads.
    """

    family: str
    description: str
    licence: str
    repo: str = ""
    revision: str = ""

    @property
    def where(self) -> str:
        """Where the weights are."""
        return f"{self.repo}@{self.revision}" if self.repo else "bundled"


@dataclass(frozen=True, kw_only=True)
class OfficialEntry:
    """A checkpoint that its authors keep in a Hub Space in their own format; fetched and converted on first use.

    Attributes:
        family: The generator family it is converted to.
        description: One line for `medgen list`.
        licence: Licence of the weights as stated by their owners.
        space: The Space.
        patterns: Names the file may have; exactly one file of the Space matches.
        image_size: Height and width of the images, which the file does not state.
        label_names: Names of its classes, which the file does not state either.
        data: What it was trained on.
    """

    family: str
    description: str
    licence: str
    space: str
    patterns: tuple[str, ...]
    image_size: tuple[int, int]
    label_names: tuple[str, ...]
    data: str

    @property
    def where(self) -> str:
        """Where the weights are."""
        return f"https://huggingface.co/spaces/{self.space} {' or '.join(self.patterns)}"


_MEDFUSION_SPACE = "mueller-franzes/medfusion-app"
_NOT_STATED = "not stated by the authors"

ZOO: Mapping[str, ModelEntry | OfficialEntry] = {
    "medfusion-cxr": ModelEntry(
        family="medfusion",
        description="64 px frontal chest X-rays, No Finding / Pneumonia; small, trained on a CPU",
        licence="see its card: medgen info medfusion-cxr",
    ),
    "spade-cardiac": ModelEntry(
        family="spade",
        description="128 px cardiac MR with label maps, five groups of patients; small, trained on a CPU",
        licence="see its card: medgen info spade-cardiac",
    ),
    "stylegan2-cxr": ModelEntry(
        family="stylegan2",
        description="64 px frontal chest X-rays, No Finding / Pneumonia; small, trained on a CPU",
        licence="see its card: medgen info stylegan2-cxr",
    ),
    "vqvae2-cxr": ModelEntry(
        family="vqvae2",
        description="64 px frontal chest X-rays, No Finding / Pneumonia; small, trained on a CPU",
        licence="see its card: medgen info vqvae2-cxr",
    ),
    "medfusion-chexpert": OfficialEntry(
        family="medfusion",
        description="256 px frontal chest X-rays, cardiomegaly no / yes; the authors' weights",
        licence=_NOT_STATED,
        space=_MEDFUSION_SPACE,
        patterns=("runs/2022_11_27_085654_chest_diffusion/last.ckpt",),
        image_size=(256, 256),
        label_names=("No Cardiomegaly", "Cardiomegaly"),
        data="CheXpert, frontal radiographs, 256 px",
    ),
    "medfusion-airogs": OfficialEntry(
        family="medfusion",
        description="256 px fundus photographs, referable glaucoma no / yes; the authors' weights",
        licence=_NOT_STATED,
        space=_MEDFUSION_SPACE,
        patterns=("runs/*eye*diffusion*/last.ckpt", "runs/*fundus*diffusion*/last.ckpt"),
        image_size=(256, 256),
        label_names=("No Glaucoma", "Glaucoma"),
        data="AIROGS, fundus photographs, 256 px",
    ),
    "medfusion-crcdx": OfficialEntry(
        family="medfusion",
        description="512 px colorectal histology by microsatellite status; the authors' weights",
        licence=_NOT_STATED,
        space=_MEDFUSION_SPACE,
        patterns=(
            "runs/*colon*diffusion*/last.ckpt",
            "runs/*crc*diffusion*/last.ckpt",
            "runs/*histo*diffusion*/last.ckpt",
        ),
        image_size=(512, 512),
        label_names=("Class 0", "Class 1"),  # stable or instable: which is which is not stated
        data="CRC-DX, H&E tiles of colorectal cancer, 512 px",
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
        name: A name of `list_models`, a checkpoint folder, ``org/repo`` or ``org/repo@revision`` on the Hub. A `Path`
            is always a folder.
        revision: Commit, tag or branch on the Hub; another way to write ``@revision``.

    Returns:
        The generator in evaluation mode on the CPU; move it with ``.to("cuda")``.

    Raises:
        FileNotFoundError: If there is no such repository, revision or `Path`, or a file is missing.
        ConnectionError: If the weights have to be fetched and there is no network; says how to go on offline.
        ValueError: If there is no such name or folder, the files are damaged, foreign or of a newer format, or the
            revision is of no use: two of them that differ, or one of weights that come with medgen or lie in a folder.

    Example:
        >>> import medgen
        >>> images = medgen.load("medfusion-cxr").sample(2, label="Pneumonia", seed=0, steps=5)
        >>> images.shape, images.dtype
        (torch.Size([2, 1, 64, 64]), torch.float32)
    """
    from medgen.generator import Generator

    if isinstance(name, Path):
        return Generator.from_pretrained(name, revision=revision)
    if name in ZOO:
        generator = _load_entry(name, ZOO[name], revision)
        generator.source = name
        return generator
    if name and Path(name).is_dir():
        return Generator.from_pretrained(name, revision=revision)
    repo, _, at = name.partition("@")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise ValueError(
            f"no checkpoint {name!r}: it is neither one of {', '.join(ZOO)}, nor a folder, nor org/repo on the Hub"
        )
    if revision and at and revision != at:
        raise ValueError(f"revision is {revision!r}, but {name!r} names another one; give one of them")
    return Generator.from_pretrained(repo, revision=revision or at or None)


def _load_entry(name: str, entry: ModelEntry | OfficialEntry, revision: str | None) -> Generator:
    from medgen.generator import Generator

    if isinstance(entry, ModelEntry):
        if entry.repo:
            return Generator.from_pretrained(entry.repo, revision=revision or entry.revision)
        return Generator.from_pretrained(bundled_folder(name), revision=revision)
    from medgen.checkpoint import About
    from medgen.hub import fetch_official

    about = About(title=name, licence=entry.licence, data=entry.data)
    folder = fetch_official(
        entry.space,
        entry.patterns,
        image_size=entry.image_size,
        label_names=entry.label_names,
        about=about,
        revision=revision,
    )
    return Generator.from_pretrained(folder)
