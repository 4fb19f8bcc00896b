"""Weights of other projects, and of unfinished training runs, as medgen's networks and checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from medgen.checkpoint import DISCRIMINATOR_FILE, About, CheckpointError, write_checkpoint
from medgen.families import FAMILIES, family_class
from medgen.families.cyclegan import convert as cyclegan
from medgen.families.medfusion import convert as medfusion
from medgen.families.medfusion.official import convert_checkpoint
from medgen.families.spade import convert as spade
from medgen.families.spade import official as spade_files
from medgen.families.stylegan2 import convert as stylegan2
from medgen.families.stylegan3 import convert as stylegan3
from medgen.families.vqvae2 import convert as vqvae2
from medgen.families.vqvae2.official import convert_checkpoints, is_official
from medgen.foreign.lightning_files import LightningFile, read_lightning
from medgen.foreign.network_pickles import PickledNetwork, is_pickle, read_network_pickle
from medgen.foreign.pickles import Record
from medgen.generator import GeneratorConfig, load_strictly, part_of, with_current_names

_logger = logging.getLogger(__name__)


class Component(NamedTuple):
    """How an official network becomes ours.

    Attributes:
        build: Our network from the arguments of the official constructor.
        load: Puts official weights into it, strictly.
    """

    build: Callable[[Mapping[str, Any]], nn.Module]
    load: Callable[[nn.Module, Mapping[str, Tensor]], None]


COMPONENTS: Mapping[str, Component] = {
    "medfusion_unet": Component(partial(medfusion.build_unet, kind="concatenated"), medfusion.load_weights),
    "medfusion_unet_v1": Component(partial(medfusion.build_unet, kind="additive"), medfusion.load_weights),
    "medfusion_vae": Component(partial(medfusion.build_autoencoder, kind="kl"), medfusion.load_weights),
    "medfusion_vqvae": Component(partial(medfusion.build_autoencoder, kind="vq"), medfusion.load_weights),
    "cyclegan_generator": Component(cyclegan.build_generator, cyclegan.load_generator_weights),
    "cyclegan_discriminator": Component(cyclegan.build_discriminator, cyclegan.load_discriminator_weights),
    "spade_generator": Component(spade.build_synthesis, spade.load_synthesis_weights),
    "spade_inner_encoder": Component(spade.build_inner_style_encoder, spade.load_inner_style_encoder_weights),
    "spade_encoder": Component(spade.build_style_encoder, spade.load_style_encoder_weights),
    "spade_cardiac_encoder": Component(
        partial(spade.build_style_encoder, kind="cardiac"), spade.load_style_encoder_weights
    ),
    "spade_discriminator": Component(spade.build_discriminator, spade.load_discriminator_weights),
    "stylegan2_generator": Component(stylegan2.build_generator, stylegan2.load_generator_weights),
    "stylegan2_discriminator": Component(stylegan2.build_discriminator, stylegan2.load_discriminator_weights),
    "stylegan3_generator": Component(stylegan3.build_generator, stylegan3.load_generator_weights),
    "vqvae2": Component(vqvae2.build_autoencoder, vqvae2.load_autoencoder_weights),
    "pixelsnail": Component(vqvae2.build_prior, vqvae2.load_prior_weights),
}


def load_official(component: str, weights: Mapping[str, Tensor], config: Mapping[str, object]) -> nn.Module:
    """Our network with the weights of an official one, ready for inference.

    Args:
        component: A name of `COMPONENTS`.
        weights: The official state dict of that network alone, without a prefix.
        config: The keyword arguments of the official constructor.

    Raises:
        ValueError: If there is no such component, an argument cannot be built, or a weight is missing, unknown or of
            another shape.
    """
    if component not in COMPONENTS:
        raise ValueError(f"component {component!r} is unknown; use one of {', '.join(COMPONENTS)}")
    network = COMPONENTS[component].build(config)
    COMPONENTS[component].load(network, weights)
    return network.eval()


def convert(
    path: str | Path,
    out: str | Path,
    *,
    top: str | Path | None = None,
    bottom: str | Path | None = None,
    encoder: str | Path | None = None,
    spade_options: Mapping[str, Any] | None = None,
    image_size: tuple[int, int] | None = None,
    label_names: Sequence[str] = (),
    about: About | None = None,
    dtype: torch.dtype | None = None,
    extra_files: Mapping[str, Path] | None = None,
) -> Path:
    """The folder of a new medgen checkpoint, made from other files without running anything in them.

    Args:
        path: A diffusion checkpoint of the official Medfusion code, the autoencoder of the official VQ-VAE2 code, the
            generator (``latest_net_G.pth``) of the official SPADE code or its cardiac forks, a ``.pkl`` of the official
            StyleGAN2-ADA or StyleGAN3 code, or a checkpoint of a medgen training run; of the latter two the averaged
            generator is taken. The discriminator of a ``.pkl`` becomes the extra file `DISCRIMINATOR_FILE`.
        out: The folder to write.
        top: For an official VQ-VAE2: the file of the prior of the top map.
        bottom: The same of the bottom map.
        encoder: For an official SPADE: the file of its style encoder, ``latest_net_E.pth``.
        spade_options: What its files do not state, see `medgen.families.spade.official.convert_checkpoint`:
            ``num_upsamplings``, ``dont_care``, ``instance_edges``.
        image_size: Height and width, which official files of Medfusion and SPADE do not state; 256 x 256 if None.
        label_names: Class names, which they do not state either, nor does a ``.pkl``; "class 0", ... by default. Of
            SPADE those of the label maps.
        about: Licence, data and intended use of the weights; what a training run has fine-tuned keeps its licence where
            none is stated here.
        dtype: How floating-point weights are stored, see `write_checkpoint`.
        extra_files: Files to put beside the weights, by name.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If a file is damaged, unsafe, or of a kind that cannot be converted, or if files are missing or
            do not belong together.
        ValueError: If `top`, `bottom`, `image_size` or `label_names` do not fit the file.
    """
    pickled = is_pickle(path)
    if not pickled and is_official(path):
        files = convert_checkpoints(path, top, bottom, image_size=image_size, label_names=label_names)
        found = _Found("vqvae2", files.config.to_dict(), files.state)
    elif not pickled and spade_files.is_official(path):
        spade_made = spade_files.convert_checkpoint(
            path, encoder=encoder, image_size=image_size, mask_names=label_names, **(spade_options or {})
        )
        found = _Found("spade", spade_made.config.to_dict(), spade_made.state)
    elif encoder is not None or spade_options:
        raise ValueError(
            f"encoder, num_upsamplings, dont_care and instance_edges go with a generator of the official SPADE code "
            f"(latest_net_G.pth), which {path} is not; leave them out"
        )
    elif top is not None or bottom is not None:
        raise ValueError(
            f"top and bottom go with the autoencoder of the official VQ-VAE2 code (vqvae_*.pt), which {path} is not; "
            "give that file first, or leave them out"
        )
    else:
        read = _read_networks if pickled else _read_single_file
        found = read(path, image_size, tuple(label_names))
    files_given = ", ".join(Path(name).name for name in (path, top, bottom) if name is not None)
    about = about or About(source=found.about.source or files_given)
    licence = found.about.licence if about.licence == About().licence else about.licence
    networks = tuple(dict.fromkeys((*found.about.trained_with, *about.trained_with)))
    return write_checkpoint(
        out,
        family=found.family,
        config=found.config,
        state=found.state,
        about=replace(about, licence=licence, trained_with=networks),
        dtype=dtype,
        extra_files={**found.extra_files, **(extra_files or {})},
    )


class _Found(NamedTuple):
    family: str
    config: dict[str, object]
    state: dict[str, Tensor]
    extra_files: Mapping[str, bytes] = MappingProxyType({})
    about: About = About()


class _OfficialGenerator(NamedTuple):
    """How the generator of a ``.pkl`` becomes ours.

    Attributes:
        mark: A weight that others lack; the classes of all are called Generator.
        config: Our config, of the network and the names of its classes.
        load: Puts its weights into ours, strictly.
    """

    mark: str
    config: Callable[[PickledNetwork, tuple[str, ...]], GeneratorConfig]
    load: Callable[[nn.Module, Mapping[str, Tensor]], None]


_PICKLED: Mapping[str, _OfficialGenerator] = {
    "stylegan2": _OfficialGenerator("synthesis.b4.const", stylegan2.pickled_config, stylegan2.load_generator_weights),
    "stylegan3": _OfficialGenerator(
        "synthesis.input.freqs", stylegan3.pickled_config, stylegan3.load_generator_weights
    ),
}


def _read_networks(path: str | Path, image_size: tuple[int, int] | None, label_names: tuple[str, ...]) -> _Found:
    """The averaged generator of a ``.pkl`` and its discriminator."""
    networks = read_network_pickle(path)
    if image_size:
        raise ValueError(f"{path} states its image_size itself; leave it out")
    if "G_ema" not in networks:
        raise CheckpointError(f"{path} has {', '.join(networks)} and no averaged generator, G_ema; give one with it")
    average = networks["G_ema"]
    family = next((name for name, official in _PICKLED.items() if official.mark in average.state_dict), None)
    if family is None:
        marks = " or ".join(official.mark for official in _PICKLED.values())
        raise CheckpointError(
            f"{path} has a {average.class_name} that is of none of the families {', '.join(_PICKLED)}: it lacks {marks}"
        )
    try:
        config = _PICKLED[family].config(average, ())
        with torch.device("meta"):  # a network without memory: it takes the file's tensors as they are
            generator = family_class(family)(config)
        _PICKLED[family].load(generator, average.state_dict)
    except _MISFITS as error:
        raise CheckpointError(f"{path} has a generator unlike ours of {family}: {error}") from error
    if label_names:
        config = _PICKLED[family].config(average, label_names)
    extra = {DISCRIMINATOR_FILE: save(found)} if (found := _discriminator(networks.get("D"), path)) else {}
    return _Found(family, config.to_dict(), generator.state_dict(), extra)


_MISFITS = (ValueError, TypeError, AttributeError)
"""What comes of a network's arguments that ours does not have, or that are of any other type."""


