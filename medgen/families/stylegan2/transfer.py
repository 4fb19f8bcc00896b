"""Fine-tuning StyleGAN2 from a model of other labels, channels or image size.

Weights that both models have are copied. Others start so that the first images are close to those of the model: an
added resolution contributes nothing to the image yet, a class of the same name keeps its column, a new class is the
mean of the old ones, and colours are averaged or repeated.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from medgen.checkpoint import About
from medgen.families.stylegan2.config import StyleGAN2Config
from medgen.families.stylegan2.generator import StyleGAN2Generator
from medgen.families.stylegan2.networks import Discriminator
from medgen.published import part_of
from medgen.training.stages import check_shape, discriminator_beside, inherited

_SHAPE = ("z_dim", "w_dim", "mapping_layers", "channel_base", "channel_max")


class Pretrained(NamedTuple):
    """Config and weights of a model to fine-tune, with the discriminator's if there is one."""

    config: StyleGAN2Config
    generator: Mapping[str, Tensor]
    discriminator: Mapping[str, Tensor] | None
    about: About


def start_from(generator: StyleGAN2Generator, discriminator: Discriminator, source: str) -> None:
    """Load the weights of a trained model into the networks, and log which layers start anew.

    Frozen layers of the discriminator, those without gradients, must come with the model. The source is a checkpoint
    folder or zoo name, a ``.ckpt`` of a medgen training run, or an official ``.pkl``.

    Raises:
        FileNotFoundError: If there is nothing at ``source``.
        ValueError: If it is of another family, width or depth, or lacks a layer that is frozen.
    """
    frozen = {name for name, weight in discriminator.named_parameters() if not weight.requires_grad}
    found = read_pretrained(source)
    check_shape(generator.config, found.config, f"model.init_from {source}", _SHAPE)
    fresh = _take_over(generator, found.generator, found.config, generator.config)
    if found.discriminator is None:
        if frozen:
            raise ValueError(f"model.init_from {source} has no discriminator, so that frozen_layers has none to freeze")
        rank_zero_warn(f"{source} has no discriminator; training starts with a new one, which takes longer")
    else:
        ours, theirs = _label_layers(discriminator.state_dict()), _label_layers(found.discriminator)
        if found.config.label_names and generator.config.label_names and ours != theirs:
            raise ValueError(f"model.label_layers is {ours}, but {source} has {theirs}; use label_layers: {theirs}")
        added = _take_over(discriminator, found.discriminator, found.config, generator.config)
        if random := sorted(frozen & set(added)):
            raise ValueError(
                f"frozen_layers would freeze layers that {source}, of image_size {found.config.image_size}, does not "
                f"have ({', '.join(random)}), as they are before training; use frozen_layers: 0, or its image size"
            )
        fresh += added
    generator.about = inherited(generator.about, found.about, source)
    rank_zero_info(f"fine-tuning {source}; new: {', '.join(fresh) or 'nothing'}")


def read_pretrained(source: str) -> Pretrained:
    """Read the model to fine-tune, see `start_from`."""
    if Path(source).suffix == ".ckpt":
        from medgen.training.stages import read_trained

        found = read_trained(source, StyleGAN2Generator, ("mapping", "synthesis"), "model.init_from")
        content = torch.load(source, map_location="cpu", weights_only=True)["state_dict"]
        config = found.config
        assert isinstance(config, StyleGAN2Config)
        return Pretrained(config, found.state, part_of(content, "discriminator."), found.about)
    from medgen.loading import load

    if Path(source).suffix == ".pkl":
        from medgen.foreign.convert import convert

        with tempfile.TemporaryDirectory() as folder:
            return read_pretrained(str(convert(source, Path(folder) / "model")))
    loaded = load(source)
    if not isinstance(loaded, StyleGAN2Generator):
        raise ValueError(f"model.init_from {source} holds a {loaded.family} model; this recipe needs stylegan2")
    return Pretrained(loaded.config, loaded.state_dict(), discriminator_beside(loaded.folder), loaded.about)


