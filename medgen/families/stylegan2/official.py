"""The ``.pkl`` files of the authors' code, as config and weights of a generator, with the discriminator beside."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from safetensors.torch import save
from torch import Tensor, nn

from medgen.checkpoint import DISCRIMINATOR_FILE, CheckpointError
from medgen.families.family import Converted
from medgen.families.stylegan2.convert import (
    build_discriminator,
    discriminator_weights,
    load_generator_weights,
    pickled_config,
)
from medgen.families.stylegan2.generator import StyleGAN2Generator
from medgen.foreign.file import ForeignFile
from medgen.foreign.network_pickles import PickledNetwork
from medgen.generator import Generator, GeneratorConfig
from medgen.published import load_strictly

_logger = logging.getLogger(__name__)

_MISFITS = (ValueError, TypeError, AttributeError)
"""Errors from arguments of a network that ours does not have, or of another type."""


def is_official(file: ForeignFile) -> bool:
    """Whether it is a ``.pkl`` with a StyleGAN2 of either official code."""
    return has_weight(file, "synthesis.b4.const")


def convert_pickle(
    file: ForeignFile, *, image_size: tuple[int, int] | None = None, label_names: Sequence[str] = ()
) -> Converted:
    """Convert a ``.pkl``, see `convert_networks`."""
    return convert_networks(
        file, StyleGAN2Generator, pickled_config, load_generator_weights, image_size=image_size, label_names=label_names
    )


def has_weight(file: ForeignFile, name: str) -> bool:
    """Whether it is a ``.pkl`` of which a network has such a weight; the classes of all generators have one name."""
    return any(name in network.state_dict for network in file.networks.values())


def convert_networks(
    file: ForeignFile,
    kind: type[Generator],
    config_of: Callable[[PickledNetwork, tuple[str, ...]], GeneratorConfig],
    load: Callable[[nn.Module, Mapping[str, Tensor]], None],
    *,
    image_size: tuple[int, int] | None,
    label_names: Sequence[str],
) -> Converted:
    """Convert the averaged generator of a ``.pkl``, and its discriminator as an extra file.

    Args:
        file: The ``.pkl``.
        kind: The class of our generator.
        config_of: Our config, of the network and the names of its classes.
        load: Puts the weights of the network into ours, strictly.
        image_size: Must be None: the file states it.
        label_names: Names of the classes; "class 0", ... by default.

    Raises:
        CheckpointError: If there is no averaged generator, or it is not like ours.
        ValueError: If `image_size` is given, or `label_names` are not as many as the classes.
    """
    if image_size:
        raise ValueError(f"{file} states its image_size itself; leave it out")
    if "G_ema" not in file.networks:
        raise CheckpointError(
            f"{file} has {', '.join(file.networks)} and no averaged generator, G_ema; give one with it"
        )
    average = file.networks["G_ema"]
    try:
        config = config_of(average, ())
        with torch.device("meta"):  # a network without memory: it takes the file's tensors as they are
            generator = kind(config)
        load(generator, average.state_dict)
    except _MISFITS as error:
        raise CheckpointError(f"{file} has a generator unlike ours of {kind.family}: {error}") from error
    if label_names:
        config = config_of(average, tuple(label_names))
    discriminator = _discriminator(file)
    extra = {DISCRIMINATOR_FILE: save(discriminator)} if discriminator else {}
    return Converted(config, generator.state_dict(), extra)


def _discriminator(file: ForeignFile) -> dict[str, Tensor]:
    """Its weights under our names; none where there is none, or one that ours cannot be."""
    network = file.networks.get("D")
    if network is None:
        return {}
    try:
        weights = discriminator_weights(network.state_dict)
        with torch.device("meta"):
            discriminator = build_discriminator(network.arguments)
        load_strictly(discriminator, weights, where=str(file))
    except _MISFITS as error:
        _logger.warning("%s: the discriminator is left out, as ours cannot be like it: %s", file, error)
        return {}
    return {name: weight.contiguous() for name, weight in weights.items()}
