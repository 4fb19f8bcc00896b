"""Training of CycleGAN on unpaired images of two domains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medgen.data.base import Batch
from medgen.families.cyclegan.image_pool import ImagePool
from medgen.families.cyclegan.translator import CycleGANConfig, CycleGANTranslator
from medgen.losses.adversarial import ADVERSARIAL, AdversarialKind
from medgen.nn.patch_discriminator import patch_discriminator
from medgen.training.adversarial import AdversarialModule, generator_loss
from medgen.training.translation import TranslatorModule

FREE_LOGITS: Mapping[AdversarialKind, tuple[float, float]] = {
    "hinge": (1.0, -1.0),
    "logistic": (math.inf, -math.inf),
    "least_squares": (1.0, 0.0),
    "exponential": (math.inf, -math.inf),
    "wasserstein": (0.0, 0.0),
}
"""Logits of real and of translated images at which the loss of a discriminator is smallest."""


class CycleGANModule(AdversarialModule, TranslatorModule[CycleGANTranslator]):
    """Trains both directions at once, so that an image translated and translated back stays the same.

    Labels name the domain of an image; with ``balanced: true`` in the data, batches hold about as many images of each.
    Losses are sums of means over the images of one domain; a batch without images of a domain trains by the terms of
    the other.

    Args:
        config: The config of the published model.
        adversarial: Adversarial loss; ``least_squares`` is published.
        cycle_weight: Weight of the mean absolute error after both translations.
        identity_weight: Weight, times `cycle_weight`, of the error of images translated to their own domain, which
            keeps colours and contrasts.
        pool_size: Stored translated images for each discriminator; 0 for new ones only.
        discriminator_width: Channels of the discriminators' first layer.
        discriminator_layers: Layers of the discriminators.
        lr: Learning rate of both Adam optimisers.
        betas: Decay rates of Adam.
        decay_from: Share of the run after which the learning rate falls linearly to 0 at the end; 0.5 is published, 1
            keeps it constant, as does a run without an end.
        accumulate_batches: Batches whose gradients are added up before a step.
        clip_norm: Largest gradient norm; None does not clip.
        seed: Seed of the run.

    Raises:
        ValueError: If an argument is out of range.

    Source: Zhu et al. 2017, "Unpaired image-to-image translation using cycle-consistent adversarial networks", eq. 3,
    sections 4 and 5.2.
    """

    def __init__(
        self,
        config: CycleGANConfig,
        adversarial: AdversarialKind = "least_squares",
        cycle_weight: float = 10.0,
        identity_weight: float = 0.5,
        pool_size: int = 50,
        discriminator_width: int = 64,
        discriminator_layers: int = 3,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        decay_from: float = 0.5,
        accumulate_batches: int = 1,
        clip_norm: float | None = None,
        seed: int = 0,
    ) -> None:
        if adversarial not in ADVERSARIAL:
            raise ValueError(f"adversarial is {adversarial!r}; use one of {', '.join(ADVERSARIAL)}")
        if not 0 <= decay_from <= 1:
            raise ValueError(f"decay_from is {decay_from}; use 0 to 1, a share of the run")
        super().__init__(seed, accumulate_batches, clip_norm)
        self.save_hyperparameters()
        self.config = config
        self.translator = CycleGANTranslator(config)
        domains = range(len(config.label_names))
        self.discriminators = nn.ModuleList(
            patch_discriminator(config.channels, width=discriminator_width, layers=discriminator_layers)
            for _ in domains
        )
        self.pools = nn.ModuleList(ImagePool((config.channels, *config.image_size), pool_size) for _ in domains)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Make a step of both generators, then one of both discriminators."""
        optimizer, discriminator = self.optimizer_pair()
        assert discriminator is not None
        images, domains = batch["image"] * 2 - 1, batch["label"]
        # Every batch makes all steps: otherwise other processes, whose batches hold other domains, would wait.
        real = {here: images[domains == here] for here in (0, 1) if (domains == here).any()}
        with self.toggled_optimizer(optimizer):
            fake = {here: self.translator.to_domain[here](real[1 - here]) for here in (0, 1) if 1 - here in real}
            self.descend(optimizer, self.generator_loss(real, fake))
            self.step_schedule(0)
        with self.toggled_optimizer(discriminator):
            seen = {here: self.pools[here](part.detach()) for here, part in fake.items()}
            self.descend(discriminator, self.discriminator_loss(real, seen))
            self.step_schedule(1)

    def generator_loss(self, real: Mapping[int, Tensor], fake: Mapping[int, Tensor]) -> Tensor:
        """Compute the loss of both generators from real and translated images (B, C, H, W) in [-1, 1] by domain."""
        kind, weight = self.hparams["adversarial"], self.hparams["cycle_weight"]
        networks = self.translator.to_domain
        judged = [generator_loss(kind, self.discriminators[here](x)) for here, x in fake.items()]
        back = [F.l1_loss(networks[1 - here](x).float(), real[1 - here]) for here, x in fake.items()]
        terms = {"adversarial": torch.stack(judged).sum(), "cycle": weight * torch.stack(back).sum()}
        if self.hparams["identity_weight"]:
            same = [F.l1_loss(networks[here](x).float(), x) for here, x in real.items()]
            terms["identity"] = weight * self.hparams["identity_weight"] * torch.stack(same).sum()
        loss = torch.stack(list(terms.values())).sum()
        self.log_training("loss_g", loss, terms, prefix="g_")
        return loss

    def discriminator_loss(self, real: Mapping[int, Tensor], fake: Mapping[int, Tensor]) -> Tensor:
        """Compute the loss of both discriminators from real and translated images by domain."""
        kind: AdversarialKind = self.hparams["adversarial"]
        judged = []
        for here, discriminator in enumerate(self.discriminators):
            logits = [
                discriminator(part[here]).float() if here in part else torch.tensor(free, device=self.device)
                for part, free in zip((real, fake), FREE_LOGITS[kind], strict=True)
            ]
            judged.append(ADVERSARIAL[kind].discriminator(*logits))
        loss = torch.stack(judged).sum()
        self.log("train/loss_d", loss.detach(), prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Reset the sum of errors and the number of images of each domain."""
        self._cycle_errors = torch.zeros(len(self.config.label_names), 2, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add up the errors of unseen images after both translations."""
        networks = self.translator.to_domain
        for here in (0, 1):
            images = batch["image"][batch["label"] == here] * 2 - 1
            if len(images):
                back = networks[here](networks[1 - here](images)).float()
                self._cycle_errors[here, 0] += F.l1_loss(back, images) / 2 * len(images)
                self._cycle_errors[here, 1] += len(images)

    def on_validation_epoch_end(self) -> None:
        """Log the mean error of each domain, in [0, 1], if any process has images of it."""
        errors: Tensor = self.trainer.strategy.reduce(self._cycle_errors, reduce_op="sum")
        for name, (error, count) in zip(self.config.label_names, errors, strict=True):
            if count:
                self.log(f"val/cycle:{name}", error / count, sync_dist=True)  # alike in all processes

    def configure_optimizers(self) -> Any:
        """Build Adam for both generators and for both discriminators."""
        settings = {"lr": self.hparams["lr"], "betas": self.hparams["betas"]}
        adams = [torch.optim.Adam(part.parameters(), **settings) for part in (self.translator, self.discriminators)]
        return [
            {"optimizer": adam, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(adam, self._learning_rate_factor)}
            for adam in adams
        ]

    def _learning_rate_factor(self, batches: int) -> float:
        """Compute the share of the learning rate after a number of batches."""
        falling: float = 1 - self.hparams["decay_from"]
        if not batches or not falling:  # before the first batch, the length of the run is unknown
            return 1.0
        return min(1.0, max(0.0, 1 - batches / self.schedule_length) / falling)
