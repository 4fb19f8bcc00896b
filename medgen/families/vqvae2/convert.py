"""Conversion of official VQ-VAE2 and PixelSNAIL networks: arguments of their constructors, names of their weights.

The official package is rosinality/vq-vae-2-pytorch. Apart from names, its codebooks are transposed, and its attention
has linear layers where ours has 1x1 convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from medgen.families.family import Component
from medgen.nn.pixelsnail import PixelSNAIL, PixelSNAILConfig
from medgen.nn.vqvae2 import VQVAE2, VQVAE2AutoencoderConfig
from medgen.published import load_strictly, part_of

Arguments = Mapping[str, Any]
"""Keyword arguments of an official constructor."""

_Rules: TypeAlias = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
_AUTOENCODER_NAMES: _Rules = (
    (r"^(enc_[bt]|dec_t|dec)\.blocks\.", r"\1."),
    (r"\.conv\.1\.", ".widen."),
    (r"\.conv\.3\.", ".narrow."),
    (r"^enc_b\.", "encode_bottom."),
    (r"^enc_t\.", "encode_top."),
    (r"^dec_t\.", "decode_top."),
    (r"^dec\.", "decode_both."),
    (r"^quantize_conv_t\.", "to_top."),
    (r"^quantize_conv_b\.", "to_bottom."),
    (r"^quantize_t\.", "top_codes."),
    (r"^quantize_b\.", "bottom_codes."),
    (r"^upsample_t\.", "upsample_top."),
    (r"\.embed$", ".codebook"),
    (r"\.cluster_size$", ".counts"),
    (r"\.embed_avg$", ".sums"),
)
_PRIOR_NAMES: _Rules = (
    (r"\bconv\.(conv\.)?(?=weight|bias)", ""),
    (r"^horizontal\.", "above."),
    (r"^vertical\.", "left."),
    (r"\.resblocks\.", ".residual."),
    (r"\.conv1\.", ".first."),
    (r"\.conv2\.", ".second."),
    (r"\.aux_conv\.", ".auxiliary."),
    (r"\.(key|query)_resblock\.", r".\1_block."),
    (r"\.causal_attention\.", ".attention."),
    (r"\.out_resblock\.", ".merge."),
    (r"^(blocks\.\d+)\.out\.", r"\1.place."),
    (r"^cond_resnet\.blocks\.0\.", "condition.stem."),
    (r"^cond_resnet\.", "condition."),
    (r"^out\.(\d+)\.(first|second)\.", r"last.\1.\2."),
    (r"^out\.\d+\.", "to_logits."),
    # The official count begins at the stem.
    (r"^condition\.blocks\.(\d+)", lambda found: f"condition.blocks.{int(found[1]) - 1}"),
)


def build_autoencoder(arguments: Arguments) -> VQVAE2:
    """Build the autoencoder from the arguments of the official VQVAE, which ignores ``decay``, too."""
    config = VQVAE2AutoencoderConfig(
        hidden_channels=arguments.get("channel", 128),
        residual_blocks=arguments.get("n_res_block", 2),
        residual_channels=arguments.get("n_res_channel", 32),
        code_dim=arguments.get("embed_dim", 64),
        num_codes=arguments.get("n_embed", 512),
    )
    return VQVAE2(config, arguments.get("in_channel", 3))


_POSITIONAL = ("shape", "n_class", "channel", "kernel_size", "n_block", "n_res_block", "res_channel")


def build_prior(arguments: Arguments) -> PixelSNAIL:
    """Build the prior from the arguments of the official PixelSNAIL.

    Raises:
        ValueError: If an argument without a default is missing.
    """
    if missing := [name for name in _POSITIONAL if name not in arguments]:
        raise ValueError(f"the arguments of PixelSNAIL lack {', '.join(missing)}")
    conditions, codes = arguments.get("n_cond_res_block", 0), arguments["n_class"]
    config = PixelSNAILConfig(
        hidden_channels=arguments["channel"],
        kernel_size=arguments["kernel_size"],
        blocks=arguments["n_block"],
        residual_blocks=arguments["n_res_block"],
        residual_channels=arguments["res_channel"],
        attention=arguments.get("attention", True),
        output_blocks=arguments.get("n_out_res_block", 0),
        condition_blocks=conditions,
        condition_channels=arguments.get("cond_res_channel", 0),
        dropout=arguments.get("dropout", 0.1),
    )
    size = tuple(arguments["shape"])
    return PixelSNAIL(config, size=size, num_codes=codes, condition_codes=codes if conditions else None)


def autoencoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an official VQVAE.

    Raises:
        ValueError: If two names would become the same.
    """
    converted = _renamed(weights, _AUTOENCODER_NAMES)
    transposed = (".codebook", ".sums")
    return {name: value.T if name.endswith(transposed) else value for name, value in converted.items()}


def prior_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an official PixelSNAIL; its map of positions is computed here.

    Raises:
        ValueError: If two names would become the same.
    """
    converted = _renamed({name: value for name, value in weights.items() if name != "background"}, _PRIOR_NAMES)
    is_linear = re.compile(r"\.attention\..*weight")
    return {name: value[..., None, None] if is_linear.search(name) else value for name, value in converted.items()}


def load_autoencoder_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load an official autoencoder; see `load_strictly`."""
    load_strictly(network, autoencoder_weights(without_prefix(weights)), where="the official autoencoder")


def load_prior_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load an official prior; see `load_strictly`."""
    load_strictly(network, prior_weights(without_prefix(weights)), where="the official prior")


def without_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix that training on several GPUs adds to all names."""
    return dict(part_of(weights, "module.") if all(name.startswith("module.") for name in weights) else weights)


def _renamed(weights: Mapping[str, Tensor], rules: _Rules) -> dict[str, Tensor]:
    """Rename weights by regular expressions, applied one after the other, or refuse two names that become one."""
    official: dict[str, str] = {}
    for name in weights:
        ours = name
        for pattern, replacement in rules:
            ours = re.sub(pattern, replacement, ours)
        if (other := official.setdefault(ours, name)) != name:
            raise ValueError(f"{other} and {name} are the same weight here; one of them is too many")
    return {ours: weights[name] for ours, name in official.items()}


COMPONENTS: Mapping[str, Component] = {
    "vqvae2": Component(build_autoencoder, load_autoencoder_weights),
    "pixelsnail": Component(build_prior, load_prior_weights),
}
