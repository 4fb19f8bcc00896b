"""Training in stages: what a later stage takes over from the ones before, or from a model to fine-tune."""

from __future__ import annotations

import dataclasses
import re
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from medgen.checkpoint import DISCRIMINATOR_FILE, About
from medgen.config import Config, ModelConfig
from medgen.generator import Generator
from medgen.loading import load
from medgen.losses.ssim import ssim
from medgen.published import load_strictly, part_of
from medgen.training.base import G, GenerativeModule, ReproducibleModule

if TYPE_CHECKING:
    from medgen.data.base import Batch

_NOT_OF_WEIGHTS = {"image_size", "intensity_window", "intensity_unit", "label_kind", "label_names"}
"""Fields of every config that a model to fine-tune may have otherwise."""


class FirstStageModule(ReproducibleModule):
    """Trains an autoencoder on images, and tells how well it copies unseen ones.

    A subclass has hyper-parameters, of which `perceptual` is the feature network of its loss, or None; `forward` takes
    images in [0, 1] to copies of them.
    """

    config: ModelConfig

    @property
    def trained_with(self) -> tuple[str, ...]:
        """Feature networks of the loss."""
        return loss_networks(self.hparams)

    def setup(self, stage: str) -> None:
        """Check the data against the config."""
        if stage == "fit":
            self.check_data(self.config)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Error and likeness of copies of unseen images, both in [0, 1]."""
        self._compare("val", batch["image"])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same on the test split."""
        self._compare("test", batch["image"])

    def _compare(self, split: str, images: Tensor) -> None:
        copies = self(images).clamp(0, 1)
        scores = {"mse": (copies - images).square().mean(), "ssim": ssim(copies, images).mean()}
        self.log_dict({f"{split}/{k}": score for k, score in scores.items()}, batch_size=len(images), sync_dist=True)


class LaterStageModule(GenerativeModule[G], Generic[G]):
    """Trains a part of a generator on what earlier stages made; the images themselves are never loaded.

    A subclass has hyper-parameters, of which `init_from` is the checkpoint to fine-tune, or None.
    """

    _missing_start: FileNotFoundError | None = None

    @abstractmethod
    def load_start(self) -> None:
        """Put into `generator` what training starts from.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it does not fit.
        """

    def setup(self, stage: str) -> None:
        """Load what training starts from, unless it has started already."""
        super().setup(stage)
        if int(self.batches_seen) > 0:
            return
        try:
            self.load_start()
        except FileNotFoundError as error:  # no harm where a checkpoint is restored next, which brings everything
            self._missing_start = error
        self.published.load_state_dict(self.generator.state_dict())
        self.published.about = self.generator.about

    def on_fit_start(self) -> None:
        """Refuse to train on what nothing was loaded into, and leave the images out."""
        self._need_start()
        self.datamodule.images_in_training = False

    def on_validation_start(self) -> None:
        """Refuse to measure what nothing was loaded into."""
        self._need_start()

    def on_test_start(self) -> None:
        """Likewise."""
        self._need_start()

    def _need_start(self) -> None:
        if self._missing_start is not None and int(self.batches_seen) == 0:
            raise self._missing_start

    def teardown(self, stage: str) -> None:
        """Leave the data as they were."""
        self.datamodule.images_in_training = True


class Trained(NamedTuple):
    """What a training run, or a checkpoint folder, holds of a generator.

    Attributes:
        config: Its config.
        state: Weights by their names in the generator; not of all parts, in early stages.
        about: What is known of it: the feature networks of its losses and, of a generator, its licence.
    """

    config: ModelConfig
    state: dict[str, Tensor]
    about: About

    def part(self, name: str) -> dict[str, Tensor]:
        """Weights of one part, by their names in it."""
        return part_of(self.state, f"{name}.")


def read_trained(source: str, kind: type[Generator], parts: Sequence[str], argument: str) -> Trained:
    """What a stage starts from.

    Args:
        source: A checkpoint written by a training run, or a checkpoint folder or zoo name.
        kind: The generator it must be of.
        parts: What it must have.
        argument: What an error calls `source`.

    Raises:
        FileNotFoundError: If there is nothing at ``source``.
        ValueError: If it is of another family or stage.
    """
    if Path(source).suffix != ".ckpt":
        found = load(source)
        if not isinstance(found, kind):
            raise ValueError(f"{argument} {source} holds a {found.family} model; this recipe needs {kind.family}")
        return Trained(found.config, found.state_dict(), found.about)
    if not Path(source).is_file():
        raise FileNotFoundError(f"{argument} {source!r} is not there; train that stage first")
    content = torch.load(source, map_location="cpu", weights_only=True)
    settings, state = content.get("hyper_parameters", {}), content.get("state_dict", {})
    prefix = GenerativeModule.published_weights  # a first stage's module holds its network itself
    if any(name.startswith(prefix) for name in state):
        state = kind.current_names(part_of(state, prefix))
    config = _config_of(settings, kind)
    missing = [part for part in parts if not any(name.startswith(f"{part}.") for name in state)]
    if config is None or missing:
        lacks = ", ".join(missing) or f"config of {kind.family}"
        raise ValueError(f"{argument} {source} was not written by the stage before: it has no {lacks}")
    networks = tuple(content.get("trained_with", loss_networks(settings)))
    return Trained(config, state, About(trained_with=networks, **content.get("origin", {})))


