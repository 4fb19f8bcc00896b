"""Weights of other projects, and of unfinished training runs, as medgen's networks and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from medgen.checkpoint import About, CheckpointError, write_checkpoint
from medgen.families import FAMILIES, family_class
from medgen.families.medfusion import convert as medfusion
from medgen.families.medfusion.official import convert_checkpoint
from medgen.lightning_files import LightningFile, Record, read_lightning


class Component(NamedTuple):
    """How an official network becomes ours.

    Attributes:
        build: Our network from the arguments of the official constructor.
        load: Puts official weights into it, strictly.
    """

    build: Callable[[Mapping[str, Any]], nn.Module]
    load: Callable[[nn.Module, Mapping[str, Tensor]], None]


COMPONENTS: Mapping[str, Component] = {
    "medfusion_unet": Component(partial(medfusion.build_unet, kind="concatenated"), medfusion.load_weights),
    "medfusion_unet_v1": Component(partial(medfusion.build_unet, kind="additive"), medfusion.load_weights),
    "medfusion_vae": Component(partial(medfusion.build_autoencoder, kind="kl"), medfusion.load_weights),
    "medfusion_vqvae": Component(partial(medfusion.build_autoencoder, kind="vq"), medfusion.load_weights),
}


def load_official(component: str, weights: Mapping[str, Tensor], config: Mapping[str, object]) -> nn.Module:
    """Our network with the weights of an official one, ready for inference.

    Args:
        component: A name of `COMPONENTS`.
        weights: The official state dict of that network alone, without a prefix.
        config: The keyword arguments of the official constructor.

    Raises:
        ValueError: If there is no such component, an argument cannot be built, or a weight is missing, unknown or of
            another shape.
    """
    if component not in COMPONENTS:
        raise ValueError(f"component {component!r} is unknown; use one of {', '.join(COMPONENTS)}")
    network = COMPONENTS[component].build(config)
    COMPONENTS[component].load(network, weights)
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
) -> Path:
    """The folder of a new medgen checkpoint, made from a Lightning ``.ckpt`` file without running anything in it.

    Args:
        path: A diffusion checkpoint of the official Medfusion code, or a checkpoint of a medgen training run, of which
            the averaged generator is taken.
        out: The folder to write.
        image_size: Height and width, which an official file does not state; 256 x 256 if None.
        label_names: Class names, which an official file does not state either; "class 0", ... by default.
        about: Licence, data and intended use of the weights.
        dtype: How floating-point weights are stored, see `write_checkpoint`.
        extra_files: Files to put beside the weights, by name.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, unsafe, or of a kind that cannot be converted.
        ValueError: If `image_size` or `label_names` do not fit the file.
    """
    about = about or About(source=Path(path).name)
    own = _read_training_run(read_lightning(path), path)
    if own is None:
        official, state = convert_checkpoint(path, image_size=image_size, label_names=label_names)
        family, fields = "medfusion", official.to_dict()
    elif image_size or label_names:
        raise ValueError(f"{path} is from medgen and states its image_size and label_names itself; leave them out")
    else:
        family, fields, state = own
    return write_checkpoint(
        out, family=family, config=fields, state=state, about=about, dtype=dtype, extra_files=extra_files
    )


def _read_training_run(
    file: LightningFile, path: str | Path
) -> tuple[str, dict[str, object], dict[str, Tensor]] | None:
    """Family, config and averaged weights of a checkpoint that medgen's training wrote; None for another's."""
    config = file.hyper_parameters.get("config")
    for family in FAMILIES:
        kind = family_class(family).config_class
        name = (kind.__module__, kind.__qualname__)
        if isinstance(config, Record) and (config.kind.module, config.kind.name) == name:
            fields = config.state
        elif str(file.hyper_parameters.get("_class_path")).startswith(kind.__module__.rpartition(".")[0] + "."):
            fields = config  # of a recipe: LightningCLI keeps a dictionary and the module's name
        else:
            continue
        if not isinstance(fields, dict):
            raise CheckpointError(f"{path} is damaged: the config of its model is {fields!r}")
        prefix = "ema.module."
        state = {name.removeprefix(prefix): w for name, w in file.state_dict.items() if name.startswith(prefix)}
        if not state:
            raise CheckpointError(
                f"{path} is from a training stage that has no generator yet; convert a checkpoint of the last stage"
            )
        return family, kind.from_dict(fields).to_dict(), state
    return None
