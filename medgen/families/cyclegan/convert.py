"""Conversion of official CycleGAN networks: arguments of their constructors, names of their weights.

The official package is junyanz/pytorch-CycleGAN-and-pix2pix; taesungp/contrastive-unpaired-translation without
antialiasing has the same layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from medgen.families.family import Component
from medgen.nn.patch_discriminator import PatchDiscriminator, patch_discriminator
from medgen.nn.resnet_generator import ResNetGenerator
from medgen.published import load_strictly

Arguments = Mapping[str, Any]
"""Keyword arguments of an official constructor, with the norm as on the command line: ``norm="instance"``."""

_FIXED: Mapping[str, object] = {
    "use_dropout": False,
    "padding_type": "reflect",
    "no_antialias": True,
    "no_antialias_up": True,
}
"""Arguments that have one value here."""
_KNOWN = {"input_nc", "output_nc", "ngf", "n_blocks", "ndf", "n_layers", "norm"}
_AVERAGES = (".running_mean", ".running_var", ".num_batches_tracked")
_FIRST_BLOCK = 10  # its number in the official sequence, after a padding and three layers of three modules


def build_generator(arguments: Arguments) -> ResNetGenerator:
    """Build the generator from the arguments of the official ResnetGenerator, with random weights.

    Raises:
        ValueError: If an argument is missing, or our network does not have it.
    """
    _check(arguments, ("input_nc", "output_nc", "norm"))
    return ResNetGenerator(
        arguments["input_nc"],
        arguments["output_nc"],
        width=arguments.get("ngf", 64),
        blocks=arguments.get("n_blocks", 6),
        norm=arguments["norm"],
    )


def build_discriminator(arguments: Arguments) -> PatchDiscriminator:
    """Build the discriminator from the arguments of the official NLayerDiscriminator, with random weights.

    Raises:
        ValueError: If an argument is missing, or our network does not have it.
    """
    _check(arguments, ("input_nc", "norm"))
    return patch_discriminator(
        arguments["input_nc"],
        width=arguments.get("ndf", 64),
        layers=arguments.get("n_layers", 3),
        norm=arguments["norm"],
    )


def generator_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an official ResnetGenerator; unknown names stay as they are."""
    blocks = len({found[1] for name in weights if (found := re.match(r"model\.(\d+)\.conv_block\.", name))})
    after = _FIRST_BLOCK + blocks
    layers = {1: "stem", 4: "down.0", 7: "down.1", after: "up.0", after + 3: "up.1"}

    def renamed(name: str) -> str:
        if found := re.fullmatch(r"model\.(\d+)\.conv_block\.([1256])\.(\w+)", name):
            layer = "first" if int(found[2]) < 5 else "second"
            part = "conv" if found[2] in "15" else "norm"
            return f"blocks.{int(found[1]) - _FIRST_BLOCK}.{layer}.{part}.{found[3]}"
        return _renamed(name, layers, last=after + 7)

    return {renamed(name): weight for name, weight in weights.items()}


def discriminator_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an official NLayerDiscriminator; unknown names stay as they are."""
    numbers = [int(found[1]) for name in weights if (found := re.match(r"model\.(\d+)\.", name))]
    last = max(numbers, default=0)
    layers = {number: f"layers.{i}" for i, number in enumerate(range(2, last, 3))}
    renamed = {_renamed(name, layers, last=last): weight for name, weight in weights.items()}
    return {re.sub(r"^model\.0\.", "first.", name): weight for name, weight in renamed.items()}


def load_generator_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load an official generator; see `load_strictly`."""
    load_strictly(network, _without_averages(network, generator_weights(weights)), where="the official generator")


def load_discriminator_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load an official discriminator; see `load_strictly`."""
    weights = _without_averages(network, discriminator_weights(weights))
    load_strictly(network, weights, where="the official discriminator")


def _renamed(name: str, layers: Mapping[int, str], *, last: int) -> str:
    """Rename a weight of a convolution, by its number in the official sequence, or of the norm after it."""
    found = re.fullmatch(r"model\.(\d+)\.(\w+)", name)
    if not found:
        return name
    number = int(found[1])
    if number == last:
        return f"last.{found[2]}"
    for offset, part in enumerate(("conv", "norm")):
        if number - offset in layers:
            return f"{layers[number - offset]}.{part}.{found[2]}"
    return name


def _without_averages(network: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Remove the unused averages of instance norms, which files of PyTorch before 0.4 have."""
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return weights
    return {name: weight for name, weight in weights.items() if not name.endswith(_AVERAGES)}


def _check(arguments: Arguments, needed: tuple[str, ...]) -> None:
    if missing := [name for name in needed if name not in arguments]:
        raise ValueError(f"the arguments of the official constructor lack {', '.join(missing)}")
    for name, value in _FIXED.items():
        if arguments.get(name, value) != value:
            raise ValueError(f"{name} is {arguments[name]!r}; our networks have {value!r}")
    if unknown := sorted(set(arguments) - _KNOWN - _FIXED.keys()):
        raise ValueError(f"the official constructor has {', '.join(unknown)}, which our networks do not have")


COMPONENTS: Mapping[str, Component] = {
    "cyclegan_generator": Component(build_generator, load_generator_weights),
    "cyclegan_discriminator": Component(build_discriminator, load_discriminator_weights),
}