def load_parts(
    generator: Generator,
    source: str,
    parts: Sequence[str],
    argument: str,
    *,
    fields: Collection[str],
    free: Collection[str] = (),
) -> None:
    """Put trained parts into a generator, and note in ``about`` their licence and which networks their losses had.

    Args:
        generator: What to load into.
        source: See `read_trained`.
        parts: Names of its submodules.
        argument: What an error calls `source`.
        fields: Fields of the config that must be equal, see `check_shape`.
        free: Those within them that need not.

    Raises:
        FileNotFoundError: If there is nothing at ``source``.
        ValueError: If it is of another family or stage, or its shape is not the config's.
    """
    found = read_trained(source, type(generator), parts, argument)
    check_shape(generator.config, found.config, f"{argument} {source}", fields, free)
    for part in parts:
        load_strictly(cast("torch.nn.Module", getattr(generator, part)), found.part(part), where=source)
    generator.about = inherited(generator.about, found.about)


def start_from(
    generator: Generator, source: str, *, label_weights: str, free: Collection[str] = (), bound: Collection[str] = ()
) -> None:
    """Put the weights of a trained model into a generator of the same shape, to fine-tune it.

    Image size, intensities and labels may differ. What reads labels is only taken over where they are the same.

    Args:
        generator: What to load into.
        source: A checkpoint folder or zoo name.
        label_weights: Regular expression that finds the names of weights that read labels.
        free: More fields of the config that may differ, those of parts as ``unet.dropout``.
        bound: Fields that may not, of those that else may.

    Raises:
        FileNotFoundError: If there is nothing at ``source``.
        ValueError: If it is of another family, or the shapes differ.
    """
    found = read_trained(source, type(generator), (), "model.init_from")
    fields = {field.name for field in dataclasses.fields(found.config)} - _NOT_OF_WEIGHTS - set(free) | set(bound)
    check_shape(generator.config, found.config, f"model.init_from {source}", fields, free)
    state, fresh = found.state, generator.state_dict()
    if found.config.label_space != generator.label_space:
        state = {name: weight for name, weight in state.items() if not re.search(label_weights, name)}
        state |= {name: weight for name, weight in fresh.items() if re.search(label_weights, name)}
    load_strictly(generator, state, where=source)
    generator.about = inherited(generator.about, found.about, source)


def inherited(about: About, earlier: About, source: str | None = None) -> About:
    """What is known of a model, with what comes along with weights of an earlier one: its licence and its losses.

    Args:
        about: Of the model; what it has from other sources of weights stays.
        earlier: Of the earlier one.
        source: Where that is, if it is fine-tuned as a whole.

    Returns:
        Where two licences are stated, both hold, as the SPDX expression ``A AND B``.
    """
    found = [licence for one in (about, earlier) for licence in one.licence.split(" AND ") if licence != "unknown"]
    return dataclasses.replace(
        about,
        licence=" AND ".join(dict.fromkeys(found)) or "unknown",
        source=about.source if source is None else f"fine-tuned from {source}",
        trained_with=tuple(dict.fromkeys((*earlier.trained_with, *about.trained_with))),
    )


def discriminator_beside(folder: Path | None) -> dict[str, Tensor] | None:
    """Weights of the discriminators that lie beside a generator's, in float32; None where there are none."""
    path = None if folder is None else folder / DISCRIMINATOR_FILE
    if path is None or not path.is_file():
        return None
    return {name: weight.float() for name, weight in load_file(path).items()}


def check_shape(
    mine: ModelConfig, other: ModelConfig, source: str, fields: Collection[str], free: Collection[str] = ()
) -> None:
    """Refuse a source whose config differs in one of these fields; a part is compared field by field.

    Args:
        mine: The config of a run.
        other: That of the source.
        source: What errors call it.
        fields: Names of fields.
        free: Fields of parts that may differ, such as ``unet.dropout``.

    Raises:
        ValueError: Naming each, and both values.
    """
    ours, theirs = _leaves(mine), _leaves(other)
    compared = [name for name in ours | theirs if name.partition(".")[0] in fields and name not in free]
    pairs = {name: (ours.get(name), theirs.get(name)) for name in compared}
    if differ := [f"{name} is {a!r} here and {b!r} there" for name, (a, b) in pairs.items() if a != b]:
        raise ValueError(
            f"{source} has another shape than model.config: {'; '.join(differ)}. Set model.config to what is there, or "
            "start from another model"
        )


def _leaves(config: Config, prefix: str = "") -> dict[str, object]:
    """Values of a config and of its parts, those of a part as ``unet.hidden``."""
    found: dict[str, object] = {}
    for field in dataclasses.fields(config):
        name, value = f"{prefix}{field.name}", getattr(config, field.name)
        found |= _leaves(value, f"{name}.") if isinstance(value, Config) else {name: value}
    return found


def loss_networks(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Feature networks in the loss of a first stage with these hyper-parameters."""
    return (settings["perceptual"],) if settings.get("perceptual") else ()


def _config_of(settings: Mapping[str, Any], kind: type[Generator]) -> ModelConfig | None:
    """The config among hyper-parameters, where LightningCLI keeps a dictionary; None if it is another family's."""
    config = settings.get("config")
    if isinstance(config, dict):
        names = {field.name for field in dataclasses.fields(kind.config_class)}
        own = set(kind.config_class.relocate(config)) <= names
        return kind.config_class.from_dict(config) if own else None
    return config if isinstance(config, kind.config_class) else None
