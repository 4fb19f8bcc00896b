"""Conversion of official weights and of training checkpoints to medgen's networks and checkpoint folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from medgen.checkpoint import CARD_FILE, DISCRIMINATOR_FILE, About, CheckpointError, write_checkpoint
from medgen.families import FAMILIES
from medgen.families.family import Component, Converted, Family, OfficialFiles
from medgen.foreign.file import ForeignFile
from medgen.foreign.pickles import Record
from medgen.published import part_of
from medgen.renamed import current_arguments


def official_networks() -> dict[str, Component]:
    """Official networks of all families, by name, for `load_official`."""
    return {name: part for family in FAMILIES.values() for name, part in family.official_networks().items()}


def load_official(component: str, weights: Mapping[str, Tensor], config: Mapping[str, object]) -> nn.Module:
    """Build a network with official weights, in evaluation mode.

    Args:
        component: A name of `official_networks`.
        weights: Official state dict of that network alone, without a prefix.
        config: Keyword arguments of the official constructor.

    Raises:
        ValueError: If the component or an argument is unknown, or a weight is missing, unknown or of another shape.
    """
    found = official_networks()
    if component not in found:
        raise ValueError(f"component {component!r} is unknown; use one of {', '.join(found)}")
    network = found[component].build(config)
    found[component].load(network, weights)
    return network.eval()


def convert(
    path: str | Path,
    out: str | Path,
    *,
    image_size: tuple[int, int] | None = None,
    label_names: Sequence[str] = (),
    about: About | None = None,
    dtype: torch.dtype | None = None,
    extra_files: Mapping[str, Path] | None = None,
    **options: Any,
) -> Path:
    """Write a medgen checkpoint folder from other files, without running anything in them.

    Args:
        path: An official file of a family, or a checkpoint of a medgen training run, of which the published weights are
            taken. A discriminator becomes the extra file `DISCRIMINATOR_FILE`.
        out: Folder to write.
        image_size: Height and width in pixels, for files that do not state them.
        label_names: Names of the classes, or of the classes of label maps for models that draw from these, for files
            that do not state them; "class 0", ... by default.
        about: Licence, data and intended use of the weights; the licence of a fine-tuned model is kept unless stated.
        dtype: Type of stored floating-point weights, see `write_checkpoint`.
        extra_files: Files to put beside the weights, by name.
        **options: Options of the family, including further files: the fields of `OfficialFiles.options`.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If a file is damaged, unsafe, of an unknown kind, or missing, or files do not belong together.
        ValueError: If `image_size`, `label_names` or an option do not fit the file.
    """
    file = ForeignFile(path)
    family, official = _trained_family(file), None
    if family is None:
        family, official = next((pair for pair in _with_files() if pair[1].recognises(file)), (None, None))
    renamed = {old: new for _, files in _with_files() for old, new in files.renamed.items()}
    options = _own_options(current_arguments(options, renamed), official, file)
    known = About()
    if family and official:
        made = official.converted(file, image_size=image_size, label_names=tuple(label_names), **options)
    elif family:
        if image_size or label_names:
            raise ValueError(f"{file} is from medgen and states its image_size and label_names itself; leave them out")
        made, known = _published(file, family)
    else:
        kinds = [*(official.expects for _, official in _with_files()), "a checkpoint of its own training (.ckpt)"]
        raise CheckpointError(f"{file} has {file.summary()}; medgen converts {_listed(kinds, 'or')}")
    given = [file.path, *(value for value in options.values() if isinstance(value, str | Path))]
    about = about or About(source=known.source or ", ".join(Path(name).name for name in given))
    licence = known.licence if about.licence == About().licence else about.licence
    networks = tuple(dict.fromkeys((*known.trained_with, *about.trained_with)))
    about = replace(about, licence=licence, trained_with=networks)
    card = family.model_class().card(made.config, about, Path(out).resolve().name)
    return write_checkpoint(
        out,
        family=family.name,
        config=made.config.to_dict(),
        state=made.state,
        about=about,
        dtype=dtype,
        extra_files={CARD_FILE: card, **made.extra_files, **(extra_files or {})},
    )


def _with_files() -> list[tuple[Family, OfficialFiles]]:
    return [(family, family.official) for family in FAMILIES.values() if family.official]


def _own_options(given: Mapping[str, Any], official: OfficialFiles | None, file: ForeignFile) -> dict[str, Any]:
    """Select the options of a file; raises a `ValueError` for others, unless they have their default value."""
    mine = official.defaults() if official else {}
    for name, value in given.items():
        others = [(other.defaults(), other.expects) for _, other in _with_files()]
        owner = next((other for other in others if name in other[0]), None)
        if owner is None:
            known = dict.fromkeys(option for defaults, _ in others for option in defaults)
            raise ValueError(f"option {name} is unknown; use one of {', '.join(known)}")
        defaults, expected = owner
        if name not in mine and value != defaults[name]:
            raise ValueError(
                f"{_listed(list(defaults))} go with {expected}, which {file} is not; give that file first, or leave "
                "them out"
            )
    return {name: value for name, value in given.items() if name in mine}


def _listed(names: Sequence[str], word: str = "and") -> str:
    return f" {word} ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _trained_family(file: ForeignFile) -> Family | None:
    """The family whose medgen training wrote a checkpoint; None for other files."""
    settings = file.lightning.hyper_parameters if file.lightning else {}
    config = settings.get("config")
    # Runs from a recipe have a dictionary as config and the module's name, see LightningCLI.
    named = [str(settings.get("_class_path")), *([config.kind.module] if isinstance(config, Record) else [])]
    trained = (family for family in FAMILIES.values() if family.stages)
    return next((family for family in trained if any(name.startswith(f"{family.package}.") for name in named)), None)


def _published(file: ForeignFile, family: Family) -> tuple[Converted, About]:
    """Published weights of a training run; raises a `CheckpointError` before the stage that has them."""
    run = file.lightning
    assert run is not None
    fields = _fields(run.hyper_parameters.get("config"))
    if not isinstance(fields, dict):
        raise CheckpointError(f"{file} is damaged: the config of its model is of type {type(fields).__name__}")
    state = part_of(run.state_dict, family.stage_classes()[-1].published_weights)
    state = family.model_class().current_names(state)
    if not state or not run.publishable:
        raise CheckpointError(
            f"{file} is from a training stage that has no {family.makes} yet; convert a checkpoint of the last stage"
        )
    critic = part_of(run.state_dict, "discriminator.")
    extra = {DISCRIMINATOR_FILE: save({k: w.contiguous() for k, w in critic.items()})} if critic else {}
    about = About(licence=run.licence, source=run.source, trained_with=run.trained_with)
    return Converted(family.config_class().from_dict(fields), state, extra), about


def _fields(config: object) -> object:
    """A config as a dictionary, including the configs of its parts, which are records in a pickle."""
    fields = config.state if isinstance(config, Record) else config
    return {name: _fields(value) for name, value in fields.items()} if isinstance(fields, dict) else fields
