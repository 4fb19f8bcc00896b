"""Conversion of the files of the official SPADE code and its cardiac forks to a `SPADEGenerator`.

They hold weights only. Widths, channels, norms and the kind of style follow from their names and shapes; the image
size, the number of upsamplings and the meaning of the last channels of the semantic map must be given.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from medgen.checkpoint import CheckpointError
from medgen.families.family import Converted
from medgen.families.spade import convert
from medgen.families.spade.config import SPADEConfig, Style
from medgen.families.spade.generator import SPADEGenerator
from medgen.foreign.file import ForeignFile
from medgen.published import load_strictly

_PUBLISHED_SIZE = 256
"""Pixels along each side that the official encoder resizes images to."""


def is_official(file: ForeignFile) -> bool:
    """Whether it is a generator of the official SPADE code or of its cardiac forks."""
    content = file.content
    return isinstance(content, dict) and "head_0.conv_0.bias" in content and "fc.weight" in content


def convert_checkpoint(
    file: ForeignFile,
    *,
    encoder: str | Path | None = None,
    image_size: tuple[int, int] | None = None,
    num_upsamplings: int | None = None,
    dont_care: bool = False,
    instance_edges: bool = False,
    label_names: Sequence[str] = (),
) -> Converted:
    """Convert official files to a generator, without running code in them.

    Args:
        file: ``latest_net_G.pth``.
        encoder: ``latest_net_E.pth``; without it a generator of codes draws styles, but cannot read them from images.
        image_size: Height and width of the images; 256 x 256 if None.
        num_upsamplings: 4 to 7 for ``num_upsampling_layers`` few, normal, more and most. None to infer it from the
            weights, which works with a code or an eighth block; else 5.
        dont_care: Whether the last class is that of unlabelled pixels (``contain_dontcare_label``).
        instance_edges: Whether the last channel has edges of instances (without ``no_instance``).
        label_names: Names of the classes of label maps; "class 0", ... by default.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If a file is damaged or unsafe, or the networks are not like ours.
        ValueError: If an argument contradicts the weights.
    """
    path, weights = file.path, _weights(file)
    size = image_size or (_PUBLISHED_SIZE, _PUBLISHED_SIZE)
    config = _config(weights, path, size, num_upsamplings, dont_care, instance_edges)
    classes = len(config.mask_names)
    if label_names and len(label_names) != classes:
        raise ValueError(
            f"label_names has {len(label_names)} names, but {path} has {classes} classes; say dont_care or "
            "instance_edges if the last ones are these"
        )
    fields = config.to_dict() | {"mask_names": tuple(label_names) or config.mask_names}
    if encoder is not None:
        fields |= _encoder_fields(config, ForeignFile(encoder))
    config = SPADEConfig.from_dict(fields)
    with torch.device("meta"):  # a network without memory: it takes the file's tensors as they are
        generator = SPADEGenerator(config)
    try:
        load_strictly(generator.synthesis, convert.synthesis_weights(weights, config), where=str(path))
        if config.style == "inside":
            convert.load_inner_style_encoder_weights(generator.style_encoder, weights)  # type: ignore[arg-type]
        elif encoder is not None:
            convert.load_style_encoder_weights(generator.style_encoder, _weights(ForeignFile(encoder)))  # type: ignore[arg-type]
    except ValueError as error:
        raise CheckpointError(f"{path} has a generator unlike ours of SPADE: {error}") from error
    fresh = SPADEGenerator(config).state_dict()  # priors, which start as standard normal
    state = generator.state_dict()
    return Converted(config, {name: fresh[name] if weight.is_meta else weight for name, weight in state.items()})


def _weights(file: ForeignFile) -> dict[str, Tensor]:
    content = file.content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f"{file} is no state dict; give a latest_net_G.pth or latest_net_E.pth of the official code"
        )
    return content


def _config(
    weights: Mapping[str, Tensor],
    path: Path,
    image_size: tuple[int, int],
    num_upsamplings: int | None,
    dont_care: bool,
    instance_edges: bool,
) -> SPADEConfig:
    start, image = weights["fc.weight"], weights.get("conv_img.0.weight", weights.get("conv_img.weight"))
    style: Style = "inside" if "fc_img.weight" in weights else "drawn" if start.dim() == 2 else "none"
    widest = int(weights["head_0.conv_0.bias"].numel())
    most = "up_4.conv_0.bias" in weights
    if image is None:
        raise CheckpointError(f"{path} is damaged: it has no conv_img")
    clade = "head_0.norm_0.class_specified_affine.weight" in weights
    gamma = weights["head_0.norm_0.class_specified_affine.weight" if clade else "head_0.norm_0.mlp_gamma.weight"]
    channels = int(gamma.shape[0] if clade else weights["head_0.norm_0.mlp_shared.0.weight"].shape[1])
    classes = channels - instance_edges - dont_care
    if classes < 2:
        raise ValueError(
            f"{path} has {channels} channels of label maps, too few for dont_care and instance_edges beside"
        )
    told = _upsamplings(weights, style, image_size, widest, most)
    if num_upsamplings is not None and told is not None and num_upsamplings != told:
        raise ValueError(
            f"num_upsamplings is {num_upsamplings}, but the weights of {path} tell {told} for images of {image_size}"
        )
    return SPADEConfig(
        image_size=image_size,
        channels=int(image.shape[0]),
        mask_names=tuple(f"class {i}" for i in range(classes)),
        dont_care=dont_care,
        instance_edges=instance_edges,
        width=int(image.shape[1]) * (2 if most else 1),
        num_upsamplings=num_upsamplings or told or 5,
        norm="batch" if "head_0.norm_0.param_free_norm.running_mean" in weights else "instance",
        modulation="clade" if clade else "spade",
        kernel_size=3 if clade else int(gamma.shape[-1]),
        hidden=128 if clade else int(gamma.shape[1]),
        style=style,
        style_dim=int(weights["fc_img.bias"].numel()) if style == "inside" else int(start.shape[1]),
        style_size=None,
    )


def _upsamplings(
    weights: Mapping[str, Tensor], style: Style, image_size: tuple[int, int], widest: int, most: bool
) -> int | None:
    """Infer the number of upsamplings from the weights; None where they do not tell."""
    if style == "none":
        return 7 if most else None
    pixels = int(weights["fc_img2.bias" if style == "inside" else "fc.bias"].numel()) // widest
    return round(math.log2(math.sqrt(image_size[0] * image_size[1] / pixels)))


def _encoder_fields(config: SPADEConfig, file: ForeignFile) -> dict[str, object]:
    """Fields of the config for a style encoder beside the generator."""
    weights, path = _weights(file), file.path
    if config.style != "drawn":
        raise ValueError(f"encoder is {path}, but the generator takes no codes of it; leave it out")
    if "fc_mu.weight" not in weights:
        raise CheckpointError(f"{path} is no style encoder: it has no fc_mu; give latest_net_E.pth")
    dim, features = weights["fc_mu.weight"].shape
    last = max(name for name in weights if re.fullmatch(r"layer\d\.0\.weight_orig", name))
    pixels = features // int(weights[last].shape[0])
    layers = int(last[len("layer")])
    if dim != config.style_dim:
        raise ValueError(
            f"{path} has codes of length {dim}, the generator takes {config.style_dim}; give its own encoder"
        )
    cardiac = pixels == 64  # 8 x 8, where the official one ends with 4 x 4
    return {
        "style": "vae",
        "style_size": None if cardiac else _PUBLISHED_SIZE,
        "style_halvings": layers - 1 if cardiac else layers,
    }
