"""Callbacks that evaluate, draw and save during training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from torchvision.transforms.v2.functional import pil_to_tensor

from medgen.evaluation import feature_network
from medgen.evaluation.checks.variety import png_bytes
from medgen.evaluation.judges.networks import DEFAULT_NETWORK
from medgen.evaluation.run import check_metrics, evaluate, warn_of_bias
from medgen.evaluation.sets import known_and_positive, split_names
from medgen.generator import Generator
from medgen.images import image_grid, save_png
from medgen.nn.modes import same_modes

if TYPE_CHECKING:
    from PIL import Image
    from torch import nn

    from medgen.data.base import Batch, ImageDataModule
    from medgen.labels import Label, LabelSpace
    from medgen.translator import Translator


class _EveryFewEpochs(Callback):
    """Base of the callbacks that act every few epochs."""

    def __init__(self, every_n_epochs: int) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs is {every_n_epochs}; use at least 1")
        self.every_n_epochs = every_n_epochs

    def _is_due(self, trainer: Trainer) -> bool:
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0


class _SamplingCallback(_EveryFewEpochs):
    """Base of the callbacks that draw images."""

    def __init__(self, every_n_epochs: int, seed: int, options: Mapping[str, Any] | None) -> None:
        super().__init__(every_n_epochs)
        self.seed = seed
        self.options = dict(options or {})

    def _check_options(self, model: Generator | Translator) -> None:
        try:
            model.check_options(self.options)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{type(self).__name__}.options: {error}") from error


class EvaluateGenerator(_SamplingCallback):
    """Logs the metrics of the averaged generator, such as ``val/fd_efficientnet_lite0`` and ``val/precision``.

    A translator is evaluated on unseen images of each domain, translated to the other.

    Runs at the end of validation, so that `ModelCheckpoint` can monitor the numbers, or at the end of an epoch without
    validation. Processes share the sampling and log the same numbers. Random states and train and eval modes stay as
    they were.

    Args:
        metrics: Names of `medgen.evaluation.METRICS`; by default all for which there are enough images.
        every_n_epochs: Epochs between evaluations; ``trainer.validate`` always evaluates.
        n: Number of generated images; by default as many as real ones.
        split: Split of the real images, and first part of the logged names.
        network: Feature network; should not be one of the training losses.
        seed: Seed of the generated images in every evaluation.
        batch_size: Images drawn together.
        options: Sampling options of the family, such as ``{"steps": 50}``.
    """

    def __init__(
        self,
        metrics: Sequence[str] | None = None,
        every_n_epochs: int = 1,
        n: int | None = None,
        split: str = "val",
        network: str = DEFAULT_NETWORK,
        seed: int = 0,
        batch_size: int = 16,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.metrics = None if metrics is None else tuple(metrics)
        check_metrics(self.metrics or ())
        if n is not None and n < 2:
            raise ValueError(f"n is {n}; statistics need at least two images")
        split_names(split)  # raises if there is no such split
        super().__init__(every_n_epochs, seed, options)
        self.n = n
        self.split = split
        with isolate_rng():  # a recipe builds callbacks before the module, whose first weights must not depend on them
            self.network = feature_network(network)
        self.batch_size = batch_size
        self._last_epoch = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse settings that would fail epochs later, and warn if the network is one of the training losses."""
        if getattr(trainer, "datamodule", None) is None:
            raise ValueError(
                "EvaluateGenerator needs the real images of a data module; pass datamodule= to the trainer"
            )
        self._check_options(_published(pl_module))
        warn_of_bias(self.network.name, getattr(pl_module, "trained_with", ()))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate, unless this is the sanity check before training."""
        if not trainer.sanity_checking:
            self._evaluate_if_due(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate in epochs without validation."""
        if self._last_epoch != trainer.current_epoch:
            self._evaluate_if_due(trainer, pl_module)

    def _evaluate_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not self._is_due(trainer):
            return
        self._last_epoch = trainer.current_epoch
        with undisturbed(pl_module):
            scores = evaluate(
                _published(pl_module),
                cast("ImageDataModule", trainer.datamodule),  # type: ignore[attr-defined]
                self.metrics,
                n=self.n,
                split=self.split,
                seed=self.seed,
                network=self.network,
                batch_size=self.batch_size,
                **self.options,
            )
        # All processes have the same numbers already; sync_dist only tells Lightning so.
        numbers = {f"{self.split}/{name}": score.value for name, score in scores.items()}
        pl_module.log_dict(numbers, on_step=False, on_epoch=True, sync_dist=True)


