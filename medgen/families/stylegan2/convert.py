"""Conversion of official StyleGAN2-ADA networks: arguments of their constructors, names of their weights.

The official package is NVlabs/stylegan2-ada-pytorch. Its networks are ours under other names. How many resolutions run
in half precision is decided where a network is used, and not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medgen.families.family import Component
from medgen.families.stylegan2.config import StyleGAN2Config
from medgen.families.stylegan2.generator import StyleGAN2Generator
from medgen.families.stylegan2.networks import Discriminator
from medgen.foreign.network_pickles import PickledNetwork
from medgen.nn.resampling import separable_filter
from medgen.published import load_strictly

Arguments = Mapping[str, Any]
"""Keyword arguments of an official constructor."""

_SMALLEST = 4  # pixels along each side at the lowest resolution
_WHOLE_BATCH = 1 << 30  # groups are no larger than the batch
_NEEDED = ("c_dim", "img_resolution", "img_channels")
_FIXED = {"lr_multiplier": 0.01, "use_noise": True, "activation": "lrelu"}
"""Arguments that change the output but no shape, with the values of our networks."""
_WIDTHS = {"embed_features", "layer_features"}
"""Widths within a mapping network; weights of other widths than that of the output do not fit."""
_FREE = {"num_fp16_res", "fp16_channels_last", "architecture", "resample_filter", "freeze_layers"}
"""Arguments whose value is not checked: they change no weight, or weights that then do not fit."""


def generator_config(arguments: Arguments, label_names: tuple[str, ...] = ()) -> StyleGAN2Config:
    """Build the config from the arguments of the official Generator; classes are named "class 0", ... by default.

    Raises:
        ValueError: If an argument is missing, or asks for what our networks do not have.
    """
    _need(arguments, ("z_dim", "w_dim", *_NEEDED))
    mapping, synthesis = arguments.get("mapping_kwargs", {}), arguments.get("synthesis_kwargs", {})
    _refuse_others(mapping, {"num_layers"}, {"w_avg_beta", *_WIDTHS}, "mapping_kwargs")
    _refuse_others(synthesis, {"channel_base", "channel_max", "conv_clamp"}, _FREE, "synthesis_kwargs")
    classes = arguments["c_dim"]
    if label_names and len(label_names) != classes:
        raise ValueError(f"label_names are {list(label_names)}, but the generator has {classes} classes")
    return StyleGAN2Config(
        image_size=(arguments["img_resolution"],) * 2,
        channels=arguments["img_channels"],
        label_kind="single" if classes else "none",
        needs_label=classes > 0,
        label_names=label_names or tuple(f"class {i}" for i in range(classes)),
        z_dim=arguments["z_dim"],
        w_dim=arguments["w_dim"],
        mapping_layers=mapping.get("num_layers", 8),
        channel_base=synthesis.get("channel_base", 32768),
        channel_max=synthesis.get("channel_max", 512),
        clamp=synthesis.get("conv_clamp"),
    )


def pickled_config(network: PickledNetwork, label_names: tuple[str, ...] = ()) -> StyleGAN2Config:
    """Build the config of a generator in a ``.pkl`` of either code, see `generator_config`.

    The code of StyleGAN3, which trains StyleGAN2 as well, has the arguments of synthesis beside the others, and a
    default limit of activations.
    """
    grouped = {"z_dim", "w_dim", "mapping_kwargs", "synthesis_kwargs", *_NEEDED}
    arguments = {name: value for name, value in network.arguments.items() if name in grouped}
    free = {"class_name", "fused_modconv_default"}
    synthesis = {name: value for name, value in network.arguments.items() if name not in grouped | free}
    clamps = {value for name, value in network.attributes.items() if name.endswith(".conv_clamp")}
    if len(clamps) == 1:
        synthesis["conv_clamp"] = clamps.pop()
    return generator_config(
        {**arguments, "synthesis_kwargs": {**arguments.get("synthesis_kwargs", {}), **synthesis}}, label_names
    )


def build_generator(arguments: Arguments) -> StyleGAN2Generator:
    """Build the generator from the arguments of the official Generator."""
    return StyleGAN2Generator(generator_config(arguments))


def build_discriminator(arguments: Arguments) -> Discriminator:
    """Build the discriminator from the arguments of the official Discriminator, see `generator_config`."""
    _need(arguments, _NEEDED)
    block, mapping, last = (arguments.get(f"{part}_kwargs", {}) for part in ("block", "mapping", "epilogue"))
    _refuse_others(block, set(), _FREE, "block_kwargs")
    if arguments["c_dim"] and mapping.get("num_layers", 8):  # else there are no layers that they would be of
        _refuse_others(mapping, {"num_layers"}, _WIDTHS, "mapping_kwargs")
    _refuse_others(last, {"mbstd_group_size"}, {"mbstd_num_channels"}, "epilogue_kwargs")
    classes = arguments["c_dim"]
    config = StyleGAN2Config(
        image_size=(arguments["img_resolution"],) * 2,
        channels=arguments["img_channels"],
        label_kind="single" if classes else "none",
        label_names=tuple(f"class {i}" for i in range(classes)),
        channel_base=arguments.get("channel_base", 32768),
        channel_max=arguments.get("channel_max", 512),
        clamp=arguments.get("conv_clamp"),
    )
    group = last.get("mbstd_group_size", 4)
    group = _WHOLE_BATCH if group is None else group
    return Discriminator(config, group=group, mapping_layers=mapping.get("num_layers", 8))


def generator_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an official Generator, see `_without_filters`."""
    return {_generator_name(name): value for name, value in _without_filters(weights).items()}


