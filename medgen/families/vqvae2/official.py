"""Conversion of the three files of the official VQ-VAE2 code: an autoencoder and two priors.

The official package is rosinality/vq-vae-2-pytorch. Its files do not state sizes, which are read from the weights.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from medgen.checkpoint import CheckpointError
from medgen.families.family import Converted
from medgen.families.vqvae2.convert import autoencoder_weights, prior_weights, without_prefix
from medgen.families.vqvae2.generator import VQVAE2Config, VQVAE2Generator
from medgen.foreign.file import ForeignFile
from medgen.foreign.pickles import Record
from medgen.nn.pixelsnail import PixelSNAILConfig
from medgen.nn.vqvae2 import TOP_STRIDE, VQVAE2AutoencoderConfig
from medgen.published import load_strictly

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
        """Count the different matches of the group of a pattern at the start of names."""
        return len({found[1] for name in self.weights if (found := re.match(pattern, name))})


def is_official(file: str | Path | ForeignFile) -> bool:
    """Check for a network of the official VQ-VAE2 code."""
    return bool(_role(_state_dict(ForeignFile.of(file).content)))


def convert_checkpoints(
    autoencoder: str | Path | ForeignFile,
    top: str | Path | None = None,
    bottom: str | Path | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    label_names: Sequence[str] = (),
) -> Converted:
    """Convert three official files to a generator, without running code from them.

    The running averages of the codebooks are kept. The dropout of a prior is read from its file, or else from that of
    the other prior, or else the official default, 0.1.

    Args:
        autoencoder: ``vqvae_*.pt``, a state dict.
        top: ``pixelsnail_*.pt`` of the top map: a state dict, alone or with the arguments of training.
        bottom: ``pixelsnail_*.pt`` of the bottom map.
        image_size: Height and width of the images, if they are to be checked; the files state them.
        label_names: Must be empty: the official networks have no classes.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If a file is damaged, unsafe, missing or mistaken for another, or if the three do not fit each
            other or a `VQVAE2Generator`.
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
    with torch.device("meta"):  # networks without memory, which take the tensors of the files
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
    """Get the weights in a file, which may hold the arguments of training, too; empty if there are none."""
    state = content.get("model", content) if isinstance(content, dict) else None
    return state if isinstance(state, dict) and all(isinstance(name, str) for name in state) else {}


def _role(weights: Mapping[str, Tensor]) -> str:
    """Tell the key of `_MEANING` by the names of weights; empty for those of another project."""
    parts = {name.partition(".")[0] for name in without_prefix(weights)}
    if "quantize_t" in parts:
        return "autoencoder"
    if "horizontal" in parts:
        return "bottom" if "cond_resnet" in parts else "top"
    return ""


def _check_roles(files: Mapping[str, _File]) -> None:
    """Refuse files that are missing or mistaken for another, with the right call."""
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
    """Write the call that converts files, with the usual names for unknown ones."""
    names = {role: str(paths.get(role, usual)) for role, usual in _USUAL_NAMES.items()}
    words = ["medgen", "convert", names["autoencoder"], "OUT", "--top", names["top"], "--bottom", names["bottom"]]
    return f"use {shlex.join(words)}"


def _config(autoencoder: _File, top: _File, bottom: _File) -> VQVAE2Config:
    dim, codes = autoencoder.shape("quantize_t.embed", 2)
    for prior in (top, bottom):
        if wrong := _num_codes(prior) - {codes}:
            raise CheckpointError(
                f"{prior.path} knows {wrong.pop()} codes (n_class), but {autoencoder.path} has {codes}; give the prior "
                f"of this autoencoder's codes, or {_ALONE}"
            )
    above, below = _map_size(top), _map_size(bottom)
    if below != (2 * above[0], 2 * above[1]):
        raise CheckpointError(
            f"{bottom.path} has a map of {below} codes and {top.path} one of {above}; the bottom map has twice the "
            "height and width of the top one: give two priors of the same images"
        )
    try:
        return VQVAE2Config(
            image_size=(above[0] * TOP_STRIDE, above[1] * TOP_STRIDE),
            channels=autoencoder.shape("enc_b.blocks.0.weight", 4)[1],
            autoencoder=VQVAE2AutoencoderConfig(
                hidden_channels=autoencoder.shape("enc_b.blocks.4.weight", 4)[0],
                residual_blocks=autoencoder.count(r"enc_b\.blocks\.(\d+)\.conv\."),
                residual_channels=autoencoder.shape("enc_b.blocks.5.conv.1.weight", 4)[0],
                code_dim=dim,
                num_codes=codes,
            ),
            top=_prior(top, _dropout(top, bottom)),
            bottom=_prior(bottom, _dropout(bottom, top)),
        )
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{autoencoder.path}, {top.path} and {bottom.path} have a shape that VQVAE2Generator does not: {error}"
        ) from error


_FIRST = "horizontal.conv.conv.weight_v"
_CONDITION = "cond_resnet.blocks.0.conv.weight_v"


def _num_codes(file: _File) -> set[int]:
    """Read the numbers of codes of a prior, of its own map and of the coarser one."""
    found = {file.shape(_FIRST, 4)[1]}
    return found | {file.shape(_CONDITION, 4)[1]} if file.role == "bottom" else found


def _prior(file: _File, dropout: float) -> PixelSNAILConfig:
    channels, _, _, kernel_size = file.shape(_FIRST, 4)
    config = PixelSNAILConfig(
        hidden_channels=channels,
        kernel_size=kernel_size,
        blocks=file.count(r"blocks\.(\d+)\."),
        residual_blocks=file.count(r"blocks\.0\.resblocks\.(\d+)\."),
        residual_channels=file.shape("blocks.0.resblocks.0.conv1.conv.conv.weight_v", 4)[0],
        attention=bool(file.count(r"blocks\.0\.(causal_attention)\.")),
        output_blocks=file.count(r"out\.(\d+)\.conv1\."),
        dropout=dropout,
    )
    if file.role == "top":
        return config
    return replace(
        config,
        condition_blocks=file.count(r"cond_resnet\.blocks\.(\d+)\.conv1\."),
        condition_channels=file.shape(_CONDITION, 4)[0],
    )


def _map_size(file: _File) -> tuple[int, int]:
    """Read height and width of a prior's map from the buffer with the row and column of every position."""
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


def _dropout(*priors: _File) -> float:
    for file in priors:
        value = file.settings.get("dropout")
        if isinstance(value, int | float):
            return float(value)
        if value is not None:
            raise CheckpointError(f"{file.path} is damaged: its args state dropout {value!r}, which is no number")
    return 0.1
