"""The three files of the official VQ-VAE2 code, as the config and weights of a `VQVAE2Generator`.

The official package is rosinality/vq-vae-2-pytorch. It writes an autoencoder and two priors and states their sizes
nowhere, so all sizes are read from the shapes of the weights.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medgen.checkpoint import CheckpointError
from medgen.families.family import Converted
from medgen.families.vqvae2.convert import autoencoder_weights, prior_weights, without_prefix
from medgen.families.vqvae2.generator import VQVAE2Config, VQVAE2Generator
from medgen.foreign.file import ForeignFile
from medgen.foreign.pickles import Record
from medgen.generator import load_strictly
from medgen.nn.pixelsnail import PixelSNAILShape
from medgen.nn.vqvae2 import TOP_STRIDE, VQVAE2Shape

_MEANING = {
    "autoencoder": "the autoencoder",
    "top": "the prior of the top map",
    "bottom": "the prior of the bottom map",
}
_USUAL_NAMES = {"autoencoder": "vqvae_560.pt", "top": "pixelsnail_top.pt", "bottom": "pixelsnail_bottom.pt"}
_ALONE = "build the networks alone with medgen.foreign.convert.load_official"


@dataclass(frozen=True)
class _File:
    path: Path
    role: str
    """A key of `_MEANING`."""
    weights: Mapping[str, Tensor]
    settings: Mapping[str, object]
    """The arguments of the training script, as far as the file has them."""

    def shape(self, name: str, dims: int) -> torch.Size:
        shape = self.weights[name].shape if name in self.weights else None
        if shape is None or len(shape) != dims or 0 in shape:
            found = "has none" if shape is None else f"has one of shape {tuple(shape)}"
            raise CheckpointError(
                f"{self.path}: {_MEANING[self.role]} has a weight {name} of {dims} dimensions, and this file {found}; "
                "it is damaged, or not from rosinality/vq-vae-2-pytorch"
            )
        return shape

    def count(self, pattern: str) -> int:
        """How many different things the one group of the pattern matches at the start of a name."""
        return len({found[1] for name in self.weights if (found := re.match(pattern, name))})


def is_official(file: str | Path | ForeignFile) -> bool:
    """Whether a file holds a network of the official VQ-VAE2 code."""
    return bool(_role(_state_dict(ForeignFile.of(file).content)))


def convert_checkpoints(
    autoencoder: str | Path | ForeignFile,
    top: str | Path | None = None,
    bottom: str | Path | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    label_names: Sequence[str] = (),
) -> Converted:
    """The generator that three official files make up, read without running anything.

    The averages that moved the codebooks come along. The dropout, which acts in training only, is what the file of the
    top prior states, or else that of the bottom one, or else 0.1, the official default.

    Args:
        autoencoder: ``vqvae_*.pt``, a state dict.
        top: ``pixelsnail_*.pt`` of the top map: a state dict, alone or with the arguments of training.
        bottom: The same of the bottom map.
        image_size: Height and width of the images, to be checked against the files, which state them.
        label_names: Must be empty: the official networks have no classes.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If a file is damaged or unsafe, missing or in another's place, if the three do not belong
            together, or if they have what a `VQVAE2Generator` cannot do.
        ValueError: If `image_size` or `label_names` contradict the files.
    """
    given = {"autoencoder": autoencoder, "top": top, "bottom": bottom}
    files = {role: _read(ForeignFile.of(path)) for role, path in given.items() if path is not None}
    _check_roles(files)
    config = _config(files["autoencoder"], files["top"], files["bottom"])
    if image_size is not None and tuple(image_size) != config.image_size:
        raise ValueError(
            f"image_size is {tuple(image_size)}, but {top} and {bottom} have maps of images of {config.image_size}; "
            "leave image_size out"
        )
    if label_names:
        raise ValueError(f"label_names are {list(label_names)}, but {autoencoder} knows no classes; leave them out")
    with torch.device("meta"):  # networks without memory: they take the files' tensors as they are
        generator = VQVAE2Generator(config)
    for role, file in files.items():
        rename = autoencoder_weights if role == "autoencoder" else prior_weights
        try:
            load_strictly(getattr(generator, role), rename(file.weights), where=str(file.path))
        except ValueError as error:
            raise CheckpointError(
                f"{file.path} is not what rosinality/vq-vae-2-pytorch writes as {_MEANING[role]}: {error}"
            ) from error
    return Converted(config, generator.state_dict())


def _read(file: ForeignFile) -> _File:
    path, content = file.path, file.content
    weights = _state_dict(content)
    role = _role(weights)
    if not role:
        raise CheckpointError(
            f"{path} is no file of the official VQ-VAE2 code: it has neither quantize_t of an autoencoder nor "
            f"horizontal of a prior; {_call({})}"
        )
    strangers = [
        name for name, value in weights.items() if not isinstance(value, Tensor) or not value.is_floating_point()
    ]
    if strangers:
        raise CheckpointError(f"{path} is damaged: {strangers[0]} is not a tensor of floating-point numbers")
    arguments = content.get("args") if isinstance(content, dict) else None
    settings = arguments.state if isinstance(arguments, Record) else arguments
    return _File(path, role, without_prefix(weights), settings if isinstance(settings, dict) else {})


def _state_dict(content: object) -> dict[str, Tensor]:
    """The weights in a file, which may have them beside the arguments of training; empty where there are none."""
    state = content.get("model", content) if isinstance(content, dict) else None
    return state if isinstance(state, dict) and all(isinstance(name, str) for name in state) else {}


def _role(weights: Mapping[str, Tensor]) -> str:
    """The key of `_MEANING` that the names of weights tell; empty for another project's."""
    parts = {name.partition(".")[0] for name in without_prefix(weights)}
    if "quantize_t" in parts:
        return "autoencoder"
    if "horizontal" in parts:
        return "bottom" if "cond_resnet" in parts else "top"
    return ""


