"""Loading of models: bundled, from a folder, from the Hub, or of other authors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from medgen.checkpoint import About, read_checkpoint
from medgen.families import family_class
from medgen.generator import Generator
from medgen.hub import pull
from medgen.published import PublishedModel
from medgen.translator import Translator
from medgen.zoo import ZOO, ModelEntry, OfficialEntry, bundled_folder


def load(name: str | Path, *, revision: str | None = None) -> Any:
    """Load a generator or a translator.

    Args:
        name: A name of `medgen.list_models`, a checkpoint folder, ``org/repo`` or ``org/repo@revision`` on the Hub. A
            `Path` is always a folder.
        revision: Commit, tag or branch on the Hub, instead of ``@revision``.

    Returns:
        A `Generator` or a `Translator` in evaluation mode on the CPU; move it with ``.to("cuda")``.

    Raises:
        FileNotFoundError: If there is no such repository, revision or `Path`, or a file is missing.
        ConnectionError: If the weights must be downloaded and there is no network; says how to work offline.
        ValueError: If there is no such name or folder, the files are damaged, foreign or of a newer format, or a
            revision is given twice or for weights that are not on the Hub.

    Example:
        >>> import medgen
        >>> images = medgen.load("medfusion-cxr").sample(2, label="Pneumonia", seed=0, steps=5)
        >>> images.shape, images.dtype
        (torch.Size([2, 1, 64, 64]), torch.float32)
    """
    if isinstance(name, Path):
        return from_pretrained(name, revision=revision)
    if name in ZOO:
        model = _load_entry(name, ZOO[name], revision)
        model.source = name
        return model
    if name and Path(name).is_dir():
        return from_pretrained(name, revision=revision)
    repo, _, at = name.partition("@")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise ValueError(
            f"no checkpoint {name!r}: it is neither one of {', '.join(ZOO)}, nor a folder, nor org/repo on the Hub"
        )
    if revision and at and revision != at:
        raise ValueError(f"revision is {revision!r}, but {name!r} names another one; give one of them")
    return from_pretrained(repo, revision=revision or at or None)


def from_pretrained(source: str | Path, *, revision: str | None = None) -> PublishedModel:
    """Load a model from a checkpoint folder or a Hub repository.

    Args:
        source: A checkpoint folder, or ``org/repo`` on the Hub. A `Path` is always a folder.
        revision: Commit, tag or branch on the Hub.

    Returns:
        The model in evaluation mode, on the CPU, in float32.

    Raises:
        FileNotFoundError: If there is no checkpoint at ``source``.
        ValueError: If a file is damaged, foreign or of a newer format, weights do not fit, or a revision is given for a
            folder.
    """
    folder = Path(source)
    pulled = isinstance(source, str) and not folder.is_dir()
    if pulled:
        try:
            folder = pull(str(source), revision=revision)
        except (FileNotFoundError, ConnectionError) as error:  # a mistyped folder looks like a repository
            raise type(error)(f"{error}. There is no folder {source} here either") from error
    elif revision is not None:
        raise ValueError(f"revision is {revision!r}, but {source} is a folder, which has none; leave revision out")
    checkpoint = read_checkpoint(folder)
    model = family_class(checkpoint.family).from_checkpoint(checkpoint)
    model.source = str(source)
    if pulled:  # a branch or tag may move; the cache folder is named after the commit
        model.revision = folder.name
    return model


def load_generator(name: str | Path, *, revision: str | None = None) -> Generator:
    """Load a generator, see `load`, or raise a ValueError for another kind of model."""
    model = load(name, revision=revision)
    if not isinstance(model, Generator):
        raise ValueError(f"{name} is a {model.family} model, which draws no images; {_way_out(model, str(name))}")
    return model


def load_translator(name: str | Path, *, revision: str | None = None) -> Translator:
    """Load a translator, see `load`, or raise a ValueError for another kind of model."""
    model = load(name, revision=revision)
    if not isinstance(model, Translator):
        raise ValueError(f"{name} is a {model.family} model, which translates no images; {_way_out(model, str(name))}")
    return model


def _way_out(model: PublishedModel, name: str) -> str:
    if isinstance(model, Translator):
        return f"translate images with `medgen translate {name} FOLDER --to {model.domains[-1]} --out DIR`"
    return f"draw images with `medgen sample {name}`"


def _load_entry(name: str, entry: ModelEntry | OfficialEntry, revision: str | None) -> PublishedModel:
    if isinstance(entry, ModelEntry):
        if entry.repo:
            return from_pretrained(entry.repo, revision=revision or entry.revision)
        return from_pretrained(bundled_folder(name), revision=revision)
    from medgen.foreign.published import fetch_official

    folder = fetch_official(
        entry.space,
        entry.patterns,
        image_size=entry.image_size,
        label_names=entry.label_names,
        about=About(title=name, licence=entry.licence, data=entry.data),
        revision=revision,
    )
    return from_pretrained(folder)
