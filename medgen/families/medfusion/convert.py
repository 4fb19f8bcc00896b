"""Conversion of official Medfusion networks: arguments of their constructors, names of their weights.

The official package is mueller-franzes/medfusion. Only names differ, and its attention has 1x1 convolutions where ours
has linear layers. Arguments for training are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from medgen.families.family import Component
from medgen.labels import LabelSpace
from medgen.nn.autoencoder import AutoencoderConfig, KLAutoencoder, VQAutoencoder
from medgen.nn.blocks import BlockStyle
from medgen.nn.layers import LayerSpec
from medgen.nn.patch_discriminator import PatchDiscriminator, unit_discriminator
from medgen.nn.unet import AdditiveUNet, UNet, UNetConfig
from medgen.published import load_strictly

Arguments = Mapping[str, Any]
"""Keyword arguments of an official constructor, as its checkpoint or a JSON file holds them."""

_HIDDEN_AUTOENCODER = (64, 128, 256, 512)
_HIDDEN_UNET = (256, 256, 512, 1024)

# Regular expressions for parts of official names, and our names for them, applied one after the other.
_BLOCK_NAMES = (
    (r"block_seq\.0\.conv_res", "shortcut"),
    (r"block_seq\.0\.(basic_block\.)?", "first."),
    (r"block_seq\.1\.(basic_block\.)?", "second."),
    (r"\bact\.", "activation."),
    (r"local_embedder", "project_embedding"),
    (r"norm_x", "norm"),
    (r"to_out\.0", "to_out"),
    (r"transformer_blocks\.0\.", ""),
    (r"self_atn", "self_attention"),
    (r"cros_atn", "cross_attention"),
    (r"proj_out\.0\.norm", "feed_forward.norm"),
    (r"proj_out\.0\.proj", "feed_forward.expand"),
    (r"proj_out\.2", "feed_forward.contract"),
    (r"proj_(in|out)", r"project_\1"),
    (r"down_op\.down_op", "down.op"),
    (r"up_op\.up_op", "up.conv"),
    (r"attention\.attention", "attention"),
    (r"conv_block", "block"),
    (r"^time_embedder\.time_emb\.1", "embed_time.layers.0"),
    (r"^time_embedder\.time_emb\.3", "embed_time.layers.2"),
    (r"^cond_embedder\.embedding", "embed_label.table"),
)
_NAMES: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
    KLAutoencoder: (
        (r"^inc\.", "encoder.stem."),
        (r"^encoders\.", "encoder.levels."),
        (r"^out_enc\.(\d+)\.conv", r"to_moments.\1"),
        (r"^out_enc\.conv", "to_latent"),
        (r"^quantizer\.embedder\.weight", "quantizer.codebook"),
        (r"^inc_dec\.", "decoder.stem."),
        (r"^decoders\.", "decoder.levels."),
        (r"^heads\.(\d+)\.conv", r"decoder.heads.\1"),
    ),
    UNet: (
        (r"^in_conv\.conv", "stem"),
        (r"^in_blocks\.(\d+)\.down_op", r"down.\1.op"),
        (r"^in_blocks\.(\d+)\.0", r"down.\1.block"),
        (r"^in_blocks\.(\d+)\.1", r"down.\1"),
        (r"^middle_block\.0", "middle.0.block"),
        (r"^middle_block\.1", "middle.0"),
        (r"^middle_block\.2", "middle.1.block"),
        (r"^out_blocks\.(\d+)\.0", r"up.\1.block"),
        (r"^out_blocks\.(\d+)\.1", r"up.\1"),
        (r"^out_blocks\.(\d+)\.2\.up_op", r"up.\1.up.conv"),
        (r"^heads\.(\d+)\.conv\.conv", r"heads.\1"),
    ),
    AdditiveUNet: (
        (r"^inc\.", "stem."),
        (r"^encoders\.", "down."),
        (r"^decoders\.", "up."),
        (r"^heads\.(\d+)\.conv\.conv", r"heads.\1"),
    ),
    PatchDiscriminator: (
        (r"^(first|layers\.\d+)\.act\.", r"\1.activation."),
        (r"^heads\.0\.conv", "last"),
    ),
}
_NAMES[VQAutoencoder] = _NAMES[KLAutoencoder]


def autoencoder_config(arguments: Arguments, kind: Literal["kl", "vq"] = "kl") -> AutoencoderConfig:
    """Build the config from the arguments of an official VAE ("kl") or VQVAE ("vq")."""
    hidden = tuple(arguments.get("hid_chs", _HIDDEN_AUTOENCODER))
    return AutoencoderConfig(
        kind=kind,
        latent_channels=arguments.get("emb_channels", 4),
        num_codes=arguments.get("num_embeddings", 8192),
        hidden=hidden,
        kernel_sizes=_kernel_sizes(arguments, len(hidden)),
        strides=_per_level(arguments.get("strides"), len(hidden), 2, first=1),
        attention=_attention(arguments),
        extra_heads=_extra_heads(arguments.get("deep_supervision", False), len(hidden) - 1),
        **_style(arguments, spatial_dims=2, groups=8 if kind == "kl" else 32),
    )


def build_autoencoder(arguments: Arguments, kind: Literal["kl", "vq"] = "kl") -> KLAutoencoder | VQAutoencoder:
    """Build the autoencoder of an official VAE or VAEGAN ("kl") or VQVAE or VQGAN ("vq"), with random weights.

    Raises:
        ValueError: If our networks do not have an argument's value.
    """
    config = autoencoder_config(arguments, kind)
    channels, out_channels = arguments.get("in_channels", 3), arguments.get("out_channels", 3)
    if kind == "kl":
        return KLAutoencoder(config, channels, out_channels)
    return VQAutoencoder(config, channels, out_channels, beta=arguments.get("beta", 0.25))


def build_discriminators(arguments: Arguments, kind: Literal["kl", "vq"] = "kl") -> nn.ModuleList:
    """Build the discriminators of an official VAEGAN ("kl") or VQGAN ("vq"), one per head, full resolution first."""
    hidden = tuple(arguments.get("hid_chs", _HIDDEN_AUTOENCODER))
    style = BlockStyle(**_style(arguments, spatial_dims=2, groups=8 if kind == "kl" else 32))
    return nn.ModuleList(
        unit_discriminator(
            arguments.get("in_channels", 3),
            hidden=hidden,
            kernel_sizes=_per_level(arguments.get("kernel_sizes"), len(hidden), 3),
            strides=_per_level(arguments.get("strides"), len(hidden), 2, first=1),
            style=style,
        )
        for _ in range(1 + _extra_heads(arguments.get("deep_supervision", False), len(hidden) - 1))
    )


def unet_config(arguments: Arguments, kind: Literal["concatenated", "additive"] = "concatenated") -> UNetConfig:
    """Build the config from the arguments of an official UNet.

    Raises:
        ValueError: If it has no time embedder, or one that our network does not have.
    """
    hidden = tuple(arguments.get("hid_chs", _HIDDEN_UNET))
    time = arguments.get("time_embedder_kwargs") or {}
    if arguments.get("time_embedder", "TimeEmbbeding") is None:
        raise ValueError("time_embedder is None; a noise estimator without time cannot be built")
    waves = dict(time.get("pos_embedder_kwargs") or {})
    unknown = {"pos_embedder", "act_name"} & time.keys() | waves.keys() - {"emb_dim"}
    if unknown:
        raise ValueError(f"time_embedder_kwargs has {sorted(unknown)}; only emb_dim can be chosen, for both parts")
    embedding_dim = time.get("emb_dim", 64)
    return UNetConfig(
        hidden=hidden,
        kernel_sizes=_kernel_sizes(arguments, len(hidden)),
        strides=_per_level(arguments.get("strides"), len(hidden), 2, first=1),
        attention=_attention(arguments),
        blocks_per_level=arguments.get("num_res_blocks", 2),
        extra_heads=_extra_heads(
            arguments.get("deep_supervision", True), len(hidden) - (2 if kind == "concatenated" else 1)
        ),
        embedding_dim=embedding_dim,
        wave_dim=None if waves.get("emb_dim") == embedding_dim // 4 else waves.get("emb_dim"),
        learned_variance=arguments.get("estimate_variance", False),
        self_conditioning=arguments.get("use_self_conditioning", False),
        **_style(arguments, spatial_dims=3, groups=32),
    )


def build_unet(arguments: Arguments, kind: Literal["concatenated", "additive"] = "concatenated") -> UNet | AdditiveUNet:
    """Build the UNet of the official file `unet2.py` ("concatenated", published) or `unet.py` ("additive").

    Raises:
        ValueError: If our networks do not have an argument's value.
    """
    network = UNet if kind == "concatenated" else AdditiveUNet
    return network(unet_config(arguments, kind), *unet_channels(arguments), unet_label_space(arguments))


def unet_channels(arguments: Arguments) -> tuple[int, int]:
    """Get the channels of the input and of the estimate of an official UNet."""
    return arguments.get("in_ch", 1), arguments.get("out_ch", 1)


def unet_label_space(arguments: Arguments) -> LabelSpace:
    """Get the labels of an official UNet, whose classes have numbers only."""
    if arguments.get("cond_embedder", "LabelEmbedder") is None:
        return LabelSpace()
    label = arguments.get("cond_embedder_kwargs") or {}
    return LabelSpace("single", tuple(f"class {i}" for i in range(label.get("num_classes", 2))))


def convert_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the official weights of a network, leaving out those of a perceptual loss (`perceiver.*`)."""
    kept = {name: value for name, value in weights.items() if not name.startswith("perceiver.")}
    lengths = {  # of lists in the opposite order here
        part: 1 + max((int(name.split(".")[1]) for name in kept if name.startswith(f"{part}.")), default=0)
        for part in ("decoders", "out_blocks")
    }
    rules = _NAMES[type(network)]
    converted = {}
    for name, value in kept.items():
        ours = _reorder(name, lengths, network)
        for pattern, replacement in (*rules, *_BLOCK_NAMES):
            ours = re.sub(pattern, replacement, ours)
        is_projection = re.search(r"attention\.|feed_forward\.", ours) and value.ndim > 2
        converted[ours] = value.flatten(1) if is_projection else value
    return converted


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load official weights into our network of the same kind; see `convert_weights` and `load_strictly`."""
    load_strictly(network, convert_weights(network, weights), where="the official network")


def _reorder(name: str, lengths: Mapping[str, int], network: nn.Module) -> str:
    """Renumber the lists of a name: ours go from coarse to fine on the way up, and the main head is 0."""
    part, _, rest = name.partition(".")
    if part == "outc":
        return f"heads.0.{rest}"
    index, _, rest = rest.partition(".")
    if part in lengths:
        return f"{part}.{lengths[part] - 1 - int(index)}.{rest}"
    if part == "outc_ver":
        return f"heads.{int(index) + 1}.{rest}"
    if isinstance(network, PatchDiscriminator):
        return f"first.{name.partition('.')[2]}" if part == "inc" else f"layers.{index}.{rest}"
    return name


def _style(arguments: Arguments, *, spatial_dims: int, groups: int) -> dict[str, Any]:
    """Get the arguments of `BlockStyle`, with the official defaults of a network."""
    dropout = arguments.get("dropout") or 0.0
    return {
        "spatial_dims": arguments.get("spatial_dims", spatial_dims),
        "norm": _layer(arguments.get("norm_name", ("GROUP", {"num_groups": groups, "affine": True}))),
        "activation": _layer(arguments.get("act_name", "Swish")),
        "dropout": dropout if isinstance(dropout, (int, float)) else dropout[1]["p"],
        "residual": arguments.get("use_res_block", True),
        "learned_resampling": arguments.get("learnable_interpolation", True),
    }


def _layer(spec: str | tuple[str, Mapping[str, object]]) -> LayerSpec:
    if isinstance(spec, str):
        return spec.lower()
    name, options = spec[0].lower(), dict(spec[1])  # a list where it comes from JSON
    if name == "group" and options.get("affine") is True:  # torch's default
        del options["affine"]
    return name, options


def _attention(arguments: Arguments) -> Any:
    kind = arguments.get("use_attention", "none")
    return kind if isinstance(kind, str) else tuple(kind)


def _per_level(sizes: Sequence[Any] | None, levels: int, default: int, first: int | None = None) -> tuple[Any, ...]:
    """Get sizes as tuples, or the official default for as many levels: `default`, but `first` in the first."""
    if sizes is None:
        return tuple(default if first is None or i else first for i in range(levels))
    return tuple(size if isinstance(size, int) else tuple(size) for size in sizes)


def _kernel_sizes(arguments: Arguments, levels: int) -> Any:
    """Get one size if all levels have the same, or one per level."""
    sizes = _per_level(arguments.get("kernel_sizes"), levels, 3)
    return sizes[0] if isinstance(sizes[0], int) and len(set(sizes)) == 1 else sizes


def _extra_heads(deep_supervision: bool | int, most: int) -> int:
    """Get the number of heads at lower resolutions; True means as many as possible."""
    if isinstance(deep_supervision, bool):
        return most if deep_supervision else 0
    return deep_supervision


COMPONENTS: Mapping[str, Component] = {
    "medfusion_unet": Component(partial(build_unet, kind="concatenated"), load_weights),
    "medfusion_unet_v1": Component(partial(build_unet, kind="additive"), load_weights),
    "medfusion_vae": Component(partial(build_autoencoder, kind="kl"), load_weights),
    "medfusion_vqvae": Component(partial(build_autoencoder, kind="vq"), load_weights),
}
