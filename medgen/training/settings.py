"""Reading of recipes, with settings of older versions moved to their current places."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeGuard

import yaml
from jsonargparse import get_loader, set_loader

from medgen.config import Config
from medgen.families import FAMILIES, family_class

PARSER_MODE = "medgen-recipe"
"""Mode of the parsers that read recipes; see `load_settings`."""


def load_settings(text: str) -> Any:
    """Read YAML, and move settings of older versions to their current places, with a warning.

    Config fields are moved by the family of the module beside them, or by their names if the config stands alone.
    Arguments of a module are renamed by the ``renamed_arguments`` of its class.
    """
    found = get_loader("yaml")(text)
    if not _is_settings(found):
        return found
    alone = not any(_is_settings(value) and "class_path" in value for value in [found, *found.values()])
    return _current_config(found) if alone else _current(found)


def _is_settings(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _current(value: Any) -> Any:
    """Update the arguments of every class, at any depth."""
    if isinstance(value, list):
        return [_current(item) for item in value]
    if not _is_settings(value):
        return value
    found = {name: _current(item) for name, item in value.items()}
    path, arguments = found.get("class_path"), found.get("init_args")
    if isinstance(path, str) and _is_settings(arguments):
        found["init_args"] = arguments = _renamed(path, arguments)
        if _is_settings(config := arguments.get("config")):
            prefix, _, rest = path.partition(".families.")
            arguments["config"] = _current_config(config, rest.partition(".")[0] if prefix == "medgen" else None)
    return found


def _current_config(values: dict[str, Any], family: str | None = None) -> dict[str, Any]:
    """Update the settings of a config of a family, or of the first family that knows all names."""
    for name in (family,) if family in FAMILIES else FAMILIES:
        config = family_class(name).config_class
        found = config.relocate(values)
        before, now = _paths(values), _paths(found)
        if before != now and (name == family or _fits(found, config)):
            gone, there = (", ".join(sorted(names)) for names in (before - now, now - before))
            warnings.warn(f"{gone} are settings of an older medgen; write {there}", FutureWarning, stacklevel=2)
            return found
    return values


def _fits(values: Mapping[str, Any], config: type[Config]) -> bool:
    """Check that all names are fields of a config and of its parts."""
    known, parts = {field.name for field in dataclasses.fields(config)}, config.parts()
    inner = all(_fits(value, parts[name]) for name, value in values.items() if name in parts and _is_settings(value))
    return inner and values.keys() <= known


def _paths(values: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Collect names of settings, those of a part as ``unet.hidden``."""
    found = set()
    for name, value in values.items():
        found |= _paths(value, f"{prefix}{name}.") if _is_settings(value) else {prefix + name}
    return found


def _renamed(path: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Rename the arguments of a class."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name, None) if module.startswith("medgen.") else None
    except ImportError:  # the parser reports it
        found = None
    names = getattr(found, "renamed_arguments", {})
    for old in names.keys() & arguments.keys():
        if names[old] in arguments:
            raise ValueError(
                f"{old} and {names[old]} are given, but {old} is the old name of {names[old]}; leave it out"
            )
        warnings.warn(f"{old} of {path} is now {names[old]}; write that", FutureWarning, stacklevel=2)
    return {names.get(old, old): value for old, value in arguments.items()}


set_loader(PARSER_MODE, load_settings, exceptions=(yaml.YAMLError,))
