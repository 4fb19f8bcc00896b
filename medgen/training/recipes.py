"""Training from a recipe, by LightningCLI with defaults that make every run resumable."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.types import STEP_OUTPUT

from medgen.training.settings import PARSER_MODE


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that a killed run leaves the old one whole.

    Lightning writes to the system's temporary folder first; on another file system the rename becomes a copy.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write the checkpoint to ``path``, whole or not at all."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.part")
        try:
            torch.save(checkpoint, partial)
            partial.replace(target)
        except RuntimeError as error:  # torch's own, on a full disk
            raise OSError(f"{target} was not written; the one before is whole. Is the disk full? {error}") from error
        finally:
            partial.unlink(missing_ok=True)


class LastCheckpoint(ModelCheckpoint):
    """Saves ``checkpoints/last.ckpt`` under the trainer's root folder, every few epochs and on SIGTERM.

    The folder does not depend on a logger's version number, so ``--ckpt_path last`` finds it in the next run. Every run
    of a recipe has this callback; a recipe with short epochs names it in ``trainer.callbacks`` to save less often.

    Args:
        every_n_epochs: Epochs between checkpoints.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        super().__init__(
            filename=self.CHECKPOINT_NAME_LAST,
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=True,
            save_on_exception=True,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the folder, unless `RecipeCLI` did."""
        self.settle(trainer)
        super().setup(trainer, pl_module, stage)

    def settle(self, trainer: Trainer) -> None:
        """Set the folder; without it, Lightning looks for ``last`` in the logger's folder before `setup`."""
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle SIGTERM in place of Lightning.

        Lightning's handler communicates with the other processes at once; in the middle of an exchange of gradients,
        all of them would wait forever.
        """
        super().on_train_start(trainer, pl_module)
        self._asked_to_stop = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask_to_stop)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._asked_to_stop = True

    def _stop_together(self, trainer: Trainer) -> None:
        """Have Lightning stop all processes here once one of them got SIGTERM."""
        if trainer.strategy.reduce_boolean_decision(self._asked_to_stop, all=False):
            trainer._signal_connector.received_sigterm = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Stop after SIGTERM, once the accumulated gradients have made their step."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if _between_steps(trainer, pl_module):
            self._stop_together(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop after SIGTERM."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._stop_together(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, and stop after SIGTERM."""
        super().on_train_epoch_end(trainer, pl_module)
        self._stop_together(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save on SIGTERM, which Lightning raises between two batches.

        Other errors may come in the middle of a step, and accumulated gradients are in no checkpoint. A run resumed
        from there would differ from one that never stopped, so the last checkpoint stays.
        """
        if isinstance(exception, SIGTERMException) and _between_steps(trainer, pl_module):
            super().on_exception(trainer, pl_module, exception)


def _between_steps(trainer: Trainer, module: LightningModule) -> bool:
    """Check that no gradients are waiting for an optimiser step."""
    accumulated = max(trainer.accumulate_grad_batches, getattr(module, "accumulate_batches", 1))
    return trainer.is_last_batch or trainer.fit_loop.epoch_loop.batch_progress.current.ready % accumulated == 0


class RecipeCLI(LightningCLI):
    """LightningCLI for recipes, which name a module, a data module and a trainer with one seed for all three."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Pass the recipe's seed to the module and the data."""
        parser.link_arguments("seed_everything", "model.init_args.seed")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build a trainer with a `LastCheckpoint`, of the recipe if it names one."""
        own = self._get(self.config_init, "trainer").get("callbacks") or []
        if any(isinstance(callback, LastCheckpoint) for callback in own):
            self.trainer_defaults.pop("callbacks")
        trainer = super().instantiate_trainer(**kwargs)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, LastCheckpoint):
                callback.settle(trainer)
        return trainer

    def before_fit(self) -> None:
        """Warn of bfloat16 on a processor that only emulates it."""
        trainer = self.trainer
        slow = trainer.strategy.root_device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if slow and str(trainer.precision).startswith("bf16"):
            rank_zero_warn(
                f"trainer.precision is {trainer.precision}, but this processor has no bfloat16 instructions, so that "
                "training is many times slower than in float32; use --trainer.precision 32-true"
            )


_NO_CONCERN_OF_A_USER = (
    # A recipe's arguments come from `medgen.cli.main`, whether it was called by a shell or by Python.
    "LightningCLI's args parameter is intended to run from within Python",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # between Lightning and torch
    r"Found \d+ module\(s\) in eval mode at the start of training",  # the average, and feature networks
    "Checkpoint directory .* exists and is not empty",  # a resumed run's
    "The '.*_dataloader' does not have many workers",  # images come decoded from a memory map
)


def run(verb: str, args: Sequence[str]) -> None:
    """Run ``medgen fit``, ``validate`` or ``test`` with its arguments."""
    for message in _NO_CONCERN_OF_A_USER:
        warnings.filterwarnings("ignore", message=message)
    RecipeCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        trainer_defaults={
            "callbacks": [LastCheckpoint()],
            "plugins": {"class_path": "medgen.training.recipes.AtomicCheckpointIO"},
        },
        save_config_kwargs={"overwrite": True},
        # `medgen.cli` says what is wrong in a line; the usage fills a screen
        parser_kwargs={"exit_on_error": False, "parser_mode": PARSER_MODE},
        args=[verb, *args],
    )
