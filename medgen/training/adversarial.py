"""Manual optimisation of a network and its discriminators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from medgen.losses.adversarial import ADVERSARIAL, AdversarialKind
from medgen.training.base import ReproducibleModule


def generator_loss(kind: AdversarialKind, logits: Tensor) -> Tensor:
    """Compute the mean adversarial loss of a generator from a discriminator's logits of its images, in float32."""
    loss = ADVERSARIAL[kind].generator(logits.float()).mean()
    # Mao et al. halve the squared distance; the published codes of CycleGAN and SPADE do not.
    return 2.0 * loss if kind == "least_squares" else loss


class AdversarialModule(ReproducibleModule):
    """Base of the modules that train a network and its discriminators, with accumulation and clipping of gradients.

    Args:
        seed: See `ReproducibleModule`.
        accumulate_batches: Batches whose gradients are added up before a step.
        clip_norm: Largest gradient norm; None does not clip.
        micro_batch: Images that `phase` passes together, to save memory; None for the whole batch.
        largest_gradient: Replaces infinite entries of gradients, as 0 replaces NaN; None leaves both.
    """

    def __init__(
        self,
        seed: int = 0,
        accumulate_batches: int = 1,
        clip_norm: float | None = None,
        micro_batch: int | None = None,
        largest_gradient: float | None = None,
    ) -> None:
        super().__init__(seed)
        self.automatic_optimization = False
        if accumulate_batches < 1:
            raise ValueError(f"accumulate_batches is {accumulate_batches}; use at least 1")
        self.accumulate_batches = accumulate_batches
        self.clip_norm = clip_norm
        self.micro_batch = micro_batch
        self.largest_gradient = largest_gradient

    @property
    def schedule_length(self) -> float:
        """Number of batches of the whole run; each is one step of every schedule."""
        trainer = self.trainer
        assert trainer.max_epochs is not None  # Lightning's default is a number
        total = math.inf if trainer.max_epochs == -1 else trainer.num_training_batches * trainer.max_epochs
        if trainer.max_steps != -1:  # which counts the steps of all optimisers
            total = min(total, trainer.max_steps * self.accumulate_batches / len(trainer.optimizers))
        return total

    def optimizer_pair(self) -> tuple[LightningOptimizer, LightningOptimizer | None]:
        """Get the optimisers of the network and of its discriminators; None where there are no discriminators."""
        optimizers = self.optimizers()
        if isinstance(optimizers, list):
            first, second = optimizers
            return first, second
        return optimizers, None

    def descend(self, optimizer: LightningOptimizer, loss: Tensor) -> None:
        """Make a backward pass and, every `accumulate_batches` batches and at the end of an epoch, a step."""
        self.manual_backward(loss / self.accumulate_batches)
        self._step(optimizer)

    def phase(
        self, optimizer: LightningOptimizer, loss: Callable[..., Tensor], images: Tensor, *others: Tensor | None
    ) -> None:
        """Descend on the mean of a loss over micro-batches; only weights of the optimiser get gradients.

        The loss is called with a part of the images (B, C, H, W) and of the other arguments, of B rows each or None.
        """
        size = self.micro_batch or len(images)
        starts = range(0, len(images), size)
        with self.toggled_optimizer(optimizer):
            for start in starts:
                rows = slice(start, start + size)
                part = loss(images[rows], *(None if other is None else other[rows] for other in others))
                self.manual_backward(part / (len(starts) * self.accumulate_batches))
            self._step(optimizer)

    def _step(self, optimizer: LightningOptimizer) -> None:
        """Make a step, unless gradients of further batches are to be added first."""
        # The last batch of an epoch also steps, so that no gradient is carried over a checkpoint.
        batch = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if batch % self.accumulate_batches and not self.trainer.is_last_batch:
            return
        if (limit := self.largest_gradient) is not None:
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    if weight.grad is not None:
                        torch.nan_to_num(weight.grad, nan=0.0, posinf=limit, neginf=-limit, out=weight.grad)
        if self.clip_norm is not None:
            self.clip_gradients(optimizer.optimizer, gradient_clip_val=self.clip_norm, gradient_clip_algorithm="norm")
        optimizer.step()
        optimizer.zero_grad()

    def step_schedule(self, position: int) -> None:
        """Advance the learning-rate schedule of one optimiser by one batch."""
        schedules = self.lr_schedulers()
        schedule = schedules[position] if isinstance(schedules, list) else schedules
        cast("torch.optim.lr_scheduler.LambdaLR", schedule).step()
