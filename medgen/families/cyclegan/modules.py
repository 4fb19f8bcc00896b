"""Training of CycleGAN on images of two domains that show no common cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from medgen.data.base import Batch
from medgen.families.cyclegan.image_pool import ImagePool
from medgen.families.cyclegan.networks import PatchDiscriminator
from medgen.families.cyclegan.translator import Translator, TranslatorConfig
from medgen.losses.adversarial import ADVERSARIAL, AdversarialKind
from medgen.training import AdversarialModule


class CycleGANModule(AdversarialModule):
    """Trains both directions at once: what is translated and translated back must be as it was.

    A batch holds images of both domains, as their labels say; with ``balanced: true`` in the data about as many of
    each. The run ends in a checkpoint folder ``published`` for `Translator.from_pretrained`.

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
        config: TranslatorConfig,
        adversarial: AdversarialKind = "least_squares",
        cycle_weight: float = 10.0,
        identity_weight: float = 0.5,
        pool_size: int = 50,
        discriminator_width: int = 64,
        discriminator_layers: int = 3,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        accumulate_batches: int = 1,
        clip_norm: float | None = None,
        seed: int = 0,
    ) -> None:
        if adversarial not in ADVERSARIAL:
            raise ValueError(f"adversarial is {adversarial!r}; use one of {', '.join(ADVERSARIAL)}")
        super().__init__(seed, accumulate_batches, clip_norm)
        self.save_hyperparameters()
        self.config = config
        self.translator = Translator(config)
        domains = range(len(config.label_names))
        self.discriminators = nn.ModuleList(
            PatchDiscriminator(config.channels, width=discriminator_width, layers=discriminator_layers) for _ in domains
        )
        self.pools = nn.ModuleList(ImagePool((config.channels, *config.image_size), pool_size) for _ in domains)

    def setup(self, stage: str) -> None:
        """Check the data against the config."""
        if stage == "fit":
            self.check_data(self.config)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One step of both generators, then one of both discriminators."""
        optimizer, critic = self.optimizer_pair()
        assert critic is not None
        images = batch["image"] * 2 - 1
        real = [images[batch["label"] == number] for number in range(len(self.config.label_names))]
        if not all(map(len, real)):
            return  # by chance; images of one domain say nothing of the other
        with self.toggled_optimizer(optimizer):
            fake = [self.translator.to_domain[here](real[1 - here]) for here in (0, 1)]
            self.descend(optimizer, self.generator_loss(real, fake))
        with self.toggled_optimizer(critic):
            seen = [pool(part.detach()) for pool, part in zip(self.pools, fake, strict=True)]
            self.descend(critic, self.discriminator_loss(real, seen))

    def generator_loss(self, real: list[Tensor], fake: list[Tensor]) -> Tensor:
        """What both generators minimise, of real images of both domains and of those translated to each."""
        game, weight = ADVERSARIAL[self.hparams["adversarial"]].generator, self.hparams["cycle_weight"]
        # Half of the squared distance, as Mao et al. write it; the published code takes the whole.
        scale = 2.0 if self.hparams["adversarial"] == "least_squares" else 1.0
        networks = self.translator.to_domain
        judged = [scale * game(d(x).float()).mean() for d, x in zip(self.discriminators, fake, strict=True)]
        back = [F.l1_loss(networks[1 - here](fake[here]).float(), real[1 - here]) for here in (0, 1)]
        terms = {"adversarial": torch.stack(judged).sum(), "cycle": weight * torch.stack(back).sum()}
        if self.hparams["identity_weight"]:
            same = [F.l1_loss(networks[here](real[here]).float(), real[here]) for here in (0, 1)]
            terms["identity"] = weight * self.hparams["identity_weight"] * torch.stack(same).sum()
        loss = torch.stack(list(terms.values())).sum()
        self.log("train/loss_g", loss.detach(), prog_bar=True)
        self.log_dict({f"train/g_{name}": value.detach() for name, value in terms.items()})
        return loss

    def discriminator_loss(self, real: list[Tensor], fake: list[Tensor]) -> Tensor:
        """What both discriminators minimise."""
        game = ADVERSARIAL[self.hparams["adversarial"]].discriminator
        parts = zip(self.discriminators, real, fake, strict=True)
        loss = torch.stack([game(d(x).float(), d(y).float()) for d, x, y in parts]).sum()
        self.log("train/loss_d", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Error of unseen images after both translations, in [0, 1]."""
        networks = self.translator.to_domain
        for here in (0, 1):
            images = batch["image"][batch["label"] == here] * 2 - 1
            if len(images):
                back = networks[here](networks[1 - here](images)).float()
                error = (back - images).abs().mean() / 2
                self.log(f"val/cycle:{self.config.label_names[here]}", error, batch_size=len(images), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Adam for both generators and for both discriminators."""
        settings = {"lr": self.hparams["lr"], "betas": self.hparams["betas"]}
        return [torch.optim.Adam(part.parameters(), **settings) for part in (self.translator, self.discriminators)]

    @rank_zero_only
    def on_fit_end(self) -> None:
        """Write the translator as a checkpoint folder."""
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.translator.save_pretrained(Path(self.trainer.default_root_dir) / "published")
