"""Bases of every training module: repeatable steps, and an EMA copy to publish."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from medgen.generator import load_strictly, part_of
from medgen.noise import stream_seed

if TYPE_CHECKING:
    from medgen.data.base import Batch, ImageDataModule
    from medgen.generator import Generator, GeneratorConfig

_Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]
LearningRateShape = Literal["constant", "cosine"]


class ReproducibleModule(LightningModule):
    """A LightningModule whose steps depend on (seed, rank, batch number) only.

    Every random draw of a step comes from a state set at its start, so that a run that was killed and resumed goes
    through the same numbers as one that never stopped, whatever callbacks drew in between.

    Args:
        seed: Seed of the run's noise; the order of the data has the data module's own.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))
        self.batches_seen: Tensor

    @property
    def datamodule(self) -> ImageDataModule:
        """The data the trainer was given."""
        return cast("ImageDataModule", self.trainer.datamodule)  # type: ignore[attr-defined]

    def configure_model(self) -> None:
        """Use the memory layout in which convolutions run fastest, on CPUs and GPUs alike."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the step."""
        torch.manual_seed(stream_seed("step", self.seed, self.global_rank, int(self.batches_seen)))

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Batch, batch_idx: int) -> None:
        """Count the batch; `global_step` would count every optimiser's step."""
        self.batches_seen += 1

    def check_data(self, config: GeneratorConfig) -> None:
        """Refuse data that the config does not describe, before hours are spent on it; warn of labels without images.

        Raises:
            ValueError: Naming every setting that differs and both values.
        """
        data = self.datamodule
        pairs = {
            "image_size": (config.image_size, data.image_size),
            "channels": (config.channels, data.channels),
            "intensity_window": (config.intensity_window, data.intensity_window),
            "intensity_unit": (config.intensity_unit, data.intensity_unit),
        }
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

    @property
    def schedule_length(self) -> float:
        """Steps that a learning-rate schedule takes in the whole run; infinite where the run has no end."""
        return self.trainer.estimated_stepping_batches

    def scheduled(self, optimizer: torch.optim.Optimizer, *, shape: LearningRateShape, warmup: int) -> Any:
        """An optimiser with its learning-rate schedule, as `configure_optimizers` returns it.

        Args:
            optimizer: The optimiser.
            shape: ``constant``, or ``cosine`` down to zero at the end of training.
            warmup: Optimiser steps of linear rise from zero.
        """

        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / max(1, warmup))
            # Asked for the length of the run before it has started, Lightning makes the training loader too early, and
            # a resumed run would begin its epoch anew.
            if shape == "constant" or step == 0:
                return rise
            return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.schedule_length)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class GenerativeModule(ReproducibleModule):
    """Base of the modules that train a Generator; keeps its EMA copy, which is what gets evaluated and published.

    Args:
        generator: The network to train.
        seed: See `ReproducibleModule`.
        ema_decay: Decay per step: a number, or a function of the number of steps made.
        **others: Arguments of `medgen.training.adversarial.AdversarialModule`, for modules that are both.
    """

    def __init__(
        self,
        generator: Generator,
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

    @property
    def published(self) -> Generator:
        """The averaged generator: what validation, evaluation and the Hub use."""
        return cast("Generator", self.ema.module)

    @property
    def trained_with(self) -> tuple[str, ...]:
        """Feature networks of the losses of this stage and of what it started from, which must not judge the result."""
        return self.published.about.trained_with

    @trained_with.setter
    def trained_with(self, networks: Iterable[str]) -> None:
        for generator in (self.generator, self.published):
            generator.about = dataclasses.replace(generator.about, trained_with=tuple(networks))

    @property
    def publishable(self) -> bool:
        """Whether the generator is whole after this training; a stage that leaves a part to the next one says no."""
        return True

    def published_files(self, state: Mapping[str, Tensor]) -> dict[str, bytes]:
        """Files by name that go into the checkpoint folder beside the generator, for those who train it further.

        Args:
            state: Weights of this module, of the epoch that is published.
        """
        return {}

    def setup(self, stage: str) -> None:
        """Check the data against the config."""
        if stage == "fit":
            self.check_data(self.generator.config)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note whether `medgen convert` may make a checkpoint folder of it, and what that must know."""
        checkpoint["publishable"] = self.publishable
        about = self.published.about
        checkpoint["trained_with"] = list(about.trained_with)
        checkpoint["origin"] = {"licence": about.licence, "source": about.source}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up again what is known of the start, which a resumed run does not read again."""
        self.trained_with = dict.fromkeys((*checkpoint.get("trained_with", ()), *self.trained_with))
        for generator in (self.generator, self.published):
            generator.about = dataclasses.replace(generator.about, **checkpoint.get("origin", {}))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Note how many optimiser steps there were."""
        super().on_train_batch_start(batch, batch_idx)
        self._steps_before = self.global_step

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Batch, batch_idx: int) -> None:
        """Move the average, if gradients were not merely accumulated; buffers are copied."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.global_step > self._steps_before:
            self.ema.update_parameters(self.generator)

    @rank_zero_only
    def on_fit_end(self) -> None:
        """Write the averaged generator as a checkpoint folder, ready for `medgen.load`, if it is `publishable`.

        It is the best one where a `ModelCheckpoint` monitors a number, else the last.

        Not in `on_train_end`, which a run that was killed right after its last epoch would never reach again.
        """
        if self.trainer.fast_dev_run or not self.publishable:  # type: ignore[attr-defined]
            return
        state: dict[str, Tensor] = self.state_dict()
        if best := self._best_checkpoint():
            state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
            load_strictly(self.published, part_of(state, "ema.module."), where=best)
        folder = Path(self.trainer.default_root_dir) / "published"
        self.published.save_pretrained(folder, extra_files=self.published_files(state))

    def _best_checkpoint(self) -> str:
        """Path of the checkpoint with the best of a monitored number; empty where none is monitored."""
        callbacks = [found for found in self.trainer.checkpoint_callbacks if isinstance(found, ModelCheckpoint)]
        return next((found.best_model_path for found in callbacks if found.monitor is not None), "")


def drop_labels(label: Tensor, probability: float) -> Tensor:
    """Labels (B,) or (B, K) with some images' turned into "no label", drawn from torch's global random state."""
    dropped = torch.rand(len(label), device=label.device) < probability
    if label.is_floating_point():
        return label.masked_fill(dropped[:, None], torch.nan)
    return label.masked_fill(dropped, -1)