def _discriminator(network: PickledNetwork | None, path: str | Path) -> dict[str, Tensor]:
    """Its weights under our names; none where there is none, or one that ours cannot be."""
    if network is None:
        return {}
    try:
        weights = stylegan2.discriminator_weights(network.state_dict)
        with torch.device("meta"):
            discriminator = stylegan2.build_discriminator(network.arguments)
        load_strictly(discriminator, weights, where=str(path))
    except _MISFITS as error:
        _logger.warning("%s: the discriminator is left out, as ours cannot be like it: %s", path, error)
        return {}
    return {name: weight.contiguous() for name, weight in weights.items()}


def _read_single_file(path: str | Path, image_size: tuple[int, int] | None, label_names: Sequence[str]) -> _Found:
    own = _read_training_run(read_lightning(path), path)
    if own is None:
        official = convert_checkpoint(path, image_size=image_size, label_names=label_names)
        return _Found("medfusion", official.config.to_dict(), official.state)
    if image_size or label_names:
        raise ValueError(f"{path} is from medgen and states its image_size and label_names itself; leave them out")
    return own


def _read_training_run(file: LightningFile, path: str | Path) -> _Found | None:
    """Family, config and averaged weights of a checkpoint that medgen's training wrote; None for another's."""
    config = file.hyper_parameters.get("config")
    for family in FAMILIES:
        kind = family_class(family).config_class
        name = (kind.__module__, kind.__qualname__)
        if isinstance(config, Record) and (config.kind.module, config.kind.name) == name:
            fields = config.state
        elif str(file.hyper_parameters.get("_class_path")).startswith(kind.__module__.rpartition(".")[0] + "."):
            fields = config  # of a recipe: LightningCLI keeps a dictionary and the module's name
        else:
            continue
        if not isinstance(fields, dict):
            raise CheckpointError(f"{path} is damaged: the config of its model is of type {type(fields).__name__}")
        state = with_current_names(part_of(file.state_dict, "ema.module."), family_class(family))
        if not state or not file.publishable:
            raise CheckpointError(
                f"{path} is from a training stage that has no generator yet; convert a checkpoint of the last stage"
            )
        critic = part_of(file.state_dict, "discriminator.")
        extra = {DISCRIMINATOR_FILE: save({k: w.contiguous() for k, w in critic.items()})} if critic else {}
        known = About(licence=file.licence, source=file.source, trained_with=file.trained_with)
        return _Found(family, kind.from_dict(fields).to_dict(), state, extra, known)
    return None
