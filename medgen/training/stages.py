"""Training in stages, and the weights that a stage starts from: of earlier stages, or of a model to fine-tune."""

from __future__ import annotations

import dataclasses
import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from medgen.checkpoint import DISCRIMINATOR_FILE, About
from medgen.config import Config, ModelConfig
from medgen.generator import Generator
from medgen.loading import load
from medgen.losses.ssim import ssim
from medgen.published import load_strictly, part_of
from medgen.training.base import G, GenerativeModule, MeasuringModule

if TYPE_CHECKING:
    from medgen.data.base import Batch, Split

_NOT_OF_WEIGHTS = {"image_size", "intensity_window", "intensity_unit", "label_kind", "label_names"}
"""Fields of every config that may differ in a model to fine-tune."""


class FirstStageModule(MeasuringModule):
    """Base of the modules that train an autoencoder, and measure its copies of unseen images.

    A subclass saves its hyper-parameters, among them `perceptual`, the feature network of the loss, if there is one.
    `forward` maps images in [0, 1] to their copies.
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

    def measure(self, split: Split, batch: Batch, batch_idx: int) -> None:
        """Log squared error and structural similarity of copies of unseen images in [0, 1]."""
        images = batch["image"]
        copies = self(images).clamp(0, 1)
        scores = {"mse": (copies - images).square().mean(), "ssim": ssim(copies, images).mean()}
        self.log_unseen(split, scores, len(images))

    def adam(self, network: nn.Module, kind: Callable[..., Optimizer] = torch.optim.Adam, **settings: float) -> Any:
        """Build Adam for a network, with the learning rate and schedule of the hyper-parameters."""
        optimizer = kind(network.parameters(), lr=self.hparams["lr"], **settings)
        return self.scheduled(optimizer, shape=self.hparams["lr_shape"], warmup=self.hparams["warmup"])


class LaterStageModule(GenerativeModule[G], Generic[G]):
    """Base of the modules that train a part of a generator on latents or codes; training loads no images.

    A subclass saves its hyper-parameters, among them `init_from`, the checkpoint to fine-tune, or None.
    """

    _missing_start: FileNotFoundError | None = None

    @abstractmethod
    def load_start(self) -> None:
        """Load the weights that training starts from into `generator`.

        Raises:
            FileNotFoundError: If they are missing.
            ValueError: If they do not fit.
        """

    def setup(self, stage: str) -> None:
        """Load the weights that training starts from, unless it has started already."""
        super().setup(stage)
        if int(self.batches_seen) > 0:
            return
        try:
            self.load_start()
        except FileNotFoundError as error:  # not needed where a checkpoint is restored next
            self._missing_start = error
        self.restart_average()

    def on_fit_start(self) -> None:
        """Refuse to train without the weights to start from, and do not load images."""
        self._need_start()
        self.datamodule.images_in_training = False

    def on_validation_start(self) -> None:
        """Refuse to measure without the weights to start from."""
        self._need_start()

    on_test_start = on_validation_start

    def _need_start(self) -> None:
        if self._missing_start is not None and int(self.batches_seen) == 0:
            raise self._missing_start

    def teardown(self, stage: str) -> None:
        """Let the data module load images again."""
        self.datamodule.images_in_training = True


class Trained(NamedTuple):
    """A generator, or parts of one, in a training checkpoint or a checkpoint folder.

    Attributes:
        config: Its config.
        state: Weights by their names in the generator; in early stages not of all parts.
        about: The feature networks of its losses and, of a whole generator, its licence.
    """

    config: ModelConfig
    state: dict[str, Tensor]
    about: About


def read_trained(source: str, kind: type[Generator], parts: Sequence[str], argument: str) -> Trained:
    """Read the weights that a stage starts from.

    Args:
        source: A checkpoint written by a training run, or a checkpoint folder or zoo name.
        kind: Class of the generator.
        parts: Parts that it must have.
        argument: Name of `source` in errors.

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
    """Load trained parts into a generator, and note in ``about`` their licence and the networks of their losses.

    For the arguments see `read_trained` and `check_shape`.

    Raises:
        FileNotFoundError: If there is nothing at ``source``.
        ValueError: If it is of another family, stage or shape.
    """
    found = read_trained(source, type(generator), parts, argument)
    check_shape(generator.config, found.config, f"{argument} {source}", fields, free)
    for part in parts:
        load_strictly(generator.get_submodule(part), part_of(found.state, f"{part}."), where=source)
    generator.about = inherited(generator.about, found.about)


def start_from(
    generator: Generator, source: str, *, label_weights: str, free: Collection[str] = (), bound: Collection[str] = ()
) -> None:
    """Load a trained model of the same shape into a generator, to fine-tune it.

    Image size, intensities and labels may differ. Weights that read labels are loaded only where labels are equal.

    Args:
        generator: The generator.
        source: A checkpoint folder or zoo name.
        label_weights: Regular expression for the names of weights that read labels.
        free: More fields of the config that may differ, those of parts as ``unet.dropout``.
        bound: Fields that must be equal although they usually may differ.

    Raises:
        FileNotFoundError: If there is nothing at ``source``.
        ValueError: If it is of another family or shape.
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
    """Add the licence and the loss networks of an earlier model to the facts on one that has weights of it.

    Two licences become the SPDX expression ``A AND B``. A `source` means that the earlier model is fine-tuned.
    """
    found = [licence for one in (about, earlier) for licence in one.licence.split(" AND ") if licence != "unknown"]
    return dataclasses.replace(
        about,
        licence=" AND ".join(dict.fromkeys(found)) or "unknown",
        source=about.source if source is None else f"fine-tuned from {source}",
        trained_with=tuple(dict.fromkeys((*earlier.trained_with, *about.trained_with))),
    )


def discriminator_beside(folder: Path | None) -> dict[str, Tensor] | None:
    """Read the discriminators in a checkpoint folder, in float32; None where there are none."""
    path = None if folder is None else folder / DISCRIMINATOR_FILE
    if path is None or not path.is_file():
        return None
    return {name: weight.float() for name, weight in load_file(path).items()}


def check_shape(
    mine: ModelConfig, other: ModelConfig, source: str, fields: Collection[str], free: Collection[str] = ()
) -> None:
    """Refuse a source whose config differs in `fields`, except for `free` fields of parts, such as ``unet.dropout``.

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
    """Collect the values of a config and of its parts, named like ``unet.hidden``."""
    found: dict[str, object] = {}
    for field in dataclasses.fields(config):
        name, value = f"{prefix}{field.name}", getattr(config, field.name)
        found |= _leaves(value, f"{name}.") if isinstance(value, Config) else {name: value}
    return found


def loss_networks(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the feature networks in the loss of a module with these hyper-parameters."""
    return (settings["perceptual"],) if settings.get("perceptual") else ()


def _config_of(settings: Mapping[str, Any], kind: type[Generator]) -> ModelConfig | None:
    """Find the config in hyper-parameters, where LightningCLI keeps a dictionary; None if it is of another family."""
    config = settings.get("config")
    if isinstance(config, dict):
        names = {field.name for field in dataclasses.fields(kind.config_class)}
        own = set(kind.config_class.relocate(config)) <= names
        return kind.config_class.from_dict(config) if own else None
    return config if isinstance(config, kind.config_class) else None
