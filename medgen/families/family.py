"""The record of a family: what it makes, how it is trained, and which files of its authors it takes.

Records name classes and functions as ``"module:name"`` and import them when they are asked for: the command line lists
what there is without importing torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

if TYPE_CHECKING:
    from torch import Tensor, nn

    from medgen.config import ModelConfig
    from medgen.foreign.file import ForeignFile

Makes = Literal["generator", "translator", "classifier", "autoencoder"]


class Component(NamedTuple):
    """How an official network becomes ours.

    Attributes:
        build: Our network from the arguments of the official constructor.
        load: Puts official weights into it, strictly.
    """

    build: Callable[[Mapping[str, Any]], nn.Module]
    load: Callable[[nn.Module, Mapping[str, Tensor]], None]


class Converted(NamedTuple):
    """Config and weights of converted official files.

    Attributes:
        config: The config of the model.
        state: Its state dict; tensors may be views of the memory-mapped files.
        extra_files: Files to put beside the weights, by name.
    """

    config: ModelConfig
    state: dict[str, Tensor]
    extra_files: Mapping[str, bytes] = {}


@dataclass(frozen=True, kw_only=True)
class OfficialFiles:
    """The files of the authors' code that become a model of the family.

    Attributes:
        expects: How messages call the file that is converted, such as ``a .pkl of the official code``.
        recognise: ``module:function`` that tells whether a `ForeignFile` is such a file.
        convert: ``module:function`` from a `ForeignFile`, with `image_size`, `label_names` and the fields of `options`
            as keywords, to `Converted`.
        options: A dataclass of what the file does not state: each field has a default, and a ``help`` in its metadata.
        renamed: Options by their names in the release before, which still work for this one.
    """

    expects: str
    recognise: str
    convert: str
    options: type[Any] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)

    def fields(self) -> tuple[Field[Any], ...]:
        """The fields of `options`."""
        return dataclasses.fields(self.options) if self.options else ()

    def defaults(self) -> dict[str, Any]:
        """The default of every option, by name."""
        return {option.name: option.default for option in self.fields()}

    def recognises(self, file: ForeignFile) -> bool:
        """Whether a file is one of these."""
        return bool(imported(self.recognise)(file))

    def converted(self, file: ForeignFile, **options: Any) -> Converted:
        """The model in a file that `recognises` has said yes to."""
        made: Converted = imported(self.convert)(file, **options)
        return made


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb of the command line that only models of the family know.

    Attributes:
        arguments: Those that the overview shows, such as ``NAME --out FILE``.
        help: One line for the overview.
        run: ``module:function`` that takes the words after the verb.
    """

    arguments: str
    help: str
    run: str

    def __call__(self, args: Sequence[str]) -> None:
        """Run the verb."""
        imported(self.run)(args)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of models.

    Attributes:
        name: Name of its folder, and in ``config.json``.
        title: Name in texts.
        makes: What its models are.
        model: ``module:class`` of them.
        stages: ``module:class`` of the training modules, in the order of training; empty if medgen does not train it.
        components: ``module:name`` of a mapping from names to `Component`, the official networks; empty for none.
        official: The authors' files that can be converted; None for none.
        verbs: Its own verbs of the command line.
    """

    name: str
    title: str
    makes: Makes = "generator"
    model: str
    stages: tuple[str, ...] = ()
    components: str = ""
    official: OfficialFiles | None = None
    verbs: Mapping[str, Verb] = field(default_factory=dict)

    @property
    def package(self) -> str:
        """Name of the package that the family is."""
        return self.model.rpartition(".")[0]

    def model_class(self) -> type[Any]:
        """The class of its models."""
        found: type[Any] = imported(self.model)
        return found

    def config_class(self) -> type[ModelConfig]:
        """The class of their configs."""
        return cast("type[ModelConfig]", self.model_class().config_class)

    def stage_classes(self) -> tuple[type[Any], ...]:
        """The training modules, in the order of training."""
        return tuple(map(imported, self.stages))

    def official_networks(self) -> Mapping[str, Component]:
        """The official networks that can be built and loaded alone, by name."""
        return cast("Mapping[str, Component]", imported(self.components)) if self.components else {}


def imported(path: str) -> Any:
    """Import the object that ``module:name`` names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
