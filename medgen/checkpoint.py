"""Checkpoint format: a folder with ``config.json``, ``model.safetensors`` and a model card, checked by hash.

``config.json`` holds everything needed to rebuild and describe a model, and the SHA-256 of every other file::

    {"format_version": 2, "medgen_version": "0.2.0", "family": "...",
     "config": {..., "part": {...}}, "about": {"licence": ..., "data": ..., ...},
     "description_sha256": "<sha256 of family, config and about>",
     "files": {"model.safetensors": "<sha256>", "README.md": "<sha256>"}}

Version 1 had no hash of the description, and configs without parts; `medgen.config.Config.migrate` reads those.
Reading the description needs no torch, so that ``medgen info`` is fast; only the weights do.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import medgen

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FORMAT_VERSION = 2
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
DISCRIMINATOR_FILE = "discriminator.safetensors"
"""Weights of the discriminators that a generator was trained with, under the names of our networks."""

_USAGE = """\
```python
import medgen

generator = medgen.load("{name}")  # a folder, or org/name on the Hub
images = generator.sample(16, seed=0)  # float32 in [0, 1], (16, C, H, W)
```"""
_ALIGNMENT = 64  # bytes, as torch aligns its own memory
_CONFIG_KEYS = {"format_version", "medgen_version", "family", "config", "about", "files"}
_DESCRIPTION_HASH = "description_sha256"
_SAFE_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.\-]*(/[A-Za-z0-9_][A-Za-z0-9_.\-]*)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class CheckpointError(ValueError):
    """A checkpoint is damaged, foreign, or made by a newer medgen."""


@dataclass(frozen=True, kw_only=True)
class About:
    """Licence, data, intended use and other facts about the weights, for ``config.json`` and the model card.

    Attributes:
        title: Heading of the model card; empty for the folder's name.
        licence: SPDX identifier of the licence of the weights, such as ``"CC-BY-4.0"``.
        data: Training data: data set, split, number of images and patients.
        intended_use: Uses that the model is meant for, and not meant for.
        known_failures: Known failures, one sentence each.
        source: Recipe that trained the weights, or file that they were converted from.
        citation: Works to cite.
        results: Measured numbers with their commands, data sets and networks, as Markdown.
        trained_with: Feature networks of the training losses, which must not judge the model.
    """

    title: str = ""
    licence: str = "unknown"
    data: str = "Not stated."
    intended_use: str = "Research on synthetic images. Not a medical device: no diagnosis, no treatment decision."
    known_failures: tuple[str, ...] = ()
    source: str = ""
    citation: str = ""
    results: str = ""
    trained_with: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("known_failures", "trained_with"):
                if isinstance(value, str) or not all(isinstance(item, str) for item in value):
                    raise ValueError(f"{field.name} must be a sequence of texts, got {value!r}")
                object.__setattr__(self, field.name, tuple(value))
            elif not isinstance(value, str):
                raise ValueError(f"{field.name} must be text, got {value!r}")
        if not self.licence:
            raise ValueError("licence is empty; give an SPDX identifier such as 'CC-BY-4.0', or 'unknown'")


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """Description of a checkpoint without its weights.

    Attributes:
        folder: Folder of the files.
        family: Name of the generator family that rebuilds the model.
        config: The fields of the family's config, JSON types with tuples for lists.
        about: Licence, data, intended use.
        medgen_version: Version of medgen that wrote the checkpoint.
        files: SHA-256 of every file beside ``config.json``, by name.
    """

    folder: Path
    family: str
    config: dict[str, object]
    about: About
    medgen_version: str
    files: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Checkpoint(CheckpointInfo):
    """A verified checkpoint with its weights by name, half-precision ones converted to float32."""

    state: dict[str, "Tensor"]


def write_checkpoint(
    folder: str | Path,
    *,
    family: str,
    config: Mapping[str, object],
    state: Mapping[str, "Tensor"],
    about: About | None = None,
    extra_files: Mapping[str, str | bytes | Path] | None = None,
    dtype: "torch.dtype | None" = None,
) -> Path:
    """Write a complete checkpoint and return its folder; on failure the folder is left as it was.

    Everything is first written to a temporary folder on the same disk and then renamed. When an older checkpoint is
    replaced, ``config.json`` comes last: after a crash in between the hashes do not match, so a mixture never loads.

    Args:
        folder: Created if missing. Files that are not part of the checkpoint, such as recipes, stay.
        family: Name of the generator family.
        config: Everything needed to rebuild and describe the model: JSON types and tuples.
        state: Tensors by name.
        about: Licence, data and intended use.
        extra_files: Further files by name: text, bytes, or the path of a file to copy. A ``README.md`` replaces the
            generated model card.
        dtype: Type of stored floating-point weights, float32 by default; ``torch.float16`` and ``torch.bfloat16`` halve
            the file. They are read as float32.

    Raises:
        ValueError: If a name is not a plain relative one, `config` is not JSON, or weights do not fit `dtype`.
        OSError: If the disk is full or not writable.
    """
    folder = Path(folder)
    about = about or About()
    extra = dict(extra_files or {})
    for name in extra:
        if not _SAFE_NAME.fullmatch(name) or name in (CONFIG_FILE, WEIGHTS_FILE):
            raise ValueError(
                f"extra file {name!r} is not allowed; use a plain relative name other than the checkpoint's"
            )
    if CARD_FILE not in extra:
        extra[CARD_FILE] = model_card(about, family=family, name=folder.resolve().name)

    # A rename must stay on one disk: stage inside an existing folder, which may be a mount point, else beside it.
    scratch_home = folder if folder.is_dir() else folder.absolute().parent
    scratch_home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch_home, prefix=".medgen-") as scratch:
        staged = Path(scratch) / "checkpoint"
        staged.mkdir()
        _save_weights(state, staged / WEIGHTS_FILE, dtype)
        for name, content in extra.items():
            _write_file(staged / name, content)
        description = {
            "format_version": FORMAT_VERSION,
            "medgen_version": medgen.__version__,
            "family": family,
            "config": config,
            "about": asdict(about),
            _DESCRIPTION_HASH: description_hash(family, config, asdict(about)),
            "files": {name: sha256_of(staged / name) for name in (WEIGHTS_FILE, *sorted(extra))},
        }
        _write_file(staged / CONFIG_FILE, json.dumps(description, indent=2, ensure_ascii=False) + "\n")
        if folder.is_dir():
            for name in (*sorted(extra), WEIGHTS_FILE, CONFIG_FILE):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (staged / name).replace(folder / name)
        else:
            staged.rename(folder)
    return folder


def read_info(folder: str | Path) -> CheckpointInfo:
    """Read the description of a checkpoint, without torch and without its weights.

    Raises:
        FileNotFoundError: If there is no such folder, or no ``config.json`` in it.
        CheckpointError: If the description is damaged, foreign, or of a newer format.
    """
    folder = Path(folder)
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint folder {folder}")
    if not path.is_file():
        found = [entry.name for entry in sorted(folder.iterdir())[:5]]
        raise FileNotFoundError(
            f"{folder} has no {CONFIG_FILE}, so it is not a medgen checkpoint (found: {', '.join(found) or 'nothing'})"
            "; weights of other projects are read with `medgen convert`"
        )
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged, it is not JSON ({error}); fetch the checkpoint again") from error
    return _parse(content, path)


def verify_files(info: CheckpointInfo) -> None:
    """Check that every file of a checkpoint has the hash that ``config.json`` states.

    Raises:
        FileNotFoundError: If files are missing.
        CheckpointError: If the content of a file differs.
    """
    missing = [name for name in info.files if not (info.folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{info.folder} lacks {', '.join(missing)}; fetch the checkpoint again")
    for name, expected in info.files.items():
        found = sha256_of(info.folder / name)
        if found != expected:
            raise CheckpointError(
                f"{info.folder / name} is damaged or was changed: its sha256 is {found}, and {CONFIG_FILE} states "
                f"{expected}; fetch the checkpoint again, or write it again with medgen"
            )


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a checkpoint, verified against the hashes in its ``config.json``.

    Raises:
        FileNotFoundError: If the folder, ``config.json`` or a file named in it is missing.
        CheckpointError: If anything is damaged, changed, foreign, or of a newer format.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    info = read_info(folder)
    verify_files(info)
    try:
        stored = load_file(info.folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise CheckpointError(f"{info.folder / WEIGHTS_FILE} is not a safetensors file: {error}") from error

    def settled(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype in (torch.float16, torch.bfloat16):
            return tensor.float()
        # Kernels may sum in another order in unaligned memory, such as that of a mapped file, and images of the loaded
        # model would differ in the last bit from those of the saved one.
        return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()

    return Checkpoint(**vars(info), state={name: settled(tensor) for name, tensor in stored.items()})


def model_card(about: About, *, family: str, name: str, tags: Iterable[str] = (), use: str = _USAGE) -> str:
    """Text of a model card: Markdown with the metadata block that the Hub reads.

    ``name`` is the heading unless `about` has a title; `use` is the text about loading, with ``{name}`` filled in.
    """
    licence = about.licence.lower()
    lines = ["---"]
    if licence in _HUB_LICENCES:
        lines += [f"license: {licence}"]
    else:  # the Hub knows a fixed list, and takes a name beside "other"
        lines += ["license: other", f"license_name: {json.dumps(about.licence)}"]
    lines += ["library_name: medgen", "pipeline_tag: unconditional-image-generation", "tags:"]
    lines += [f"- {json.dumps(tag)}" for tag in ("medgen", family, "medical-imaging", "image-generation", *tags)]
    lines += ["---", "", f"# {about.title or name}", ""]
    sections = {
        "Use": use.format(name=name),
        "Data": about.data,
        "Licence": about.licence,
        "Intended use": about.intended_use,
        "Known failures": "\n".join(f"- {item}" for item in about.known_failures) or "None recorded.",
        "Results": about.results,
        "Source": about.source,
        "Citation": about.citation,
    }
    for heading, text in sections.items():
        if text:
            lines += [f"## {heading}", "", text, ""]
    return "\n".join(lines)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Those identifiers of https://huggingface.co/docs/hub/repositories-licenses that are common in this field.
_HUB_LICENCES = frozenset(
    {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "openrail", "unknown"}
    | {f"cc-by{terms}-{n}.0" for terms in ("", "-sa", "-nc", "-nd", "-nc-sa", "-nc-nd") for n in (3, 4)}
    | {"cc0-1.0", "odbl", "pddl"}
)


def _parse(content: object, path: Path) -> CheckpointInfo:
    if not isinstance(content, dict) or "format_version" not in content:
        raise CheckpointError(f"{path} is not from medgen: it has no format_version")
    version = content["format_version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(f"{path} is damaged: format_version is {version!r}")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {version}, and medgen {medgen.__version__} reads formats up to {FORMAT_VERSION}; "
            f"it needs medgen {content.get('medgen_version', '(version not stated)')} or newer: "
            "pip install --upgrade medgen"
        )
    keys = _CONFIG_KEYS | ({_DESCRIPTION_HASH} if version > 1 else set())
    if set(content) != keys:
        missing, unknown = sorted(keys - set(content)), sorted(set(content) - keys)
        raise CheckpointError(f"{path} is damaged: missing entries {missing}, unknown entries {unknown}")
    for key, kind in {"medgen_version": str, "family": str, "config": dict, "about": dict, "files": dict}.items():
        if not isinstance(content[key], kind):
            raise CheckpointError(f"{path} is damaged: {key} is {content[key]!r}")
    files = content["files"]
    for name, digest in files.items():
        # A downloaded name must not lead out of the folder.
        if not _SAFE_NAME.fullmatch(name) or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise CheckpointError(
                f"{path} is damaged: the entry {name!r}: {digest!r} of files is not a name with a sha256"
            )
    if WEIGHTS_FILE not in files:
        raise CheckpointError(f"{path} states no hash for {WEIGHTS_FILE}")
    try:
        about = About(**content["about"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: about: {error}") from error
    if version > 1:
        found = description_hash(content["family"], content["config"], content["about"])
        if found != content[_DESCRIPTION_HASH]:
            raise CheckpointError(
                f"{path} is damaged or was changed: the sha256 of family, config and about is {found}, and it states "
                f"{content[_DESCRIPTION_HASH]!r}; fetch the checkpoint again, or write it again with medgen"
            )
    return CheckpointInfo(
        folder=path.parent,
        family=content["family"],
        config={key: _tuples(value) for key, value in content["config"].items()},
        about=about,
        medgen_version=content["medgen_version"],
        files=files,
    )


def _tuples(value: object) -> object:
    """Turn lists into tuples, as configs have them; JSON has lists only."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; refused if a key stands in it twice, of which only the last would count."""
    if len(content := dict(pairs)) < len(pairs):
        raise ValueError(f"a key is repeated among {', '.join(name for name, _ in pairs):.200}")
    return content


