"""Whole checkpoints of the official Medfusion code, as the config and weights of a `MedfusionGenerator`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from medgen.checkpoint import CheckpointError
from medgen.diffusion.schedule import NoiseSchedule
from medgen.families.family import Converted
from medgen.families.medfusion.convert import autoencoder_config, convert_weights, unet_config
from medgen.families.medfusion.generator import MedfusionConfig, build_autoencoder, build_unet
from medgen.foreign.file import ForeignFile
from medgen.foreign.lightning_files import LightningFile, lightning_content
from medgen.nn.autoencoder import AutoencoderConfig
from medgen.nn.layers import LayerSpec
from medgen.nn.unet import UNetConfig

_OBJECTIVES = {"x_T": "eps", "x_0": "x_0"}
_PARTS = ("noise_estimator.", "latent_embedder.")
_AUTOENCODERS = ("inc_dec.", "vqvae.inc_dec.")
"""How weights of a checkpoint of the first stage begin."""


def is_official(file: ForeignFile) -> bool:
    """Whether it is a checkpoint of either stage of the official Medfusion code."""
    names = file.lightning.state_dict if file.lightning else ()
    return any(name.startswith((*_PARTS, *_AUTOENCODERS)) for name in names)


def convert_checkpoint(
    path: str | Path | ForeignFile, *, image_size: tuple[int, int] | None = None, label_names: Sequence[str] = ()
) -> Converted:
    """The generator inside an official diffusion checkpoint (``DiffusionPipeline``), read without running anything.

    The file has the autoencoder in it, but states its arguments nowhere: its widths and heads are read from the shapes
    of its weights, and the published strides 1-2-2-... are assumed. With an EMA in the file, the averaged noise
    estimator is taken, as the official code does. The frozen VGG16 of the perceptual loss is left out.

    Args:
        path: A Lightning ``.ckpt`` file.
        image_size: Height and width of the images, which the file does not state; 256 x 256, the published size, if
            None.
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
    estimator, embedder = (_part(file.state_dict, prefix) for prefix in _PARTS)
    embedder = _part(embedder, "vqvae.") or embedder  # of a VAEGAN or VQGAN
    if not estimator or not embedder:
        raise CheckpointError(_other_kind(file))
    averaged = _part(file.state_dict, "ema_model.averaged_model.")
    settings = file.hyper_parameters
    if "inc.block_seq.0.basic_block.conv.weight" in estimator:
        raise CheckpointError("its noise estimator is the older unet.py, which MedfusionGenerator does not sample with")
    if settings.get("do_input_centering"):
        raise CheckpointError("it was trained with do_input_centering, which MedfusionGenerator does not have")

    unet = unet_config(_arguments(settings, "noise_estimator_kwargs"))
    kind: Literal["kl", "vq"] = "vq" if "quantizer.embedder.weight" in embedder else "kl"
    autoencoder = autoencoder_config(_autoencoder_arguments(embedder), kind)
    schedule = _arguments(settings, "noise_scheduler_kwargs")
    objective = settings.get("estimator_objective", "x_T")
    if objective not in _OBJECTIVES:
        raise CheckpointError(f"its noise estimator predicts {objective!r}; known are {', '.join(_OBJECTIVES)}")
    _check_expressible("noise estimator", unet)
    _check_expressible("autoencoder", autoencoder)

    fields: dict[str, Any] = {
        "image_size": image_size,
        "channels": autoencoder.in_channels,
        "label_kind": unet.label_kind,
        "label_names": _names(label_names, unet.num_labels),
        "autoencoder": kind,
        "latent_channels": autoencoder.latent_channels,
        "autoencoder_channels": tuple(autoencoder.hidden),
        "autoencoder_strides": tuple(autoencoder.strides),
        "autoencoder_groups": _groups(autoencoder.norm),
        "autoencoder_extra_heads": autoencoder.extra_heads,
        "unet_channels": tuple(unet.hidden),
        "unet_strides": tuple(unet.strides),
        "unet_groups": _groups(unet.norm),
        "unet_blocks": unet.blocks_per_level,
        "unet_attention": unet.attention,
        "embedding_dim": unet.embedding_dim,
        "unet_extra_heads": unet.extra_heads,
        "learned_variance": unet.learned_variance,
        "self_conditioning": unet.self_conditioning,
        "objective": _OBJECTIVES[objective],
        "clip": bool(settings.get("clip_x0")),
        "timesteps": schedule.get("timesteps", 1000),
        "schedule": schedule.get("schedule_strategy", "cosine"),
        "beta_start": schedule.get("beta_start", 0.0001),
        "beta_end": schedule.get("beta_end", 0.02),
    }
    if kind == "vq":
        fields["num_codes"] = embedder["quantizer.embedder.weight"].shape[0]
    config = MedfusionConfig(**fields)
    _check_schedule(config, file.state_dict.get("noise_scheduler.betas"))
    state = {
        "latent_mean": torch.zeros(config.latent_channels, 1, 1),  # the official code diffuses the latent as it is
        "latent_std": torch.ones(config.latent_channels, 1, 1),
    }
    with torch.device("meta"):  # networks without memory: they take the file's tensors as they are
        networks = {"autoencoder": build_autoencoder(config), "unet": build_unet(config)}
    for name, weights in {"autoencoder": embedder, "unet": averaged or estimator}.items():
        network = networks[name]
        try:
            network.load_state_dict(convert_weights(network, weights), strict=True, assign=True)
        except RuntimeError as error:
            raise CheckpointError(f"its {name} is not of the shape that its settings state: {error}") from error
        state |= {f"{name}.{key}": weight for key, weight in network.state_dict().items()}
    return Converted(config, state)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}


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
    """The arguments of the official autoencoder, as far as the shapes of its weights tell them."""

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


