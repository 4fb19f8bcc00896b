"""Table of named checkpoints; `medgen.loading` loads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

_PACKAGE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A named checkpoint.

    Attributes:
        family: The generator family that loads it.
        description: One line for `medgen list`.
        licence: Licence of the weights as stated by their owners.
    """

    family: str
    description: str
    licence: str


@dataclass(frozen=True, kw_only=True)
class ModelEntry(Entry):
    """A checkpoint in medgen's own format.

    Attributes:
        repo: Hub repository; empty if the weights come with medgen.
        revision: Commit of `repo` that this release loads.
    """

    repo: str = ""
    revision: str = ""

    @property
    def where(self) -> str:
        """Place of the weights."""
        return f"{self.repo}@{self.revision}" if self.repo else "bundled"


@dataclass(frozen=True, kw_only=True)
class OfficialEntry(Entry):
    """A checkpoint in a Hub Space in its authors' own format; fetched and converted on first use.

    Attributes:
        space: The Space.
        patterns: Possible names of the file; exactly one file of the Space matches.
        image_size: Height and width of the images, which the file does not state.
        label_names: Names of its classes, which the file does not state.
        data: Training data.
    """

    space: str
    patterns: tuple[str, ...]
    image_size: tuple[int, int]
    label_names: tuple[str, ...]
    data: str

    @property
    def where(self) -> str:
        """Place of the weights."""
        return f"https://huggingface.co/spaces/{self.space} {' or '.join(self.patterns)}"


_MEDFUSION_SPACE = "mueller-franzes/medfusion-app"
_NOT_STATED = "not stated by the authors"


def _small_cxr(family: str) -> ModelEntry:
    return ModelEntry(
        family=family,
        description="64 px frontal chest X-rays, No Finding / Pneumonia; small, trained on a CPU",
        licence=f"see its card: medgen info {family}-cxr",
    )


ZOO: Mapping[str, ModelEntry | OfficialEntry] = {
    "medfusion-cxr": _small_cxr("medfusion"),
    "spade-cardiac": ModelEntry(
        family="spade",
        description="128 px cardiac MR with label maps, five groups of patients; small, trained on a CPU",
        licence="see its card: medgen info spade-cardiac",
    ),
    "stylegan2-cxr": _small_cxr("stylegan2"),
    "vqvae2-cxr": _small_cxr("vqvae2"),
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
        patterns=tuple(f"runs/*{word}*diffusion*/last.ckpt" for word in ("colon", "crc", "histo")),
        image_size=(512, 512),
        label_names=("Class 0", "Class 1"),  # stable and instable, in an order that is not stated
        data="CRC-DX, H&E tiles of colorectal cancer, 512 px",
    ),
}


def list_models() -> list[str]:
    """Names of the checkpoints that `load` knows."""
    return list(ZOO)


def bundled_folder(name: str) -> Path:
    """Folder of a bundled checkpoint, in the installed package or source tree; FileNotFoundError if missing."""
    for folder in (_PACKAGE / "checkpoints" / name, _PACKAGE.parent / "checkpoints" / name):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(f"checkpoint {name!r} is not in this installation of medgen; reinstall the package")


def __getattr__(name: str) -> object:
    if name == "load":  # old place
        return import_module("medgen.loading").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
