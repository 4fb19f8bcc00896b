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
from medgen.families.vqvae2 import convert as vqvae2
from medgen.families.vqvae2.official import convert_checkpoints, is_official
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
    "vqvae2": Component(vqvae2.build_autoencoder, vqvae2.load_autoencoder_weights),
    "pixelsnail": Component(vqvae2.build_prior, vqvae2.load_prior_weights),
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
    top: str | Path | None = None,
    bottom: str | Path | None = None,
    image_size: tuple[int, int] | None = None,
    label_names: Sequence[str] = (),
    about: About | None = None,
    dtype: torch.dtype | None = None,
    extra_files: Mapping[str, Path] | None = None,
) -> Path:
    """The folder of a new medgen checkpoint, made from other files without running anything in them.

    Args:
        path: A diffusion checkpoint of the official Medfusion code, the autoencoder of the official VQ-VAE2 code, or a
            checkpoint of a medgen training run, of which the averaged generator is taken.
        out: The folder to write.
        top: For an official VQ-VAE2: the file of the prior of the top map.
        bottom: The same of the bottom map.
        image_size: Height and width, which an official Medfusion file does not state; 256 x 256 if None.
        label_names: Class names, which it does not state either; "class 0", ... by default.
        about: Licence, data and intended use of the weights.
        dtype: How floating-point weights are stored, see `write_checkpoint`.
        extra_files: Files to put beside the weights, by name.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If a file is damaged, unsafe, or of a kind that cannot be converted, or if files are missing or
            do not belong together.
        ValueError: If `top`, `bottom`, `image_size` or `label_names` do not fit the file.
    """
    about = about or About(source=", ".join(Path(name).name for name in (path, top, bottom) if name is not None))
    if is_official(path):
        files = convert_checkpoints(path, top, bottom, image_size=image_size, label_names=label_names)
        found = _Found("vqvae2", files.config.to_dict(), files.state)
    elif top is not None or bottom is not None:
        raise ValueError(
            f"top and bottom go with the autoencoder of the official VQ-VAE2 code (vqvae_*.pt), which {path} is not; "
            "give that file first, or leave them out"
        )
    else:
        found = _read_single_file(path, image_size, label_names)
    return write_checkpoint(
        out,
        family=found.family,
        config=found.config,
        state=found.state,
        about=about,
        dtype=dtype,
        extra_files=extra_files,
    )


class _Found(NamedTuple):
    family: str
    config: dict[str, object]
    state: dict[str, Tensor]


def _read_single_file(path: str | Path, image_size: tuple[int, int] | None, label_names: Sequence[str]) -> _Found:
    own = _read_training_run(read_lightning(path), path)
    if own is None:
        official = convert_checkpoint(path, image_size=image_size, label_names=label_names)
        return _Found("medfusion", official.config.to_dict(), official.state)
    if image_size or label_names:
        raise ValueError(f"{path} is from medgen and states its image_size and label_names itself; leave them out")
    return own


def _read_training_run(file: LightningFile, path: str | Path) -> _Found | None:
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
        if not state or not file.publishable:
            raise CheckpointError(
                f"{path} is from a training stage that has no generator yet; convert a checkpoint of the last stage"
            )
        return _Found(family, kind.from_dict(fields).to_dict(), state)
    return None
