"""Short, silent trainings of judges on batches of several image sets."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from medgen.data.augmentation import Augmentation
from medgen.evaluation.sets import ImageSet

CLASSICAL = Augmentation(horizontal_flip=True, rotation_degrees=10, contrast=0.2)
"""Flips, rotations and changes of contrast: the classical augmentation that synthetic images are compared with."""


@dataclass(frozen=True, kw_only=True)
class Selected:
    """Selected rows (m,) of a set of images (n, C, H, W) in [0, 1] with targets; groups are their patients, (n,)."""

    images: ImageSet | Tensor
    rows: Tensor
    groups: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, positions: Tensor) -> Self:
        """Select some of the rows by their positions."""
        return replace(self, rows=self.rows[positions])

    def drawn(self, n: int, seed: int) -> Self:
        """Select `n` rows at random, or all if there are fewer."""
        return self.subset(torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:n])

    def read(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (b, C, H, W) and labels (b,) or (b, K), or masks (b, H, W), at some positions."""
        raise NotImplementedError


class Batches:
    """Batches of several sets mixed; each image comes once per epoch, with augmentation of images and masks."""

    def __init__(
        self, parts: Sequence[Selected], augment: Augmentation, *, steps: int, batch_size: int, seed: int
    ) -> None:
        self.parts = parts
        self.augment = augment
        self.steps = steps
        self.batch_size = batch_size
        self.seed = seed
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        random, total, needed = np.random.default_rng(self.seed), int(self.ends[-1]), self.steps * self.batch_size
        order = np.concatenate([random.permutation(total) for _ in range(-(-needed // total))])
        for start in range(0, needed, self.batch_size):
            positions = order[start : start + self.batch_size]
            yield self._batch(positions, np.arange(start, start + self.batch_size) // total)

    def _batch(self, positions: np.ndarray[Any, Any], epochs: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor]:
        home = np.searchsorted(self.ends, positions, side="right")
        offset = positions - np.r_[0, self.ends][home]
        read = [self.parts[part].read([int(at)]) for part, at in zip(home, offset, strict=True)]
        images, targets = torch.cat([image for image, _ in read]), torch.cat([target for _, target in read])
        masks = targets if targets.dim() == 3 else None
        images, masks = self.augment(images, masks, seed=self.seed, epochs=epochs, indices=positions)
        return images, targets if masks is None else masks


def one_cycle(module: LightningModule, *, lr: float, weight_decay: float, steps: int) -> Any:
    """AdamW on parameters that are not frozen; linear warm-up over a tenth of the steps, then decay to 0."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps + 1, pct_start=0.1)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit_quietly(module: LightningModule, batches: Iterable[Any], steps: int, *callbacks: Callback) -> None:
    """Train without logger, checkpoints, progress bar or notices: the user did not start this training."""
    device = module.device
    with _quiet():
        trainer = Trainer(
            max_steps=steps,
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=[device.index or 0] if device.type == "cuda" else 1,
            logger=False,
            callbacks=list(callbacks),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, batches)
    module.to(device)  # Lightning leaves it on the CPU


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
