"""Bases of the training modules: repeatable steps, logging, and an EMA copy to publish."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeAlias, TypeVar, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from medgen.checkpoint import DISCRIMINATOR_FILE
from medgen.generator import Generator
from medgen.noise import stream_seed
from medgen.published import PublishedModel, load_strictly, part_of

if TYPE_CHECKING:
    from medgen.config import ModelConfig
    from medgen.data.base import Batch, ImageDataModule, Split

_Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]
LearningRateShape = Literal["constant", "cosine"]
M = TypeVar("M", bound=PublishedModel)
G = TypeVar("G", bound=Generator)


class ReproducibleModule(LightningModule):
    """A LightningModule whose steps depend on (seed, rank, batch number) only.

    The random state is set at the start of every step, so that a resumed run draws the same numbers as one that never
    stopped, whatever callbacks drew in between.

    Args:
        seed: Seed of the run's noise; the data module has its own seed for the order of the data.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))
        self.batches_seen: Tensor

    @property
    def datamodule(self) -> ImageDataModule:
        """Data module of the trainer."""
        return cast("ImageDataModule", self.trainer.datamodule)  # type: ignore[attr-defined]

    def configure_model(self) -> None:
        """Use the memory layout in which convolutions run fastest."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the step."""
        torch.manual_seed(stream_seed("step", self.seed, self.global_rank, int(self.batches_seen)))

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Batch, batch_idx: int) -> None:
        """Count the batch; `global_step` would count every optimiser's step."""
        self.batches_seen += 1

    def check_data(self, config: ModelConfig) -> None:
        """Refuse data that differ from the config, and warn of labels without training images.

        Raises:
            ValueError: Naming every setting that differs and both values.
        """
        data = self.datamodule
        shared = ("image_size", "channels", "intensity_window", "intensity_unit")
        pairs = {name: (getattr(config, name), getattr(data, name)) for name in shared}
        if config.label_kind != "none":  # an unconditional model may train on labelled data
            pairs["label_kind"] = (config.label_kind, data.label_space.kind)
            pairs["label_names"] = (config.label_names, data.label_space.names)
        differ = [f"{k}: model.config has {a!r}, data has {b!r}" for k, (a, b) in pairs.items() if a != b]
        if differ:
            raise ValueError("the recipe's model and data disagree; " + "; ".join(differ))
        if config.label_kind != "none" and (unseen := data.unseen_labels):
            rank_zero_warn(
                f"there is no training image of {', '.join(map(repr, unseen))}, so the model will not learn what that "
                "looks like, though it can be asked for it; leave it out of the labels, or give images of it"
            )

    def log_training(self, name: str, loss: Tensor, terms: Mapping[str, Tensor], prefix: str = "") -> None:
        """Log a training loss as ``train/NAME``, which the progress bar shows, and its terms under prefixed names."""
        self.log(f"train/{name}", loss.detach(), prog_bar=True)
        self.log_dict({f"train/{prefix}{term}": value.detach() for term, value in terms.items()})

    @property
    def schedule_length(self) -> float:
        """Number of steps of a learning-rate schedule in the whole run; infinite where the run has no end."""
        return self.trainer.estimated_stepping_batches

    def scheduled(self, optimizer: torch.optim.Optimizer, *, shape: LearningRateShape, warmup: int) -> Any:
        """Add a learning-rate schedule to an optimiser, for `configure_optimizers`.

        Args:
            optimizer: The optimiser.
            shape: ``constant``, or ``cosine`` down to zero at the end of training.
            warmup: Optimiser steps of linear rise from zero.
        """

        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / max(1, warmup))
            # Before the first step, the length of the run must not be read: Lightning would make the training loader
            # too early, and a resumed run would start its epoch again.
            if shape == "constant" or step == 0:
                return rise
            return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.schedule_length)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class MeasuringModule(ReproducibleModule):
    """Base of the modules that measure unseen images, in validation and in testing alike."""

    @abstractmethod
    def measure(self, split: Split, batch: Batch, batch_idx: int) -> None:
        """Log numbers of a batch of the split ``val`` or ``test``, with `log_unseen`."""

    def log_unseen(self, split: Split, numbers: Mapping[str, Tensor], count: int) -> None:
        """Log means over `count` images as ``SPLIT/NAME``."""
        named = {f"{split}/{name}": number for name, number in numbers.items()}
        self.log_dict(named, batch_size=count, sync_dist=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the numbers of `measure`."""
        self.measure("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the numbers of `measure` on the test split."""
        self.measure("test", batch, batch_idx)


class PublishingModule(ReproducibleModule, Generic[M]):
    """Base of the modules that train a model to publish; a run ends in a checkpoint folder.

    Attributes:
        published_weights: Prefix of the published model's weights in a training checkpoint.
    """

    published_weights: ClassVar[str]

    @property
    def published(self) -> M:
        """Model that validation, evaluation and the Hub use."""
        return cast("M", self.get_submodule(self.published_weights.removesuffix(".")))

    @property
    def trained_with(self) -> tuple[str, ...]:
        """Feature networks of the losses so far, earlier stages included; they must not judge the result."""
        return self.published.about.trained_with

    @property
    def publishable(self) -> bool:
        """Whether the model is complete after this stage."""
        return True

    def published_files(self, state: Mapping[str, Tensor]) -> dict[str, bytes]:
        """Collect further files of the checkpoint folder: the discriminators in the state of the published epoch."""
        weights = {name: weight.cpu().contiguous() for name, weight in part_of(state, "discriminator.").items()}
        return {DISCRIMINATOR_FILE: save(weights)} if weights else {}

    def setup(self, stage: str) -> None:
        """Check the data against the config."""
        if stage == "fit":
            self.check_data(self.published.config)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what `medgen convert` must know to make a checkpoint folder of it."""
        checkpoint["publishable"] = self.publishable
        about = self.published.about
        checkpoint["trained_with"] = list(about.trained_with)
        checkpoint["origin"] = {"licence": about.licence, "source": about.source}

    @rank_zero_only
    def on_fit_end(self) -> None:
        """Write the published model as a checkpoint folder for `medgen.load`, if it is `publishable`.

        The best one is written where a `ModelCheckpoint` monitors a number, else the last.
        """
        # Not in `on_train_end`: a run that was killed after its last epoch and resumed does not call it.
        if self.trainer.fast_dev_run or not self.publishable:  # type: ignore[attr-defined]
            return
        state: dict[str, Tensor] = self.state_dict()
        if best := self._best_checkpoint():
            state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
            load_strictly(self.published, part_of(state, self.published_weights), where=best)
        folder = Path(self.trainer.default_root_dir) / "published"
        self.published.save_pretrained(folder, extra_files=self.published_files(state))

    def _best_checkpoint(self) -> str:
        """Find the best checkpoint; an empty path where no number is monitored."""
        callbacks = [found for found in self.trainer.checkpoint_callbacks if isinstance(found, ModelCheckpoint)]
        return next((found.best_model_path for found in callbacks if found.monitor is not None), "")


class GenerativeModule(PublishingModule[G], Generic[G]):
    """Base of the modules that train a generator and keep its EMA copy, which is evaluated and published.

    Args:
        generator: The network to train.
        seed: See `ReproducibleModule`.
        ema_decay: Decay per step: a number, or a function of the number of steps made.
        **others: Arguments of `AdversarialModule`, for modules that are both.
    """

    published_weights = "ema.module."
    generator: G

    def __init__(
        self,
        generator: G,
        *,
        seed: int = 0,
        ema_decay: float | Callable[[int], float] = 0.999,
        **others: Any,
    ) -> None:
        super().__init__(seed, **others)
        self.generator = generator
        decay = ema_decay if callable(ema_decay) else lambda step: ema_decay

        def average(averaged: _Tensors, current: _Tensors, step: Tensor | int) -> None:
            torch._foreach_lerp_(averaged, current, 1 - decay(int(step)))

        self.ema = AveragedModel(generator, multi_avg_fn=average).requires_grad_(requires_grad=False)
        self.ema.eval()

    def note(self, **facts: Any) -> None:
        """Set fields of `medgen.checkpoint.About` of the generator and of its average."""
        for generator in (self.generator, self.published):
            generator.about = dataclasses.replace(generator.about, **facts)

    def restart_average(self) -> None:
        """Make the average equal to the generator, once that has the weights training starts from."""
        self.published.load_state_dict(self.generator.state_dict())
        self.published.about = self.generator.about

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the facts on the starting weights, which a resumed run does not load again."""
        networks = dict.fromkeys((*checkpoint.get("trained_with", ()), *self.trained_with))
        self.note(trained_with=tuple(networks), **checkpoint.get("origin", {}))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the step, and remember the number of optimiser steps so far."""
        super().on_train_batch_start(batch, batch_idx)
        self._steps_before = self.global_step

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Batch, batch_idx: int) -> None:
        """Update the average, if an optimiser made a step; buffers are copied."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.global_step > self._steps_before:
            self.ema.update_parameters(self.generator)


class LossModule(GenerativeModule[G], MeasuringModule, Generic[G]):
    """Base of the modules that train a generator by one loss; a subclass writes `loss`.

    Attributes:
        headline: Number that the progress bar shows.

    Args:
        generator: The network to train.
        lr: Learning rate of AdamW.
        weight_decay: Its weight decay.
        lr_shape: ``constant``, or ``cosine`` down to 0 at the end.
        warmup: Optimiser steps of linear rise.
        seed: See `ReproducibleModule`.
        ema_decay: See `GenerativeModule`.
    """

    headline: ClassVar[str] = "loss"

    def __init__(
        self,
        generator: G,
        *,
        lr: float,
        weight_decay: float = 0.0,
        lr_shape: LearningRateShape = "constant",
        warmup: int = 0,
        seed: int = 0,
        ema_decay: float | Callable[[int], float] = 0.999,
    ) -> None:
        super().__init__(generator, seed=seed, ema_decay=ema_decay)
        self._adamw: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        self._schedule: dict[str, Any] = {"shape": lr_shape, "warmup": warmup}

    @abstractmethod
    def loss(self, generator: G, batch: Batch, split: Split) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss, and further numbers to log.

        Args:
            generator: The generator in training, or its average for unseen images.
            batch: A batch of the split.
            split: ``train``, ``val`` or ``test``; on the latter two the numbers should not depend on chance.

        Returns:
            The loss, and numbers by name; one called ``loss`` is logged in place of the loss.
        """

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute and log the loss of one batch."""
        loss, terms = self.loss(self.generator, batch, "train")
        for name, value in ({"loss": loss} | terms).items():
            self.log(f"train/{name}", value.detach(), prog_bar=name == self.headline)
        return loss

    def measure(self, split: Split, batch: Batch, batch_idx: int) -> None:
        """Log the loss of the average on unseen images; beside the training loss it shows overfitting."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed("unseen", self.seed, self.global_rank, batch_idx))
            loss, terms = self.loss(self.published, batch, split)
        self.log_unseen(split, {"loss": loss} | terms, len(batch["index"]))

    def configure_optimizers(self) -> Any:
        """Build AdamW for the weights that require gradients."""
        trained = [weight for weight in self.generator.parameters() if weight.requires_grad]
        return self.scheduled(torch.optim.AdamW(trained, **self._adamw), **self._schedule)


def drop_labels(label: Tensor, probability: float) -> Tensor:
    """Replace some of the labels (B,) or (B, K) by "no label", drawn from torch's global random state."""
    dropped = torch.rand(len(label), device=label.device) < probability
    if label.is_floating_point():
        return label.masked_fill(dropped[:, None], torch.nan)
    return label.masked_fill(dropped, -1)