class LogSamples(_SamplingCallback):
    """Logs a grid of images of the averaged generator, from the same seeds every few epochs.

    The grid goes to every logger that takes images (TensorBoard), else to ``samples/`` in the trainer's root folder.

    Args:
        every_n_epochs: Epochs between grids.
        n: Images in the grid.
        labels: One label per image; by default the classes or findings take turns.
        columns: Images per row.
        seed: Seed of the images.
        options: Sampling options of the family, such as ``{"steps": 50}``.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        n: int = 16,
        labels: Sequence[int | str | float | Sequence[int | str | float]] | None = None,
        columns: int = 8,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(every_n_epochs, seed, options)
        self.n = n
        self.labels = labels
        self.columns = columns

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse labels and options that the generator does not know before training starts."""
        generator = _generator(pl_module)
        self._check_options(generator)
        generator.label_space.resolve(self._label(generator), self.n)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and log, on one process."""
        if trainer.is_global_zero and self._is_due(trainer):
            with undisturbed(pl_module):
                show(trainer, "samples", self._draw(_generator(pl_module)))

    def _label(self, generator: Generator) -> Label:
        """Get the labels of the grid: those given, or each class or finding in turn."""
        space = generator.label_space
        if self.labels is not None or space.kind in ("none", "continuous"):
            return self.labels
        names = [space.names[i % len(space)] for i in range(self.n)]
        return names if space.kind == "single" else [[name] for name in names]

    def _draw(self, generator: Generator) -> Image.Image:
        label = self._label(generator)
        images = generator.sample(self.n, label, seed=self.seed, **self.options)
        captions = generator.label_space.describe(generator.label_space.resolve(label, self.n), self.n)
        scale = max(1, 128 // images.shape[-1])
        return image_grid(images, columns=self.columns, captions=captions if any(captions) else (), scale=scale)


class LogVariety(_SamplingCallback):
    """Logs the size of the mean image of each class as a PNG file, which shows mode collapse.

    The mean of varied images is blurred, and its file small. A file larger than that of real images means that the
    averaged generator repeats itself. Logged are ``train/mean_image_bytes:CLASS`` and, once,
    ``train/mean_image_bytes_real:CLASS`` of as many training images without augmentation.

    Args:
        every_n_epochs: Epochs between measurements.
        n: Images of each class; fewer if there are fewer real ones. A class with less than two is left out.
        seed: Seed of the images.
        options: Sampling options of the family, such as ``{"steps": 50}``.

    Source: Deng et al. 2009, "ImageNet: a large-scale hierarchical image database", section 3.2.
    """

    def __init__(
        self, every_n_epochs: int = 1, n: int = 64, seed: int = 0, options: Mapping[str, Any] | None = None
    ) -> None:
        if n < 2:
            raise ValueError(f"n is {n}; the mean of one image says nothing of variety")
        super().__init__(every_n_epochs, seed, options)
        self.n = n
        self._counts: dict[str, int] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse options that the generator does not know."""
        self._check_options(_generator(pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the real images."""
        data = cast("ImageDataModule", trainer.datamodule).dataset("train")  # type: ignore[attr-defined]
        space = _generator(pl_module).label_space
        for number, name in enumerate(_class_names(space)):
            rows = torch.arange(len(data))
            if name and data.labels is not None:
                rows = known_and_positive(data.labels, number)[1].nonzero()[:, 0]
            rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))[: self.n]]
            if len(rows) > 1:
                self._counts[name] = len(rows)
                mean = torch.stack([data[int(row)]["image"] for row in rows]).mean(0)
                self._log(pl_module, "mean_image_bytes_real", name, png_bytes(mean))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure drawn images, which are the same in all processes."""
        if not self._is_due(trainer):
            return
        generator = _generator(pl_module)
        with undisturbed(pl_module):
            for name, count in self._counts.items():
                label: Label = None if not name else name if generator.label_space.kind == "single" else [name]
                images = generator.sample(count, label, seed=self.seed, **self.options)
                self._log(pl_module, "mean_image_bytes", name, png_bytes(images.mean(0)))

    def _log(self, module: LightningModule, what: str, name: str, size: int) -> None:
        suffix = f":{name}" if name else ""
        for logger in module.loggers:
            logger.log_metrics({f"train/{what}{suffix}": float(size)}, module.global_step)


def _class_names(space: LabelSpace) -> tuple[str, ...]:
    """Name the classes or findings; one empty name where there are none."""
    return space.names if space.kind in ("single", "multi") else ("",)


class LogReconstructions(_EveryFewEpochs):
    """Logs a grid of the first images of the val split above their copies by an autoencoder.

    The grid goes where those of `LogSamples` go, in epochs with validation. The module maps images (B, C, H, W) in
    [0, 1] to their copies.

    Args:
        every_n_epochs: Epochs between grids.
        n: Images in the grid; no more than a batch has.
    """

    def __init__(self, every_n_epochs: int = 1, n: int = 8) -> None:
        super().__init__(every_n_epochs)
        self.n = n

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse an interval that does not meet epochs with validation."""
        validation = trainer.check_val_every_n_epoch or 1
        if self.every_n_epochs % validation:
            raise ValueError(
                f"LogReconstructions.every_n_epochs is {self.every_n_epochs}, but validation, which it draws from, "
                f"runs every {validation} epochs; use a multiple of that"
            )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw and log the first batch, on one process."""
        first = batch_idx == dataloader_idx == 0 and not trainer.sanity_checking
        if first and trainer.is_global_zero and self._is_due(trainer):
            images = batch["image"][: self.n]
            with undisturbed(pl_module):
                copies = pl_module(images).float().clamp(0, 1)
            scale = max(1, 128 // images.shape[-1])
            grid = image_grid(torch.cat([images, copies]).cpu(), columns=len(images), scale=scale)
            show(trainer, "reconstructions", grid)


class BestCheckpoint(ModelCheckpoint):
    """Keeps the epoch with the best value of a number as ``checkpoints/best.ckpt`` under the trainer's root folder.

    The run publishes it at its end. `lightning.pytorch.callbacks.EarlyStopping` on the same number ends the run.

    Args:
        monitor: A logged number, such as ``val/bits``.
        mode: Whether ``min`` or ``max`` is best.
    """

    def __init__(self, monitor: str, mode: Literal["min", "max"] = "min") -> None:
        super().__init__(monitor=monitor, mode=mode, filename="best", enable_version_counter=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the folder, which does not depend on a logger's version number."""
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)


def show(trainer: Trainer, name: str, picture: Image.Image) -> None:
    """Send a picture to every logger that takes images, or else to a folder ``name`` in the trainer's root folder."""
    experiments: list[Any] = [getattr(logger, "experiment", None) for logger in trainer.loggers]
    boards = [experiment for experiment in experiments if hasattr(experiment, "add_image")]
    for board in boards:
        board.add_image(name, pil_to_tensor(picture), trainer.global_step)
    if not boards:
        folder = Path(trainer.default_root_dir) / name
        folder.mkdir(parents=True, exist_ok=True)
        save_png(picture, folder / f"epoch_{trainer.current_epoch:05d}.png")


@contextlib.contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Restore random states and each submodule's train or eval mode afterwards."""
    with isolate_rng(), torch.no_grad(), same_modes(module):
        yield


def _published(module: LightningModule) -> Generator | Translator:
    """Get the model that a module publishes, or refuse a module without one, such as a first stage."""
    model: Generator | Translator | None = getattr(module, "published", None)
    if model is None:
        raise ValueError(
            f"{type(module).__name__} has no generator to sample from; use this callback with the stage that has"
        )
    return model


def _generator(module: LightningModule) -> Generator:
    """Get the generator that a module publishes, or refuse a module that publishes another model."""
    model = _published(module)
    if not isinstance(model, Generator):
        raise ValueError(f"{type(module).__name__} trains a translator, which draws no images; use EvaluateGenerator")
    return model
