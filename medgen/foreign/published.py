"""Checkpoints in the authors' own format in a Hub Space: fetched and converted once."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from medgen.checkpoint import CONFIG_FILE, About, CheckpointError, read_info, sha256_of, verify_files
from medgen.data.cache import default_cache_folder
from medgen.foreign.convert import convert
from medgen.hub import download, evict, plain_errors

logger = logging.getLogger(__name__)


def fetch_official(
    space: str,
    patterns: Sequence[str],
    *,
    image_size: tuple[int, int],
    label_names: Sequence[str] = (),
    about: About | None = None,
    revision: str | None = None,
) -> Path:
    """Fetch and convert a file of a Hub Space; returns the checkpoint folder.

    The first call keeps the converted folder in medgen's cache under its commit. Later calls need no network unless the
    folder is damaged; without a `revision`, they stay at the commit of the first fetch.

    Args:
        space: ``org/name`` of the Space.
        patterns: Possible names of the file, with ``*``; exactly one file must match.
        image_size: Height and width of the images in pixels.
        label_names: Names of the classes.
        about: Licence and data of the weights; the source is filled in.
        revision: Commit, tag or branch of the Space; the main branch by default.

    Raises:
        FileNotFoundError: If not exactly one file matches; the message lists the files.
        ConnectionError: If the Hub cannot be reached; the message says how to go on offline.
        CheckpointError: If the file is damaged or of another kind.
    """
    from filelock import FileLock

    home = default_cache_folder() / "official" / space.replace("/", "--")
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".lock"):  # processes that start together convert once
        converted = _already_converted(home, patterns, revision)
        if converted and _is_sound(converted):
            return converted
        if converted:
            logger.warning("%s is damaged and will be made again", converted)
            revision = converted.parent.name
        file, commit, name = _download_official(space, patterns, revision, home)
        folder = home / commit / name.replace("/", "--")
        if folder != converted and _is_sound(folder):  # the revision is at a commit that is cached
            return folder
        source = f"https://huggingface.co/spaces/{space}/blob/{commit}/{name}"
        logger.info("converting %s of %s at commit %s into %s", name, space, commit, folder)
        about = replace(about or About(), source=source)
        return convert(file, folder, image_size=image_size, label_names=label_names, about=about)


def _already_converted(home: Path, patterns: Sequence[str], revision: str | None) -> Path | None:
    found = [
        folder
        for folder in home.glob(f"{revision or '*'}/*")
        if any(fnmatchcase(folder.name, pattern.replace("/", "--")) for pattern in patterns)
        and (folder / CONFIG_FILE).is_file()
    ]
    return min(found, key=lambda folder: folder.stat().st_mtime, default=None)


def _is_sound(folder: Path) -> bool:
    try:
        verify_files(read_info(folder))
    except (CheckpointError, FileNotFoundError):
        return False
    return True


def _download_official(space: str, patterns: Sequence[str], revision: str | None, home: Path) -> tuple[Path, str, str]:
    """Download the file; returns its path in the Hub's cache, its commit and its name in the Space."""
    from huggingface_hub import HfApi

    advice = (
        f"run `hf download {space} --repo-type space --include '{patterns[0]}' --local-dir FOLDER` on a machine with "
        "network, then here `medgen convert FILE.ckpt CHECKPOINT` and medgen.load('CHECKPOINT'); or load it once there "
        f"and copy that machine's cache to {home}"
    )
    if len(patterns) == 1 and "*" not in patterns[0]:
        name = patterns[0]
    else:
        with plain_errors(space, revision, advice=advice, kind="Space"):
            info = HfApi().space_info(space, revision=revision)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        matching = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if len(matching) != 1:
            checkpoints = [name for name in names if name.endswith(".ckpt")]
            raise FileNotFoundError(
                f"{len(matching)} files of the Space {space} match {' or '.join(patterns)}; expected one. Its "
                f"checkpoints are: {', '.join(checkpoints) or 'none'}. Download the right one and turn it into a "
                "checkpoint with `medgen convert FILE.ckpt FOLDER`"
            )
        (name,) = matching
        revision = info.sha
    file = download(space, name, revision, advice=advice, kind="Space")
    blob = file.resolve()
    # The Hub's cache names large files by their stated sha256 but does not verify it.
    if re.fullmatch(r"[0-9a-f]{64}", blob.name) and sha256_of(blob) != blob.name:
        evict(file)
        raise CheckpointError(
            f"{name} of the Space {space} was damaged on its way: its sha256 is not {blob.name}; try again"
        )
    commit = file.parents[name.count("/")].name
    return file, commit, name
