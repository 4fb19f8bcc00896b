"""Training of CycleGAN on images of two domains that show no common cases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from medgen.data.base import Batch
from medgen.families.cyclegan.image_pool import ImagePool
from medgen.families.cyclegan.translator import Translator, TranslatorConfig
from medgen.losses.adversarial import ADVERSARIAL, AdversarialKind
from medgen.nn.patch_discriminator import patch_discriminator
from medgen.training.adversarial import AdversarialModule

FREE_LOGITS: Mapping[AdversarialKind, tuple[float, float]] = {
    "hinge": (1.0, -1.0),
    "logistic": (math.inf, -math.inf),
    "least_squares": (1.0, 0.0),
    "exponential": (math.inf, -math.inf),
    "wasserstein": (0.0, 0.0),
}
"""Logits of real and of translated images that cost a discriminator nothing."""


class CycleGANModule(AdversarialModule):
    """Trains both directions at once: what is translated and translated back must be as it was.

    Labels say which domain an image is of; with ``balanced: true`` in the data, batches hold about as many of each. The
    losses are sums of terms, each a mean over the images of one domain. A batch that lacks a domain, as every batch of
    one image does, trains all networks by the terms of the other. The run ends in a checkpoint folder ``published`` for
    `Translator.from_pretrained`.

    Args:
        config: What is trained and published.
        adversarial: Which game; ``least_squares`` is published.
        cycle_weight: Weight of the mean absolute error after both translations.
        identity_weight: Weight, times that of the cycle, of the error of images translated to the domain they are of;
            it keeps colours and contrasts.
        pool_size: Translated images that each discriminator sees again; 0 for new ones only.
        discriminator_width: Channels of the discriminators' first layer.
        discriminator_layers: Layers of the discriminators.
        lr: Learning rate of both Adam optimisers.
        betas: Adam's.
        decay_from: Share of the run from which on the learning rate falls linearly, to zero at its end; 0.5 is
            published, 1 keeps it constant, as it stays in a run without an end.
        accumulate_batches: Batches whose gradients are added up before a step.
        clip_norm: Largest gradient norm; None does not clip.
        seed: Seed of the run.

    Raises:
        ValueError: If an argument is out of range.

    Source: Zhu et al. 2017, "Unpaired image-to-image translation using cycle-consistent adversarial networks", eq. 3,
    sections 4 and 5.2.
    """

    published_weights: ClassVar[str] = "translator."

    def __init__(
        self,
        config: TranslatorConfig,
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
        self.translator = Translator(config)
        domains = range(len(config.label_names))
        self.discriminators = nn.ModuleList(
            patch_discriminator(config.channels, width=discriminator_width, layers=discriminator_layers)
            for _ in domains
        )
        self.pools = nn.ModuleList(ImagePool((config.channels, *config.image_size), pool_size) for _ in domains)

    def setup(self, stage: str) -> None:
        """Check the data against the config.

        Raises:
            ValueError: If they differ, training images of a domain are missing, or some of no domain would be drawn.
        """
        if stage != "fit":
            return
        self.check_data(self.config)
        data = self.datamodule
        labels = data.table.labels
        assert labels is not None  # label_kind is "single" in both
        labels = labels[data.table.rows("train")]
        names = self.config.label_names
        missing = [name for number, name in enumerate(names) if not (labels == number).any()]
        if missing:
            raise ValueError(
                f"the train split has no images of {' and '.join(map(repr, missing))}; a translator learns from images "
                f"of both domains, {' and '.join(map(repr, names))}: see that the table and its split have them"
            )
        unknown = int((labels < 0).sum())
        if unknown and not data.balanced:
            raise ValueError(
                f"{unknown} images of the train split have no label, so that their domain is unknown; leave them out "
                "of the table, or set balanced to true, which never draws them"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One step of both generators, then one of both discriminators."""
        optimizer, critic = self.optimizer_pair()
        assert critic is not None
        images, domains = batch["image"] * 2 - 1, batch["label"]
        # No branch of what follows skips a step: other processes, whose batches hold other domains, would wait for it.
        real = {here: images[domains == here] for here in (0, 1) if (domains == here).any()}
        with self.toggled_optimizer(optimizer):
            fake = {here: self.translator.to_domain[here](real[1 - here]) for here in (0, 1) if 1 - here in real}
            self.descend(optimizer, self.generator_loss(real, fake))
            self.step_schedule(0)
        with self.toggled_optimizer(critic):
            seen = {here: self.pools[here](part.detach()) for here, part in fake.items()}
            self.descend(critic, self.discriminator_loss(real, seen))
            self.step_schedule(1)

    def generator_loss(self, real: Mapping[int, Tensor], fake: Mapping[int, Tensor]) -> Tensor:
        """What both generators minimise.

        Args:
            real: Images by domain, (B, C, H, W) in [-1, 1], of the domains there are.
            fake: Those of the other domain translated to this, by domain.
        """
        game, weight = ADVERSARIAL[self.hparams["adversarial"]].generator, self.hparams["cycle_weight"]
        # Half of the squared distance, as Mao et al. write it; the published code takes the whole.
        scale = 2.0 if self.hparams["adversarial"] == "least_squares" else 1.0
        networks = self.translator.to_domain
        judged = [scale * game(self.discriminators[here](x).float()).mean() for here, x in fake.items()]
        back = [F.l1_loss(networks[1 - here](x).float(), real[1 - here]) for here, x in fake.items()]
        terms = {"adversarial": torch.stack(judged).sum(), "cycle": weight * torch.stack(back).sum()}
        if self.hparams["identity_weight"]:
            same = [F.l1_loss(networks[here](x).float(), x) for here, x in real.items()]
            terms["identity"] = weight * self.hparams["identity_weight"] * torch.stack(same).sum()
        loss = torch.stack(list(terms.values())).sum()
        self.log("train/loss_g", loss.detach(), prog_bar=True)
        self.log_dict({f"train/g_{name}": value.detach() for name, value in terms.items()})
        return loss

    def discriminator_loss(self, real: Mapping[int, Tensor], fake: Mapping[int, Tensor]) -> Tensor:
        """What both discriminators minimise, of real and of translated images by domain, of the domains there are."""
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
        """Begin the sum of errors and the number of images of each domain."""
        self._cycle_errors = torch.zeros(len(self.config.label_names), 2, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Error of unseen images after both translations."""
        networks = self.translator.to_domain
        for here in (0, 1):
            images = batch["image"][batch["label"] == here] * 2 - 1
            if len(images):
                back = networks[here](networks[1 - here](images)).float()
                self._cycle_errors[here, 0] += F.l1_loss(back, images) / 2 * len(images)
                self._cycle_errors[here, 1] += len(images)

    def on_validation_epoch_end(self) -> None:
        """Log its mean over each domain, in [0, 1], if any process has seen the domain."""
        errors: Tensor = self.trainer.strategy.reduce(self._cycle_errors, reduce_op="sum")
        for name, (error, count) in zip(self.config.label_names, errors, strict=True):
            if count:
                self.log(f"val/cycle:{name}", error / count, sync_dist=True)  # alike in all processes

    def configure_optimizers(self) -> Any:
        """Adam for both generators and for both discriminators."""
        settings = {"lr": self.hparams["lr"], "betas": self.hparams["betas"]}
        adams = [torch.optim.Adam(part.parameters(), **settings) for part in (self.translator, self.discriminators)]
        return [
            {"optimizer": adam, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(adam, self._learning_rate_factor)}
            for adam in adams
        ]

    def _learning_rate_factor(self, batches: int) -> float:
        """Share of the learning rate that is left after so many batches."""
        falling: float = 1 - self.hparams["decay_from"]
        if not batches or not falling:  # at the first batch the trainer does not know yet how many there are
            return 1.0
        return min(1.0, max(0.0, 1 - batches / self.schedule_length) / falling)

    @rank_zero_only
    def on_fit_end(self) -> None:
        """Write the translator as a checkpoint folder."""
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.translator.save_pretrained(Path(self.trainer.default_root_dir) / "published")
