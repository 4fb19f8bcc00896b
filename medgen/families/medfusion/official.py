"""Conversion of checkpoints of the official Medfusion code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from medgen.checkpoint import CheckpointError
from medgen.diffusion.denoiser import PredictionType
from medgen.diffusion.schedule import NoiseSchedule, ScheduleConfig
from medgen.families.family import Converted
from medgen.families.medfusion.convert import (
    autoencoder_config,
    convert_weights,
    unet_channels,
    unet_config,
    unet_label_space,
)
from medgen.families.medfusion.generator import MedfusionConfig
from medgen.foreign.file import ForeignFile
from medgen.foreign.lightning_files import LightningFile, lightning_content
from medgen.nn.autoencoder import make_autoencoder
from medgen.nn.unet import UNet
from medgen.published import load_strictly, part_of

_PREDICTION_TYPES: dict[str, PredictionType] = {"x_T": "eps", "x_0": "x_0"}
_PARTS = ("noise_estimator.", "latent_embedder.")
_AUTOENCODERS = ("inc_dec.", "vqvae.inc_dec.")
"""Start of the names of some weights in checkpoints of the first stage."""


def is_official(file: ForeignFile) -> bool:
    """Check for a checkpoint of either stage of the official Medfusion code."""
    names = file.lightning.state_dict if file.lightning else ()
    return any(name.startswith((*_PARTS, *_AUTOENCODERS)) for name in names)


def convert_checkpoint(
    path: str | Path | ForeignFile, *, image_size: tuple[int, int] | None = None, label_names: Sequence[str] = ()
) -> Converted:
    """Convert an official diffusion checkpoint (``DiffusionPipeline``), without running code from it.

    The file holds the autoencoder without its arguments: widths and heads are read from the shapes of the weights, and
    the published strides 1-2-2-... are assumed. If there is an EMA, its noise estimator is taken, as in the official
    code.

    Args:
        path: A Lightning ``.ckpt`` file.
        image_size: Height and width of the images, which the file does not state; 256 x 256 (published) by default.
        label_names: Names of the classes, which it does not state either; "class 0", "class 1", ... by default.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, of another kind, or has what a `MedfusionGenerator` cannot do.
        ValueError: If `label_names` are not as many as the classes, or `image_size` does not fit the strides.
    """
    source = ForeignFile.of(path)
    file = lightning_content(source.content, source.path)
    try:
        return _convert(file, image_size or (256, 256), tuple(label_names))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _convert(file: LightningFile, image_size: tuple[int, int], label_names: tuple[str, ...]) -> Converted:
    estimator, embedder = (part_of(file.state_dict, prefix) for prefix in _PARTS)
    embedder = part_of(embedder, "vqvae.") or embedder  # of a VAEGAN or VQGAN
    if not estimator or not embedder:
        raise CheckpointError(_other_kind(file))
    averaged = part_of(file.state_dict, "ema_model.averaged_model.")
    settings = file.hyper_parameters
    if "inc.block_seq.0.basic_block.conv.weight" in estimator:
        raise CheckpointError("its noise estimator is the older unet.py, which MedfusionGenerator does not sample with")
    if settings.get("do_input_centering"):
        raise CheckpointError("it was trained with do_input_centering, which MedfusionGenerator does not have")

    arguments = _arguments(settings, "noise_estimator_kwargs")
    labels, channels, out_channels = unet_label_space(arguments), *unet_channels(arguments)
    first = _autoencoder_arguments(embedder)
    schedule = _arguments(settings, "noise_scheduler_kwargs")
    objective = settings.get("estimator_objective", "x_T")
    if objective not in _PREDICTION_TYPES:
        raise CheckpointError(f"its noise estimator predicts {objective!r}; known are {', '.join(_PREDICTION_TYPES)}")
    for what, given, made in (
        ("noise estimator", channels, out_channels),
        ("autoencoder", first["in_channels"], first["out_channels"]),
    ):
        if given != made:
            raise CheckpointError(
                f"its {what} makes {made} channels of {given}, which MedfusionGenerator does not do; build the network "
                "alone with medgen.foreign.convert.load_official"
            )
    if label_names and len(label_names) != len(labels):
        raise ValueError(f"label_names are {list(label_names)}, but the model knows {len(labels)} classes")
    kind: Literal["kl", "vq"] = "vq" if "quantizer.embedder.weight" in embedder else "kl"
    try:
        config = MedfusionConfig(
            image_size=image_size,
            channels=first["in_channels"],
            label_kind=labels.kind,
            label_names=label_names or labels.names,
            autoencoder=autoencoder_config(first, kind),
            unet=unet_config(arguments),
            schedule=ScheduleConfig(
                timesteps=schedule.get("timesteps", 1000),
                shape=schedule.get("schedule_strategy", "cosine"),
                beta_start=schedule.get("beta_start", 0.0001),
                beta_end=schedule.get("beta_end", 0.02),
            ),
            prediction_type=_PREDICTION_TYPES[objective],
            clip=bool(settings.get("clip_x0")),
        )
    except ValueError as error:
        if "image_size" in str(error):
            raise
        raise CheckpointError(f"its settings are not those of a MedfusionGenerator: {error}") from error
    latent_channels = config.autoencoder.latent_channels
    with torch.device("meta"):  # networks without memory, which take the tensors of the file
        autoencoder = make_autoencoder(config.autoencoder, config.channels)
        unet = UNet(config.unet, latent_channels, label_space=config.label_space)
    _check_schedule(config, file.state_dict.get("noise_scheduler.betas"))
    state = {  # the official code does not normalise latents
        "latent_mean": torch.zeros(latent_channels, 1, 1),
        "latent_std": torch.ones(latent_channels, 1, 1),
    }
    parts = {"autoencoder": (autoencoder, embedder), "unet": (unet, averaged or estimator)}
    for name, (network, weights) in parts.items():
        try:
            load_strictly(network, convert_weights(network, weights), where=name)
        except ValueError as error:
            raise CheckpointError(f"its {name} is not of the shape that its settings state: {error}") from error
        state |= {f"{name}.{key}": weight for key, weight in network.state_dict().items()}
    return Converted(config, state)


def _other_kind(file: LightningFile) -> str:
    names = file.state_dict
    if any(name.startswith(_AUTOENCODERS) for name in names):
        return (
            "it holds an autoencoder only, the first of Medfusion's two stages, from which nothing can be sampled; "
            "convert the diffusion checkpoint, which has the autoencoder in it"
        )
    found = sorted({name.partition(".")[0] for name in names})
    return f"it is not a Medfusion diffusion checkpoint: no noise_estimator and latent_embedder, but {', '.join(found)}"


def _arguments(settings: Mapping[str, object], name: str) -> dict[str, Any]:
    value = settings.get(name)
    if not isinstance(value, dict):
        raise CheckpointError(f"its hyper_parameters have no {name}")
    return value


def _autoencoder_arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read arguments of the official autoencoder from the shapes of its weights."""

    def shape(name: str) -> torch.Size:
        if name not in weights:
            raise CheckpointError(f"its autoencoder has no {name}")
        return weights[name].shape

    stem = shape("inc.block_seq.0.basic_block.conv.weight")
    levels = 1 + max((int(found[1]) for name in weights if (found := re.match(r"encoders\.(\d+)\.", name))), default=-1)
    coarser = [shape(f"encoders.{i}.conv_block.block_seq.0.basic_block.conv.weight")[0] for i in range(levels)]
    return {
        "in_channels": stem[1],
        "out_channels": shape("outc.conv.weight")[0],
        "emb_channels": shape("inc_dec.block_seq.0.basic_block.conv.weight")[1],
        "spatial_dims": len(stem) - 2,
        "hid_chs": [stem[0], *coarser],
        "deep_supervision": sum(name.startswith("outc_ver.") and name.endswith(".weight") for name in weights),
    }


def _check_schedule(config: MedfusionConfig, betas: Tensor | None) -> None:
    schedule = NoiseSchedule(**config.schedule.to_dict())
    if betas is None or betas.shape != schedule.betas.shape or not torch.allclose(betas, schedule.betas, rtol=1e-4):
        raise CheckpointError(f"its noise schedule is not the {config.schedule.shape} one that its settings state")
