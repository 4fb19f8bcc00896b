"""Conversion of official SPADE networks: options of the official scripts, names of their weights.

The official package is NVlabs/SPADE. Its forks for cardiac MR (CardiacPathologySynthesis, CMRISynthSeg) name layers
alike; their generators may have one channel, start from more pixels (``few``) and have a style encoder inside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from medgen.families.family import Component
from medgen.families.spade.config import SPADEConfig
from medgen.families.spade.discriminator import MultiscaleDiscriminator
from medgen.families.spade.encoders import InnerStyleEncoder, StyleEncoder
from medgen.families.spade.networks import SPADESynthesis
from medgen.families.spade.normalisation import Norm, NormalisedConv
from medgen.published import load_strictly

_Network = TypeVar("_Network", bound=nn.Module)

Options = Mapping[str, Any]
"""Options of the official scripts; those that are absent have the official default."""

_UPSAMPLINGS = {"few": 4, "normal": 5, "more": 6, "most": 7}
_NORMS: Mapping[str, Norm] = {"syncbatch": "batch", "sync_batch": "batch", "batch": "batch", "instance": "instance"}
_ENCODER_STYLE_DIM = 256  # of any z_dim
_CARDIAC_PIXELS = 8  # along each side of the last layer of the encoder of the forks

_SPECTRAL = {"orig": ".weight", "u": ".u", "v": ".v"}
_PARTS = {
    "conv_0": "first",
    "conv_1": "second",
    "conv_s": "skip",
    "norm_0": "first_norm",
    "norm_1": "second_norm",
    "norm_s": "skip_norm",
}
_MODULATION = {
    "param_free_norm": "norm",
    "mlp_shared.0": "modulation.shared",
    "mlp_gamma": "modulation.gamma",
    "mlp_beta": "modulation.beta",
    "class_specified_affine.weight": "modulation.gamma",
    "class_specified_affine.bias": "modulation.beta",
}


def synthesis_config(options: Options) -> SPADEConfig:
    """Build the config of the generator from official options.

    ``netG`` is ``spade`` or ``stylespade``; the classes are ``semantic_nc``, or ``label_nc`` with
    ``contain_dontcare_label`` and ``no_instance``.

    Raises:
        ValueError: If an option is missing, or asks for networks that we do not have.
    """
    _need(options, "crop_size")
    _refuse(options, netG=("spade", "stylespade"), use_noise=(False,), add_dist=(False,))
    _, norm, kernel_size = _spade_norm(options)
    inside = options.get("netG") == "stylespade"
    depth = options.get("num_upsampling_layers", "normal")
    allowed = ("few", "most") if inside else tuple(_UPSAMPLINGS)
    if depth not in allowed:
        raise ValueError(f"num_upsampling_layers is {depth!r}; our generators of this kind have {', '.join(allowed)}")
    num_upsamplings = 5 if inside and depth == "most" else _UPSAMPLINGS[depth]
    width = options.get("ngf", 64)
    return SPADEConfig(
        image_size=_image_size(options, num_upsamplings),
        channels=options.get("output_nc", 3),
        mask_names=tuple(f"class {i}" for i in range(_classes(options))),
        width=width,
        num_upsamplings=num_upsamplings,
        norm=norm,
        modulation=options.get("norm_mode", "spade"),
        kernel_size=kernel_size,
        style="inside" if inside else "vae" if options.get("use_vae") else "none",
        # As long as the lowest resolution is wide, which is more with one upsampling more.
        style_dim=width << num_upsamplings if inside else options.get("z_dim", 256),
    )


def build_synthesis(options: Options) -> SPADESynthesis:
    """Build the generator from official options, without the style encoder that it may hold."""
    return SPADESynthesis(synthesis_config(options), spectral=_spade_norm(options)[0])


def build_inner_style_encoder(options: Options) -> InnerStyleEncoder:
    """Build the style encoder within the generator from official options."""
    config = synthesis_config(options)
    _refuse(options, resnet_n_downsample=(config.num_upsamplings,))
    return InnerStyleEncoder(
        config,
        num_blocks=options.get("resnet_n_blocks", 2),
        kernel_size=options.get("resnet_initial_kernel_size", 7),
    )


def build_style_encoder(options: Options, kind: Literal["spade", "cardiac"] = "spade") -> StyleEncoder:
    """Build the style encoder beside the generator from official options, see `synthesis_config`.

    Kind ``cardiac`` is that of the forks, which does not resize images and skips its fifth layer.
    """
    _need(options, "crop_size")
    side = options["crop_size"]
    norm = _plain_norm(options.get("norm_E", "spectralinstance"), "norm_E")
    image_size = _image_size(options, 0)
    channels, width = options.get("output_nc", 3), options.get("ngf", 64)
    if kind == "spade":
        if side < 256:
            raise ValueError(f"crop_size is {side}; the official encoder works from 256 on only")
        return StyleEncoder(image_size, channels, width, _ENCODER_STYLE_DIM, norm=norm)
    halvings = (side // _CARDIAC_PIXELS).bit_length() - 1
    return StyleEncoder(image_size, channels, width, _ENCODER_STYLE_DIM, size=None, norm=norm, halvings=halvings)


def build_discriminator(options: Options) -> MultiscaleDiscriminator:
    """Build the discriminators from official options, see `synthesis_config`."""
    _refuse(options, netD=("multiscale",), netD_subarch=("n_layer",))
    return MultiscaleDiscriminator(
        _classes(options) + options.get("output_nc", 3),
        width=options.get("ndf", 64),
        layers=options.get("n_layers_D", 4),
        scales=options.get("num_D", 2),
        norm=_plain_norm(options.get("norm_D", "spectralinstance"), "norm_D"),
    )


def synthesis_weights(weights: Mapping[str, Tensor], config: SPADEConfig) -> dict[str, Tensor]:
    """Rename the weights of an official generator, without unused layers and its style encoder."""
    inside, both = config.style == "inside", ["G_middle_0", "G_middle_1"]
    middle = ["G_middle_0"] if inside else ["G_middle_1"] if config.num_upsamplings == 4 else both
    ups = [f"up_{i}" for i in range(len(config.stages) - 1 - len(middle))]
    places = {name: f"blocks.{i}" for i, name in enumerate(["head_0", *middle, *ups])}
    places |= {"fc_img2" if inside else "fc": "start", "conv_img": "to_image"}
    unused = {"G_middle_0", "G_middle_1", *(("fc", "fc_img", "model") if inside else ())} - places.keys()

    def ours(name: str) -> str | None:
        part, _, rest = name.partition(".")
        if part in unused:
            return None
        name = f"{places.get(part, part)}.{re.sub(r'^0[.]', '', rest) if part == 'conv_img' else rest}"
        name = re.sub(r"(?<=\.)(conv|norm)_[01s](?=\.)", lambda match: _PARTS[match[0]], name)
        return re.sub("|".join(map(re.escape, _MODULATION)), lambda match: _MODULATION[match[0]], name)

    return _renamed(_with_vectors(weights), ours)


def inner_style_encoder_weights(weights: Mapping[str, Tensor], encoder: InnerStyleEncoder) -> dict[str, Tensor]:
    """Rename the weights of the style encoder within an official generator."""
    convolutions = sum(isinstance(layer, NormalisedConv) for layer in encoder.layers)

    def ours(name: str) -> str | None:
        if name.startswith("fc_img."):
            return name.replace("fc_img.", "to_code.")
        if not (match := re.match(r"model\.(\d+)\.(?:conv_block\.(\d)\.)?([01])\.(.*)", name)):
            return None
        # The first layer there mirrors the image at its border, and every activation is a layer; a block is one, too.
        place = int(match[1])
        number = (place - 1) // 2 if place < 2 * convolutions else place - convolutions - 1
        inner = "" if match[2] is None else {"1": "first.", "4": "second."}[match[2]]
        return f"layers.{number}.{inner}{('conv', 'norm')[int(match[3])]}.{match[4]}"

    return _renamed(_with_vectors(weights), ours)


def style_encoder_weights(weights: Mapping[str, Tensor], encoder: StyleEncoder) -> dict[str, Tensor]:
    """Rename the weights of an official style encoder, without unused layers."""
    last = max((int(match[1]) for name in weights if (match := re.match(r"layer(\d)\.", name))), default=0)
    skipped = 5 if len(encoder.layers) < last else None

    def ours(name: str) -> str | None:
        if match := re.match(r"layer(\d)\.([01])\.(.*)", name):
            number = int(match[1])
            if number == skipped:
                return None
            number -= 1 + (skipped is not None and number > skipped)
            return f"layers.{number}.{('conv', 'norm')[int(match[2])]}.{match[3]}"
        return name.replace("fc_mu.", "to_mean.").replace("fc_var.", "to_log_variance.")

    return _renamed(_with_vectors(weights), ours)


def discriminator_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an official multi-scale discriminator."""
    last = max((int(match[1]) for name in weights if (match := re.search(r"\.model(\d+)\.", name))), default=0)

    def ours(name: str) -> str:
        match = re.match(r"discriminator_(\d+)\.model(\d+)\.(.*)", name)
        if match is None:
            return name
        scale, number, rest = int(match[1]), int(match[2]), match[3]
        if number in (0, last):
            return f"scales.{scale}.{'last' if number else 'first'}.{rest.removeprefix('0.')}"
        part, rest = re.sub(r"^0\.(?=[01]\.)", "", rest).split(".", 1)
        return f"scales.{scale}.layers.{number - 1}.{('conv', 'norm')[int(part)]}.{rest}"

    return _renamed(_with_vectors(weights), ours)


