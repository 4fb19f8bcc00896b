"""Base of the models that can be published: a network, its config, and the facts for its model card."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from medgen.checkpoint import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    About,
    Checkpoint,
    CheckpointError,
    model_card,
    read_checkpoint,
    write_checkpoint,
)
from medgen.config import ModelConfig
from medgen.labels import LabelSpace


class PublishedModel(nn.Module, ABC):
    """Base of generators and translators: config, device, `save_pretrained`, strict loading.

    A family names itself in the class line (``class DDPMGenerator(Generator, family="ddpm")``) and sets
    `config_class`.

    Attributes:
        renamed_weights: New names of weights by their names in older checkpoints.
        about: Licence, data and intended use.
        source: Path, zoo name or ``org/repo`` that the weights came from.
        revision: Start of the sha256 of the weights file, or commit on the Hub.
        folder: Folder of the checkpoint; None for a model that was not loaded.
    """

    family: ClassVar[str]
    config_class: ClassVar[type[ModelConfig]]
    renamed_weights: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, family: str = "") -> None:
        super().__init_subclass__()
        if not family:
            return
        if "config_class" not in vars(cls):
            raise TypeError(f"{cls.__name__} is the model of family {family!r}, but has no config_class")
        cls.family = family

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.about = About()
        self.source = ""
        self.revision = ""
        self.folder: Path | None = None

    @property
    def label_space(self) -> LabelSpace:
        """Labels of the model."""
        return self.config.label_space

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        about: About | None = None,
        dtype: torch.dtype | None = None,
        extra_files: Mapping[str, str | bytes | Path] | None = None,
    ) -> Path:
        """Write ``config.json``, ``model.safetensors`` and a model card, whole or not at all.

        Args:
            folder: Folder of the checkpoint; made if missing.
            about: Data, licence, intended use and known failures; by default those of the model.
            dtype: Type of stored floating-point weights; loading always gives float32.
            extra_files: Further files by name, see `medgen.checkpoint.write_checkpoint`.

        Returns:
            The folder.
        """
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        about, name = about or self.about, Path(folder).resolve().name
        return write_checkpoint(
            folder,
            family=self.family,
            config=self.config.to_dict(),
            state=state,
            about=about,
            dtype=dtype,
            extra_files={CARD_FILE: self.card(self.config, about, name), **(extra_files or {})},
        )

    @classmethod
    def card(cls, config: ModelConfig, about: About, name: str) -> str:
        """Write the text of the model card, with the name of the checkpoint as heading."""
        return model_card(about, family=cls.family, name=name)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load a checkpoint folder of this family; `medgen.load` loads those of any, and from the Hub.

        Args:
            folder: A folder with ``config.json`` and ``model.safetensors``.

        Returns:
            The model in evaluation mode, on the CPU, in float32.

        Raises:
            FileNotFoundError: If there is no checkpoint.
            ValueError: If a file is damaged, foreign or of a newer format, or family or weights do not fit.
        """
        if not hasattr(cls, "family"):
            raise ValueError(f"{cls.__name__} is no family of models; medgen.load({str(folder)!r}) finds the family")
        return cls.from_checkpoint(read_checkpoint(folder))

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Build the model of a checkpoint."""
        if checkpoint.family != cls.family:
            raise CheckpointError(f"{checkpoint.folder} holds a {checkpoint.family} model; load it with medgen.load")
        try:
            config = cls.config_class.from_dict(checkpoint.config)
            with _SkipInitialisation():
                model = cls(config)
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
            raise CheckpointError(
                f"the config in {checkpoint.folder / CONFIG_FILE} describes no {cls.family} model that can be built: "
                f"{error}"
            ) from error
        load_strictly(model, checkpoint.state, where=str(checkpoint.folder), assign=True)
        model.about = checkpoint.about
        model.source = str(checkpoint.folder)
        model.folder = checkpoint.folder
        model.revision = checkpoint.files[WEIGHTS_FILE][:12]
        return model.eval()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for old, new in self.renamed_weights.items():  # a training checkpoint may be of an older medgen
            if prefix + old in state_dict:
                state_dict[prefix + new] = state_dict.pop(prefix + old)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @classmethod
    def current_names(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename weights of older checkpoints of this family."""
        return {cls.renamed_weights.get(name, name): weight for name, weight in state.items()}


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, where: str, assign: bool = False) -> None:
    """Load weights into a module; every name and shape must agree.

    Args:
        module: The module.
        state: The weights.
        where: Name of their source in errors.
        assign: Whether to take the tensors instead of copying them, which is faster; only for a new module without an
            optimiser. A module on the device "meta" always takes them.

    Raises:
        ValueError: Naming the first few weights that are missing, left over or of another shape.
    """
    if isinstance(module, PublishedModel):
        state = module.current_names(state)
    own = module.state_dict()
    problems = [f"{name} is missing" for name in own.keys() - state.keys()]
    problems += [f"{name} is not part of this model" for name in state.keys() - own.keys()]
    for name in own.keys() & state.keys():
        found, expected = tuple(state[name].shape), tuple(own[name].shape)
        if found != expected:
            problems.append(f"{name} is {found}, expected {expected}")
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        raise ValueError(
            f"weights of {where} do not fit {type(module).__name__} ({len(problems)} differences): {shown}"
        )
    empty = any(weight.is_meta for weight in own.values())
    module.load_state_dict(dict(state), strict=True, assign=assign or empty)


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the weights whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}


class _SkipInitialisation(TorchFunctionMode):
    """Skips the random initialisation of weights that are about to be loaded, which takes longer than loading."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
