"""Safe reader of Lightning checkpoints."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from medgen.checkpoint import CheckpointError
from medgen.foreign.torch_files import read_torch_file


@dataclass(frozen=True, kw_only=True)
class LightningFile:
    """The parts of a Lightning checkpoint that describe a model.

    Attributes:
        state_dict: Tensors by name, views of the mapped file.
        hyper_parameters: Arguments of the module; classes are `GlobalName`, objects are `Record`.
        version: Lightning version that wrote the file.
        global_step: Optimiser steps so far.
        publishable: Whether the generator is complete, see `medgen.training.base.GenerativeModule`; True by default.
        trained_with: Feature networks of the losses, if stated.
        licence: Licence of the model that the run started from, if stated.
        source: Model that the run started from; empty for none.
    """

    state_dict: dict[str, Tensor]
    hyper_parameters: dict[str, object]
    version: str
    global_step: int
    publishable: bool
    trained_with: tuple[str, ...] = ()
    licence: str = "unknown"
    source: str = ""


def read_lightning(path: str | Path) -> LightningFile:
    """Read the weights and hyper-parameters of a Lightning ``.ckpt`` file.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, or not from Lightning.
        UnsafeFileError: If loading it the usual way would run code.
    """
    return lightning_content(read_torch_file(path), path)


def lightning_content(content: object, path: str | Path) -> LightningFile:
    """Interpret the content of a file as a Lightning checkpoint.

    Raises:
        CheckpointError: If it is not from Lightning.
    """
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(f"{path} is not a Lightning checkpoint: it has no state_dict")
    state = content["state_dict"]
    others = [name for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{path} is not a Lightning checkpoint: state_dict entry {others[0]!r} is not a tensor")
    hyper_parameters, step = content.get("hyper_parameters", {}), content.get("global_step", 0)
    networks, origin = content.get("trained_with"), content.get("origin")
    origin = origin if isinstance(origin, dict) else {}
    return LightningFile(
        state_dict=state,
        hyper_parameters=hyper_parameters if isinstance(hyper_parameters, dict) else {},
        version=str(content.get("pytorch-lightning_version", "")),
        global_step=step if isinstance(step, int) else 0,
        publishable=content.get("publishable", True) is True,
        trained_with=tuple(str(name) for name in networks) if isinstance(networks, list) else (),
        licence=str(origin.get("licence", "unknown")),
        source=str(origin.get("source", "")),
    )