def load_synthesis_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load an official generator into a `SPADESynthesis`, see `load_strictly`."""
    config = _of(network, SPADESynthesis).config
    load_strictly(network, synthesis_weights(weights, config), where="the official generator")


def load_inner_style_encoder_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the style encoder within an official generator into an `InnerStyleEncoder`, see `load_strictly`."""
    found = inner_style_encoder_weights(weights, _of(network, InnerStyleEncoder))
    load_strictly(network, found, where="the style encoder within the official generator")


def load_style_encoder_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load an official style encoder into a `StyleEncoder`, see `load_strictly`."""
    found = style_encoder_weights(weights, _of(network, StyleEncoder))
    load_strictly(network, found, where="the official style encoder")


def load_discriminator_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load official discriminators into a `MultiscaleDiscriminator`, see `load_strictly`."""
    load_strictly(network, discriminator_weights(weights), where="the official discriminator")


def _with_vectors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring spectral normalisation to our form: ``weight`` before it is normalised, ``u`` and ``v``.

    Old files hold the normalised ``weight`` instead of v, which is computed from it.
    """
    found: dict[str, Tensor] = {}
    spectral = {name.removesuffix("_u") for name in weights if name.endswith(".weight_u")}
    for name, value in weights.items():
        if name not in spectral:
            found[re.sub(r"\.weight_(orig|u|v)$", lambda match: _SPECTRAL[match[1]], name)] = value
    for name in spectral:
        weight = weights.get(f"{name}_orig", weights.get(name))
        if weight is None or f"{name}_v" in weights:
            continue
        found[name] = weight
        direction = torch.mv(weight.flatten(1).T, weights[f"{name}_u"])
        normalised = weights.get(name, weight)
        value = (weight * normalised).sum() / normalised.square().sum()  # that the weight was divided by
        found[name.removesuffix("weight") + "v"] = direction * value / direction.square().sum()
    return found


def _renamed(weights: Mapping[str, Tensor], ours: Callable[[str], str | None]) -> dict[str, Tensor]:
    """Rename weights, and leave out those without a name."""
    return {name: value for official, value in weights.items() if (name := ours(official)) is not None}


def _of(network: nn.Module, kind: type[_Network]) -> _Network:
    if not isinstance(network, kind):
        raise ValueError(f"the network is a {type(network).__name__}; give a {kind.__name__}")
    return network


def _spade_norm(options: Options) -> tuple[bool, Norm, int]:
    """Read spectral normalisation, norm and kernel size from official ``norm_G``."""
    name = options.get("norm_G", "spectralspadesyncbatch3x3")
    match = re.fullmatch(r"(spectral)?spade(\w+?)([13])x\3", name)
    if match is None or match[2] not in _NORMS:
        kinds = ", ".join(f"spectralspade{norm}3x3" for norm in ("syncbatch", "batch", "instance"))
        raise ValueError(f"norm_G is {name!r}; our generators have such as {kinds}")
    return match[1] is not None, _NORMS[match[2]], int(match[3])


def _plain_norm(name: str, option: str) -> Norm:
    kind = name.removeprefix("spectral")
    if kind == name or kind not in _NORMS:
        raise ValueError(
            f"{option} is {name!r}; our networks have spectralinstance, spectralsync_batch or spectralbatch"
        )
    return _NORMS[kind]


def _image_size(options: Options, num_upsamplings: int) -> tuple[int, int]:
    """Height and width; where the image is not square, the lowest resolution is rounded."""
    columns = options["crop_size"] >> num_upsamplings
    return round(columns / options.get("aspect_ratio", 1.0)) << num_upsamplings, columns << num_upsamplings


def _classes(options: Options) -> int:
    """Channels of the semantic map."""
    if "semantic_nc" in options:
        return int(options["semantic_nc"])
    _need(options, "label_nc")
    dont_care, no_instance = (bool(options.get(name)) for name in ("contain_dontcare_label", "no_instance"))
    return int(options["label_nc"]) + dont_care + (not no_instance)


def _need(options: Options, name: str) -> None:
    if name not in options:
        raise ValueError(f"the official options lack {name}")


def _refuse(options: Options, **allowed: tuple[object, ...]) -> None:
    """Refuse options with other values than those allowed."""
    for name, values in allowed.items():
        if name in options and options[name] not in values:
            raise ValueError(f"{name} is {options[name]!r}; our networks have {', '.join(map(repr, values))}")


COMPONENTS: Mapping[str, Component] = {
    "spade_generator": Component(build_synthesis, load_synthesis_weights),
    "spade_inner_encoder": Component(build_inner_style_encoder, load_inner_style_encoder_weights),
    "spade_encoder": Component(build_style_encoder, load_style_encoder_weights),
    "spade_cardiac_encoder": Component(partial(build_style_encoder, kind="cardiac"), load_style_encoder_weights),
    "spade_discriminator": Component(build_discriminator, load_discriminator_weights),
}