def _take_over(
    network: nn.Module, state: Mapping[str, Tensor], old: StyleGAN2Config, new: StyleGAN2Config
) -> list[str]:
    """Load the weights that fit; returns the names of those that start anew."""
    own = network.state_dict()
    taken: dict[str, Tensor] = {}
    fresh = []
    for name, mine in own.items():
        fitted = _fitted(name, state.get(name), mine, old, new)
        taken[name] = mine if fitted is None else fitted.to(mine)
        if fitted is None:
            fresh.append(name)
    network.load_state_dict(taken)  # in place: the optimisers have these parameters already
    return fresh


def _fitted(
    name: str, theirs: Tensor | None, mine: Tensor, old: StyleGAN2Config, new: StyleGAN2Config
) -> Tensor | None:
    """Bring a weight to our shape; None where there is none to start from."""
    if theirs is None:
        # A resolution that is added leaves the image as it was until it has learned something.
        return torch.zeros_like(mine) if name.startswith("synthesis.to_image.") and ".style." not in name else None
    numbers = "continuous" in (old.label_kind, new.label_kind)  # which have no columns of their own
    if name.endswith("embed.weight") and old.label_names != new.label_names:
        return None if numbers else _relabelled(theirs, old.label_names, new.label_names)
    if theirs.shape == mine.shape:
        return theirs
    fit = next((fit for start, fit in _FITS.items() if name.startswith(start)), None)
    return None if fit is None else fit(theirs, mine)


def _relabelled(weight: Tensor, old: tuple[str, ...], new: tuple[str, ...]) -> Tensor:
    """Order the columns of an embedding, which are scaled by their number; a new name gets the mean of all."""
    places = {name.casefold(): i for i, name in enumerate(old)}
    mean = weight.mean(1)
    columns = [weight[:, places[n.casefold()]] if n.casefold() in places else mean for n in new]
    return torch.stack(columns, 1) * math.sqrt(len(new) / len(old))


def _label_layers(discriminator: Mapping[str, Tensor]) -> int:
    """Number of layers that read the label."""
    return sum(name.startswith("label.layers.") and name.endswith(".weight") for name in discriminator)


def _recoloured_output(theirs: Tensor, mine: Tensor) -> Tensor | None:
    """Fit weights whose outputs are the image's channels, (channels, ...)."""
    if len(mine) == 1:
        return theirs.mean(0, keepdim=True)
    return theirs.expand_as(mine) if len(theirs) == 1 else None


def _recoloured_input(theirs: Tensor, mine: Tensor) -> Tensor | None:
    """Fit weights that read the image's channels, (out, channels, 1, 1); the layer scales by the number of inputs."""
    if theirs.shape[0] != mine.shape[0]:
        return None
    rescaled = math.sqrt(mine.shape[1] / theirs.shape[1])
    if mine.shape[1] == 1:
        return theirs.sum(1, keepdim=True) * rescaled
    return theirs.expand_as(mine) / mine.shape[1] * rescaled if theirs.shape[1] == 1 else None


def _first_mapping(theirs: Tensor, mine: Tensor) -> Tensor | None:
    """Fit the first layer of mapping, (w_dim, z_dim [+ w_dim of the label]); new labels have no effect at first."""
    rescaled = math.sqrt(mine.shape[1] / theirs.shape[1])
    more = mine.shape[1] - theirs.shape[1]
    return F.pad(theirs, (0, more)) * rescaled  # cuts off where it is negative


def _resized_start(theirs: Tensor, mine: Tensor) -> Tensor | None:
    """Fit the start of synthesis, (channels, height, width), to images of other proportions."""
    if theirs.shape[0] != mine.shape[0]:
        return None
    return F.interpolate(theirs[None], mine.shape[1:], mode="bilinear", antialias=True)[0]


_FITS: Mapping[str, Callable[[Tensor, Tensor], Tensor | None]] = {
    "synthesis.to_image.": _recoloured_output,
    "from_image.weight": _recoloured_input,
    "mapping.layers.0.weight": _first_mapping,
    "synthesis.start": _resized_start,
}