def discriminator_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an official Discriminator, see `_without_filters`."""
    return {_discriminator_name(name): value for name, value in _without_filters(weights).items()}


def load_generator_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load an official generator, see `load_strictly`."""
    load_strictly(network, generator_weights(weights), where="the official generator")


def load_discriminator_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load an official discriminator, see `load_strictly`."""
    load_strictly(network, discriminator_weights(weights), where="the official discriminator")


def _generator_name(name: str) -> str:
    name = name.replace("mapping.w_avg", "w_avg")
    name = re.sub(r"^mapping\.fc(\d+)\.", r"mapping.layers.\1.", name)
    name = re.sub(r"\.affine\.", ".style.", name)
    name = re.sub(r"\.noise_const$", ".fixed_noise", name)
    return re.sub(r"^synthesis\.b(\d+)\.(const|conv0|conv1|torgb)\b", _layer_name, name)


def _layer_name(match: re.Match[str]) -> str:
    level = _level(int(match[1]))
    return {
        "const": "synthesis.start",
        "conv0": f"synthesis.first.{level - 1}",
        "conv1": f"synthesis.second.{level}",
        "torgb": f"synthesis.to_image.{level}",
    }[match[2]]


def _discriminator_name(name: str) -> str:
    last = {"conv": "last", "fc": "dense", "out": "out"}
    name = re.sub(rf"^b{_SMALLEST}\.(conv|fc|out)\.", lambda match: f"{last[match[1]]}.", name)
    name = re.sub(r"^mapping\.fc(\d+)\.", r"label.layers.\1.", name)
    name = re.sub(r"^mapping\.", "label.", name)
    name = re.sub(r"^b\d+\.fromrgb\.", "from_image.", name)
    parts = {"conv0": "first", "conv1": "second", "skip": "skip"}
    return re.sub(
        r"^b(\d+)\.(conv0|conv1|skip)\.",
        lambda match: f"blocks.{_level(int(match[1])) - 1}.{parts[match[2]]}.",
        name,
    )


def _level(size: int) -> int:
    """Number of upsamplings from the smallest size."""
    return (size // _SMALLEST).bit_length() - 1


def _without_filters(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the resampling filters, which are not learned; one other than ours is a ValueError."""
    ours = separable_filter()
    for name, value in weights.items():
        if name.endswith("resample_filter") and not (value.shape == ours.shape and torch.allclose(value.cpu(), ours)):
            raise ValueError(f"{name} is another filter than 1, 3, 3, 1, which our networks resample with")
    return {name: value for name, value in weights.items() if not name.endswith("resample_filter")}


def _need(arguments: Arguments, names: tuple[str, ...]) -> None:
    if missing := [name for name in names if name not in arguments]:
        raise ValueError(f"the arguments of the official constructor lack {', '.join(missing)}")


def _refuse_others(arguments: Arguments, known: set[str], free: set[str], where: str) -> None:
    for name, value in _FIXED.items():
        if arguments.get(name, value) != value:
            raise ValueError(f"{name} of {where} is {arguments[name]}; our networks have {value}")
    if unknown := sorted(set(arguments) - known - free - _FIXED.keys()):
        raise ValueError(f"{where} has {', '.join(unknown)}, which our networks do not have")


COMPONENTS: Mapping[str, Component] = {
    "stylegan2_generator": Component(build_generator, load_generator_weights),
    "stylegan2_discriminator": Component(build_discriminator, load_discriminator_weights),
}