def _check_roles(files: Mapping[str, _File]) -> None:
    """Refuses files that are missing or in another's place.

    Raises:
        CheckpointError: With the right call.
    """
    faults = [
        f"{file.path} is {_MEANING[file.role]}, and was given as {_MEANING[role]}"
        for role, file in files.items()
        if file.role != role
    ]
    missing = [_MEANING[role] for role in _MEANING if role not in files]
    if missing and not faults:
        faults = [f"{files['autoencoder'].path} is the autoencoder alone; {' and '.join(missing)} must be given, too"]
    if faults:
        raise CheckpointError(f"{'; '.join(faults)}; {_call({file.role: file.path for file in files.values()})}")


def _call(paths: Mapping[str, Path]) -> str:
    """How to convert files, with the usual names in place of those that are not known."""
    names = {role: str(paths.get(role, usual)) for role, usual in _USUAL_NAMES.items()}
    words = ["medgen", "convert", names["autoencoder"], "OUT", "--top", names["top"], "--bottom", names["bottom"]]
    return f"use {shlex.join(words)}"


def _config(autoencoder: _File, top: _File, bottom: _File) -> VQVAE2Config:
    first = _autoencoder_shape(autoencoder)
    above, below = _prior_shape(top), _prior_shape(bottom)
    for prior, shape in ((top, above), (bottom, below)):
        if wrong := {shape.num_codes, shape.condition_codes} - {first.num_codes}:
            raise CheckpointError(
                f"{prior.path} knows {wrong.pop()} codes (n_class), but {autoencoder.path} has {first.num_codes}; give "
                f"the prior of this autoencoder's codes, or {_ALONE}"
            )
    _check_priors(top, above, bottom, below)
    try:
        return VQVAE2Config(
            image_size=(above.size[0] * TOP_STRIDE, above.size[1] * TOP_STRIDE),
            channels=first.in_channels,
            hidden_channels=first.channels,
            residual_blocks=first.residual_blocks,
            residual_channels=first.residual_channels,
            code_dim=first.code_dim,
            num_codes=first.num_codes,
            prior_channels=above.channels,
            prior_kernel_size=above.kernel_size,
            prior_blocks=above.blocks,
            prior_residual_blocks=above.residual_blocks,
            prior_residual_channels=above.residual_channels,
            top_attention=above.attention,
            bottom_attention=below.attention,
            top_output_blocks=above.output_blocks,
            condition_blocks=below.condition_blocks or 0,
            condition_channels=below.condition_channels,
            dropout=_dropout(top, bottom),
        )
    except ValueError as error:
        raise CheckpointError(
            f"{autoencoder.path}, {top.path} and {bottom.path} have a shape that VQVAE2Generator does not: {error}"
        ) from error