def description_hash(family: str, config: Mapping[str, object], about: Mapping[str, object]) -> str:
    """SHA-256 of a description, independent of the order of its keys."""
    parts = {"family": family, "config": config, "about": about}
    try:
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        message = "config must hold numbers, text, booleans, None, tuples and dictionaries only"
        raise ValueError(f"{message}: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()


def _write_file(path: Path, content: str | bytes | Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    _flush_to_disk(path)


def _save_weights(state: Mapping[str, "Tensor"], path: Path, dtype: "torch.dtype | None") -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    dtype = dtype or torch.float32
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"dtype is {dtype}; weights are stored in torch.float32, torch.float16 or torch.bfloat16")
    if not state:
        raise ValueError("state is empty: there are no weights to write")
    stored = {}
    for name, tensor in state.items():
        converted = tensor.detach().to("cpu")
        if converted.is_floating_point():
            converted = converted.to(dtype)
            if not converted.isfinite().all():
                raise ValueError(
                    f"weight {name!r} holds NaN, or infinity once stored as {dtype}; no checkpoint was written"
                )
        stored[name] = converted.contiguous()
    path.touch()
    usual_mode = path.stat().st_mode
    try:
        save_file(stored, path, metadata={"format": "pt"})
    except SafetensorError as error:  # also of a full disk
        raise OSError(f"cannot write the weights to {path.parent.parent.parent}: {error}") from error
    path.chmod(usual_mode)  # safetensors writes files that only their owner can read
    _flush_to_disk(path)


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