def _check_expressible(what: str, config: AutoencoderConfig | UNetConfig) -> None:
    """Refuses options of the official constructors that `MedfusionConfig` has no field for.

    Raises:
        CheckpointError: Naming them.
    """
    kernels = config.kernel_sizes if isinstance(config.kernel_sizes, Sequence) else [config.kernel_sizes]
    expected = {
        "kernel_sizes": all(kernel == 3 for kernel in kernels),
        "strides": all(isinstance(stride, int) for stride in config.strides),
        "spatial_dims": config.spatial_dims == 2,
        "activation": _layer_name(config.activation) == "swish",
        "norm": _layer_name(config.norm) == "group",
        "residual": config.residual,
        "learned_resampling": config.learned_resampling,
        "out_channels": config.out_channels in (None, config.in_channels),
        "wave_dim": not isinstance(config, UNetConfig) or config.wave_dim in (None, config.embedding_dim // 4),
    }
    if wrong := [f"{name} {getattr(config, name)}" for name, holds in expected.items() if not holds]:
        raise CheckpointError(
            f"its {what} has {', '.join(wrong)}, which MedfusionGenerator does not have; build the network alone with "
            "medgen.foreign.convert.load_official"
        )


def _layer_name(spec: LayerSpec) -> str:
    return (spec if isinstance(spec, str) else spec[0]).lower()


def _groups(norm: LayerSpec) -> int:
    groups = norm[1]["num_groups"] if not isinstance(norm, str) else None
    if not isinstance(groups, int):
        raise CheckpointError(f"its norm {norm} states no num_groups")
    return groups


def _names(label_names: tuple[str, ...], num_labels: int) -> tuple[str, ...]:
    names = label_names or tuple(f"class {i}" for i in range(num_labels))
    if len(names) != num_labels:
        raise ValueError(f"label_names are {list(label_names)}, but the model knows {num_labels} classes")
    return names


def _check_schedule(config: MedfusionConfig, betas: Tensor | None) -> None:
    schedule = NoiseSchedule(config.timesteps, config.schedule, config.beta_start, config.beta_end)
    if betas is None or betas.shape != schedule.betas.shape or not torch.allclose(betas, schedule.betas, rtol=1e-4):
        raise CheckpointError(f"its noise schedule is not the {config.schedule} one that its settings state")
