"""Configs of models and of their parts, frozen and stored as JSON."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple, Self

import torch

from medgen.labels import LabelKind, LabelSpace


class Moved(NamedTuple):
    """New place of a field of older checkpoints and recipes.

    Attributes:
        name: New name.
        part: Part of the config that has the field; empty for the config itself.
        change: Function that converts an old value to a new one.
    """

    name: str
    part: str = ""
    change: Callable[[Any], Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of the configs of models and of their parts.

    Fields hold JSON types, tuples, and further configs. Lists of YAML and JSON become tuples.

    Attributes:
        moved: New places of fields of older versions, by their old names. `relocate` reads checkpoint folders, recipes
            and training checkpoints alike.
    """

    moved: ClassVar[Mapping[str, Moved | Sequence[Moved]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # Lightning keeps the config in its checkpoints, which are read with weights_only=True.
        torch.serialization.add_safe_globals([cls])

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _tuples(getattr(self, field.name)))
        for name, part in self.parts().items():
            if not isinstance(value := getattr(self, name), part):
                fields = ", ".join(field.name for field in dataclasses.fields(part))
                raise ValueError(f"{name} is {value!r:.80}; it is a group of settings: {fields}")

    def __setstate__(self, state: Mapping[str, object]) -> None:
        # A training checkpoint holds the fields of the version that wrote it.
        for name, value in self.migrate(state).items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types, for `from_dict`."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """Rebuild a config, also from the fields of an older version.

        Raises:
            ValueError: If a field is missing or unknown.
        """
        old = {name for name in cls.moved if not isinstance(values.get(name, {}), (Mapping, Config))}
        if old and (missing := sorted(cls.moved.keys() - values.keys())):  # version 1 wrote all of them
            raise ValueError(f"config lacks fields of {cls.__name__}: {missing}; the file is incomplete")
        values = cls.migrate(values)
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - names):
            raise ValueError(
                f"config has fields {cls.__name__} does not know: {unknown}; a newer medgen may have written it"
            )
        if missing := sorted(names - set(values)):
            raise ValueError(f"config lacks fields of {cls.__name__}: {missing}; the file is incomplete")
        for name, part in cls.parts().items():
            if isinstance(value := values[name], Mapping):
                try:
                    values[name] = part.from_dict(value)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
        return cls(**values)

    @classmethod
    def migrate(cls, values: Mapping[str, object]) -> dict[str, Any]:
        """Move every field to its current place, and complete new parts with their defaults."""
        found = cls.relocate(values)
        for part in cls.parts().keys() & found.keys():
            if isinstance(found[part], Mapping) and not isinstance(values.get(part), Mapping):
                found[part] = dataclasses.replace(cls.default_part(part), **found[part])
        return found

    @classmethod
    def relocate(cls, values: Mapping[str, object]) -> dict[str, Any]:
        """Move every field to its current place, without adding defaults.

        Raises:
            ValueError: If a setting is given by its old and by its current name.
        """
        found: dict[str, Any] = dict(values)
        inner: dict[str, dict[str, Any]] = {}
        for old, places in cls.moved.items():
            if old not in found or isinstance(found[old], (Mapping, Config)):
                continue  # a part with the name of an old plain value
            value = found.pop(old)
            for name, part, change in [places] if isinstance(places, Moved) else places:
                given = values.get(part, {}) if part else values
                if name != old and isinstance(given, Mapping) and name in given:
                    now = f"{part}.{name}" if part else name
                    raise ValueError(f"{old} and {now} are given, but they are the same; leave out {old}, the old name")
                (inner.setdefault(part, {}) if part else found)[name] = value if change is None else change(value)
        for part, kind in cls.parts().items():
            given = found.get(part, {})
            if isinstance(given, Mapping) and (given or part in inner):
                found[part] = {**inner.get(part, {}), **kind.relocate(given)}
        return found

    @classmethod
    @cache
    def parts(cls) -> dict[str, type[Config]]:
        """Find the config classes of parts by the names of their fields."""
        found = {}
        for name, hint in typing.get_type_hints(cls).items():
            for kind in (hint, *typing.get_args(hint)):
                if isinstance(kind, type) and issubclass(kind, Config):
                    found[name] = kind
        return found

    @classmethod
    def default_part(cls, name: str) -> Config:
        """Build the default config of a part; that of its class if the part is left out by default."""
        (field,) = (field for field in dataclasses.fields(cls) if field.name == name)
        make = field.default_factory
        found = field.default if make is dataclasses.MISSING else make()
        return found if isinstance(found, Config) else cls.parts()[name]()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """Base of the configs of models: everything needed to rebuild and describe a model of images.

    Attributes:
        image_size: Height and width in pixels.
        channels: 1 for greyscale, 3 for RGB.
        label_kind: Kind of condition, see `medgen.labels.LabelSpace`.
        label_names: Classes, findings or conditions in the order of the label vector.
        intensity_window: Physical values of 0 and 1 of the images.
        intensity_unit: Unit of the window, such as ``HU`` or ``stored value``.
    """

    image_size: tuple[int, int]
    channels: int = 1
    label_kind: LabelKind = "none"
    label_names: tuple[str, ...] = ()
    intensity_window: tuple[float, float] = (0.0, 255.0)
    intensity_unit: str = "stored value"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.image_size) != 2 or any(side < 1 for side in self.image_size):
            raise ValueError(f"image_size is {self.image_size}; expected (height, width) in pixels")
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}; use 1 for greyscale or 3 for RGB")
        if self.intensity_window[0] >= self.intensity_window[1]:
            raise ValueError(f"intensity_window is {self.intensity_window}; expected (low, high) with low < high")
        LabelSpace(self.label_kind, self.label_names)

    @property
    def label_space(self) -> LabelSpace:
        """Labels of the model."""
        return LabelSpace(self.label_kind, self.label_names)

    @classmethod
    def tiny(cls) -> Self:
        """Build the config of a model that trains and samples within a second, for tests and documentation."""
        raise NotImplementedError(f"{cls.__name__} has no tiny()")


def _tuples(value: Any) -> Any:
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return tuple(_tuples(item) for item in value)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
