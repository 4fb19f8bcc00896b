"""Conversion of official StyleGAN3 generators: arguments of their constructor, names of their weights.

The official package is NVlabs/stylegan3. Its argument for half precision is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medgen.families.family import Component
from medgen.families.stylegan3.config import StyleGAN3Config
from medgen.families.stylegan3.generator import StyleGAN3Generator
from medgen.foreign.network_pickles import PickledNetwork
from medgen.published import load_strictly

Arguments = Mapping[str, Any]
"""Keyword arguments of an official constructor."""

_SAME_NAMES = (
    *("z_dim", "w_dim", "num_layers", "num_critical", "first_cutoff", "first_stopband", "last_stopband_rel"),
    *("filter_size", "channel_base", "channel_max", "output_scale"),
)
_NAMES = {name: name for name in _SAME_NAMES} | {
    "img_channels": "channels",
    "margin_size": "margin",
    "conv_kernel": "kernel",
    "lrelu_upsampling": "activation_rate",
    "use_radial_filters": "radial_filters",
    "conv_clamp": "clamp",
}
"""Fields of our config, whose defaults are the official ones, by the names of official arguments."""
_NEEDED = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")
_FREE = {"num_fp16_res", "magnitude_ema_beta", "class_name"}


def generator_config(arguments: Arguments, label_names: tuple[str, ...] = ()) -> StyleGAN3Config:
    """Build the config from the arguments of the official Generator; classes are named "class 0", ... by default.

    Raises:
        ValueError: If an argument is missing, or our networks do not have it.
    """
    if missing := [name for name in _NEEDED if name not in arguments]:
        raise ValueError(f"the arguments of the official constructor lack {', '.join(missing)}")
    mapping = arguments.get("mapping_kwargs", {})
    known = {*_NAMES, *_NEEDED, *_FREE, "mapping_kwargs"}
    for where, unknown in (
        ("the official constructor", set(arguments) - known),
        ("mapping_kwargs", set(mapping) - {"num_layers", "w_avg_beta", "lr_multiplier"}),
    ):
        if unknown:
            raise ValueError(f"{where} has {', '.join(sorted(unknown))}, which our networks do not have")
    if mapping.get("lr_multiplier", 0.01) != 0.01:
        raise ValueError(f"lr_multiplier of mapping_kwargs is {mapping['lr_multiplier']}; our networks have 0.01")
    classes = arguments["c_dim"]
    if label_names and len(label_names) != classes:
        raise ValueError(f"label_names are {list(label_names)}, but the generator has {classes} classes")
    return StyleGAN3Config(
        image_size=(arguments["img_resolution"],) * 2,
        label_kind="single" if classes else "none",
        needs_label=classes > 0,
        label_names=label_names or tuple(f"class {i}" for i in range(classes)),
        mapping_layers=mapping.get("num_layers", 2),
        **{ours: arguments[name] for name, ours in _NAMES.items() if name in arguments},
    )


def pickled_config(network: PickledNetwork, label_names: tuple[str, ...] = ()) -> StyleGAN3Config:
    """Build the config of a generator in a ``.pkl``, see `generator_config`."""
    return generator_config(network.arguments, label_names)


def build_generator(arguments: Arguments) -> StyleGAN3Generator:
    """Build the generator from the arguments of the official Generator."""
    return StyleGAN3Generator(generator_config(arguments))


def generator_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an official Generator, and leave out the filters, which are not learned."""
    numbers = [int(found[1]) for name in weights if (found := re.match(r"synthesis\.L(\d+)_", name))]
    last = max(numbers, default=-1)
    return {_name(name, last): value for name, value in weights.items() if not name.endswith("_filter")}


def _name(name: str, last: int) -> str:
    for pattern, replacement in (
        (r"^mapping\.w_avg", "w_avg"),
        (r"^mapping\.fc(\d+)\.", r"mapping.layers.\1."),
        (r"^synthesis\.input\.affine\.", "synthesis.start.placement."),
        (r"^synthesis\.input\.freqs$", "synthesis.start.frequencies"),
        (r"^synthesis\.input\.", "synthesis.start."),
        (rf"^synthesis\.L{last}_\d+_\d+\.", "synthesis.to_image."),
        (r"^synthesis\.L(\d+)_\d+_\d+\.", r"synthesis.layers.\1."),
        (r"\.affine\.", ".style."),
        (r"\.magnitude_ema$", ".magnitude"),
    ):
        name = re.sub(pattern, replacement, name)
    return name


def _check_filters(network: StyleGAN3Generator, weights: Mapping[str, Tensor]) -> None:
    """Refuse official filters that differ from those that our layers compute."""
    for name, value in weights.items():
        found = re.match(r"synthesis\.L(\d+)_\d+_\d+\.(up|down)_filter$", name)
        if found is None:
            continue
        ours = network.get_buffer(f"synthesis.layers.{found[1]}.activation.{found[2]}")
        if value.shape != ours.shape or not torch.allclose(value.to(ours), ours, rtol=0, atol=1e-6):
            raise ValueError(f"{name} is another low-pass filter than the constructor's arguments lead to")


def load_generator_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load an official generator, see `load_strictly`.

    Raises:
        ValueError: If weights or filters do not fit.
    """
    if isinstance(network, StyleGAN3Generator):
        _check_filters(network, weights)
    load_strictly(network, generator_weights(weights), where="the official generator")


COMPONENTS: Mapping[str, Component] = {
    "stylegan3_generator": Component(build_generator, load_generator_weights),
}