def _autoencoder_shape(file: _File) -> VQVAE2Shape:
    dim, codes = file.shape("quantize_t.embed", 2)
    return VQVAE2Shape(
        in_channels=file.shape("enc_b.blocks.0.weight", 4)[1],
        channels=file.shape("enc_b.blocks.4.weight", 4)[0],
        residual_blocks=file.count(r"enc_b\.blocks\.(\d+)\.conv\."),
        residual_channels=file.shape("enc_b.blocks.5.conv.1.weight", 4)[0],
        code_dim=dim,
        num_codes=codes,
    )


def _prior_shape(file: _File) -> PixelSNAILShape:
    channels, codes, _, kernel_size = file.shape("horizontal.conv.conv.weight_v", 4)
    condition_channels, condition_codes = 0, codes
    if file.role == "bottom":
        condition_channels, condition_codes = file.shape("cond_resnet.blocks.0.conv.weight_v", 4)[:2]
    return PixelSNAILShape(
        size=_map_size(file),
        num_codes=codes,
        channels=channels,
        kernel_size=kernel_size,
        blocks=file.count(r"blocks\.(\d+)\."),
        residual_blocks=file.count(r"blocks\.0\.resblocks\.(\d+)\."),
        residual_channels=file.shape("blocks.0.resblocks.0.conv1.conv.conv.weight_v", 4)[0],
        attention=bool(file.count(r"blocks\.0\.(causal_attention)\.")),
        output_blocks=file.count(r"out\.(\d+)\.conv1\."),
        condition_blocks=file.count(r"cond_resnet\.blocks\.(\d+)\.conv1\.") if file.role == "bottom" else None,
        condition_channels=condition_channels,
        condition_codes=condition_codes,
    )


def _map_size(file: _File) -> tuple[int, int]:
    """Height and width of a prior's map, from the buffer in which the file keeps row and column of every place."""
    _, _, height, width = file.shape("background", 4)
    rows, columns = (torch.arange(n) / n - 0.5 for n in (height, width))
    expected = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]
    found = file.weights["background"].float()
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=0, atol=1e-3):  # half precision
        raise CheckpointError(
            f"{file.path}: its background is not row and column of every place from -0.5 to 0.5, which the "
            f"PixelSNAIL here computes; {_ALONE}"
        )
    return height, width


def _check_priors(top: _File, above: PixelSNAILShape, bottom: _File, below: PixelSNAILShape) -> None:
    """Refuses priors of maps that do not fit, and what differs between them where `VQVAE2Config` has one field.

    Raises:
        CheckpointError: Naming what it is.
    """
    if below.size != (2 * above.size[0], 2 * above.size[1]):
        raise CheckpointError(
            f"{bottom.path} has a map of {below.size} codes and {top.path} one of {above.size}; the bottom map has "
            "twice the height and width of the top one: give two priors of the same images"
        )
    shared = ("channels", "kernel_size", "blocks", "residual_blocks", "residual_channels")
    pairs = {name: (getattr(above, name), getattr(below, name)) for name in shared}
    if differ := [f"{name} {a} and {b}" for name, (a, b) in pairs.items() if a != b]:
        raise CheckpointError(
            f"{top.path} and {bottom.path} have {', '.join(differ)}; VQVAE2Generator has one value for both priors: "
            f"{_ALONE}"
        )
    if below.output_blocks:
        raise CheckpointError(
            f"{bottom.path} has {below.output_blocks} output residual blocks (n_out_res_block), which VQVAE2Generator "
            f"has in the top prior only; {_ALONE}"
        )


def _dropout(*priors: _File) -> float:
    for file in priors:
        value = file.settings.get("dropout")
        if isinstance(value, int | float):
            return float(value)
        if value is not None:
            raise CheckpointError(f"{file.path} is damaged: its args state dropout {value!r}, which is no number")
    return 0.1
