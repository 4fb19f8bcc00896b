"""`load`: the model of any checkpoint, whether it is bundled, in a folder, on the Hub, or of other authors."""

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
    """Get a generator, ready to sample, or a translator.

    Args:
        name: A name of `medgen.list_models`, a checkpoint folder, ``org/repo`` or ``org/repo@revision`` on the Hub. A
            `Path` is always a folder.
        revision: Commit, tag or branch on the Hub; another way to write ``@revision``.

    Returns:
        A `Generator` or a `Translator` in evaluation mode on the CPU; move it with ``.to("cuda")``.

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
        source: A folder with ``config.json`` and ``model.safetensors``, or ``org/repo`` on the Hub. A `Path` is
            always a folder.
        revision: Commit, tag or branch on the Hub.

    Returns:
        The model in evaluation mode, on the CPU, in float32.

    Raises:
        FileNotFoundError: If there is no checkpoint at ``source``.
        ValueError: If a file is damaged, foreign or of a newer format, a weight is missing or left over, or a revision
            of a folder is asked for.
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
    if pulled:  # a branch or tag moves on, so it does not say which weights these are; the cache names the commit
        model.revision = folder.name
    return model


def from_name(name: str | Path) -> Generator | Translator:
    """`load` for code that takes either kind of model."""
    model: Generator | Translator = load(name)
    return model


def load_generator(name: str | Path, *, revision: str | None = None) -> Generator:
    """`load` where only a generator will do.

    Raises:
        ValueError: If the checkpoint is of another kind of model.
    """
    model = load(name, revision=revision)
    if not isinstance(model, Generator):
        raise ValueError(f"{name} is a {model.family} model, which draws no images; {_way_out(model, str(name))}")
    return model


def load_translator(name: str | Path, *, revision: str | None = None) -> Translator:
    """`load` where only a translator will do.

    Raises:
        ValueError: If the checkpoint is of another kind of model.
    """
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
