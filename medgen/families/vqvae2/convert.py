"""Official VQ-VAE2 and PixelSNAIL networks as ours: arguments of their constructors, names of their weights.

The official package is rosinality/vq-vae-2-pytorch. Its codebooks are transposed, its attention has linear layers where
ours has 1x1 convolutions; all else is ours under other names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from medgen.families.family import Component
from medgen.nn.pixelsnail import PixelSNAIL, PixelSNAILConfig
from medgen.nn.vqvae2 import VQVAE2, VQVAE2AutoencoderConfig

Arguments = Mapping[str, Any]
"""Keyword arguments of an official constructor."""

_AUTOENCODER_NAMES = (
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
_PRIOR_NAMES = (
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
)


def build_autoencoder(arguments: Arguments) -> VQVAE2:
    """The first stage that the arguments of the official VQVAE describe; its ``decay`` argument has no effect there."""
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
    """The prior that the arguments of the official PixelSNAIL describe.

    Raises:
        ValueError: If an argument that has no default is missing.
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
    """An official state dict of VQVAE under our names.

    Raises:
        ValueError: If two names would become the same.
    """
    converted = _under_our_names(weights, lambda name: _renamed(name, _AUTOENCODER_NAMES))
    transposed = (".codebook", ".sums")
    return {name: value.T if name.endswith(transposed) else value for name, value in converted.items()}


def prior_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official state dict of PixelSNAIL under our names; its map of places is computed here.

    Raises:
        ValueError: If two names would become the same.
    """
    kept = {name: value for name, value in weights.items() if name != "background"}
    converted = _under_our_names(kept, _prior_name)
    is_linear = re.compile(r"\.attention\..*weight")
    return {name: value[..., None, None] if is_linear.search(name) else value for name, value in converted.items()}


def load_autoencoder_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Loads an official first stage; see `load_strictly`."""
    _load(network, autoencoder_weights(without_prefix(weights)))


def load_prior_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Loads an official prior; see `load_strictly`."""
    _load(network, prior_weights(without_prefix(weights)))


def without_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what training on several GPUs puts before all of them."""
    prefix = "module." if all(name.startswith("module.") for name in weights) else ""
    return {name.removeprefix(prefix): value for name, value in weights.items()}


def _load(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"these are not the weights of this {type(network).__name__}: {error}") from error


def _under_our_names(weights: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """The same weights; none takes another's place, as those of a second last layer would.

    Raises:
        ValueError: Naming two that would become one.
    """
    official: dict[str, str] = {}
    for name in weights:
        other = official.setdefault(rename(name), name)
        if other != name:
            raise ValueError(f"{other} and {name} are the same weight here; one of them is too many")
    return {ours: weights[name] for ours, name in official.items()}


def _prior_name(name: str) -> str:
    return re.sub(
        r"^condition\.blocks\.(\d+)",
        lambda match: f"condition.blocks.{int(match[1]) - 1}",  # the official count begins at the stem
        _renamed(name, _PRIOR_NAMES),
    )


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


COMPONENTS: Mapping[str, Component] = {
    "vqvae2": Component(build_autoencoder, load_autoencoder_weights),
    "pixelsnail": Component(build_prior, load_prior_weights),
}
