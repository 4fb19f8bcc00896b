"""Training of StyleGAN2 with adaptive discriminator augmentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from medgen.data.base import Batch, Split
from medgen.families.stylegan2.config import StyleGAN2Config
from medgen.families.stylegan2.generator import StyleGAN2Generator
from medgen.families.stylegan2.networks import Discriminator
from medgen.families.stylegan2.presets import auto_ema_kimg, auto_gamma
from medgen.families.stylegan2.transfer import start_from
from medgen.losses.adversarial import logistic_discriminator, logistic_generator
from medgen.losses.gradient import path_lengths, r1_penalty
from medgen.nn.label_vector import label_vector
from medgen.training.ada import AugmentPipe
from medgen.training.adversarial import AdversarialModule
from medgen.training.base import GenerativeModule, MeasuringModule, drop_labels
from medgen.training.ema import half_life_decay as ema_decay

_W_AVG_RATE = 0.005
_LARGEST_GRADIENT = 1e5


class StyleGAN2Module(GenerativeModule[StyleGAN2Generator], AdversarialModule, MeasuringModule):
    """Trains a generator against a discriminator that sees augmented images only.

    Both are regularised lazily: only every few batches, with a weight that compensates.

    Args:
        config: The config of the published model.
        lr: Learning rate of both Adam optimisers.
        gamma: Weight of R1; None for the published ``auto``, which depends on image and batch size.
        r1_interval: Batches from one R1 step to the next.
        path_weight: Weight of path length regularisation; 0 for none.
        path_interval: Batches from one path length step to the next.
        path_shrink: Path length steps use one in this number of images of the batch.
        path_decay: Rate at which the average length is updated.
        style_mixing: Probability per batch that a second style replaces the first from a random layer on.
        noise_inputs: Whether convolutions get noise. Without noise, small networks trained on few images draw less
            grain; its strengths stay 0.
        augment: Transforms by the name of one of `PIPES`, or their strengths by name.
        augment_p: Probability of each transform per image at the start.
        ada_target: Target of the mean sign of the discriminator's logits of real images, by which the probability of
            augmentation is adapted; None keeps the probability.
        ada_kimg: Thousands of images in which the probability could go from 0 to 1.
        ada_interval: Batches from one change of the probability to the next.
        ema_kimg: Half-life of the published average, in thousands of images; None for that of ``auto``.
        ema_rampup: Largest half-life as a share of all images so far; None for no limit.
        group: Images per group of minibatch deviation; must divide the micro-batch.
        label_layers: Layers of the discriminator that read the label.
        label_dropout: Probability per image, real or drawn, of training without its label.
        micro_batch: Images that go through the networks together, to save memory; None for the whole batch.
        clip_norm: Largest gradient norm; None does not clip.
        kimg: Thousands of images to train for; None leaves the end to the trainer.
        init_from: A StyleGAN2 checkpoint folder or zoo name, or an official ``.pkl``, to fine-tune from; labels,
            channels and image size may differ, see `transfer`.
        frozen_layers: Number of the discriminator's finest resolutions that keep their starting weights.
        seed: Seed of the run.

    Raises:
        ValueError: If an argument is out of range.

    Source: Karras et al. 2020, "Training generative adversarial networks with limited data"; freezing: Mo et al. 2020,
    "Freeze the discriminator".
    """

    images_seen: Tensor
    path_mean: Tensor
    signs: Tensor

    def __init__(
        self,
        config: StyleGAN2Config,
        lr: float = 0.0025,
        gamma: float | None = None,
        r1_interval: int = 16,
        path_weight: float = 2.0,
        path_interval: int = 4,
        path_shrink: int = 2,
        path_decay: float = 0.01,
        style_mixing: float = 0.9,
        noise_inputs: bool = True,
        augment: str | dict[str, float] = "bgc",
        augment_p: float = 0.0,
        ada_target: float | None = 0.6,
        ada_kimg: float = 500.0,
        ada_interval: int = 4,
        ema_kimg: float | None = None,
        ema_rampup: float | None = 0.05,
        group: int = 4,
        label_layers: int = 8,
        label_dropout: float = 0.1,
        micro_batch: int | None = None,
        clip_norm: float | None = None,
        kimg: float | None = None,
        init_from: str | None = None,
        frozen_layers: int = 0,
        seed: int = 0,
    ) -> None:
        probabilities = {"style_mixing": style_mixing, "augment_p": augment_p, "label_dropout": label_dropout}
        _check_range(probabilities, lambda value: 0 <= value <= 1, "it is a probability from 0 to 1")
        _check_range({"path_decay": path_decay}, lambda value: 0 < value <= 1, "use a number above 0, at most 1")
        intervals = {"r1_interval": r1_interval, "path_interval": path_interval, "ada_interval": ada_interval}
        counts = {**intervals, "path_shrink": path_shrink, "group": group, "micro_batch": micro_batch}
        _check_range(counts, lambda value: value >= 1, "use at least 1")
        amounts = {"lr": lr, "ada_kimg": ada_kimg, "ema_rampup": ema_rampup, "kimg": kimg, "clip_norm": clip_norm}
        _check_range(amounts, lambda value: value > 0, "use a number above 0")
        weights = {"gamma": gamma, "path_weight": path_weight, "ema_kimg": ema_kimg, "label_layers": label_layers}
        _check_range(weights, lambda value: value >= 0, "use at least 0")
        if frozen_layers and init_from is None:
            raise ValueError("frozen_layers freezes what training starts from; give init_from, too")
        if label_dropout == 0 and config.label_kind != "none" and not config.needs_label:
            raise ValueError(
                "label_dropout is 0, so that the generator would never learn to draw without a label; set needs_label "
                "in config, or use some label_dropout"
            )
        super().__init__(
            StyleGAN2Generator(config),
            seed=seed,
            ema_decay=self._ema_decay,
            clip_norm=clip_norm,
            micro_batch=micro_batch,
            largest_gradient=_LARGEST_GRADIENT,
        )
        self.save_hyperparameters()
        self.discriminator = Discriminator(config, group=group, mapping_layers=label_layers)
        self.augment = AugmentPipe(augment)
        self.augment.p.fill_(augment_p)
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.int64))  # a resumed run may have other batches
        self.register_buffer("path_mean", torch.zeros(()))
        self.register_buffer("signs", torch.zeros(2))  # sum and number of signs of real logits since the last change
        if not 0 <= frozen_layers <= len(self.discriminator.blocks):
            raise ValueError(f"frozen_layers is {frozen_layers}; use 0 to {len(self.discriminator.blocks)}")
        if frozen_layers:
            for part in (self.discriminator.from_image, *self.discriminator.blocks[-frozen_layers:]):
                part.requires_grad_(requires_grad=False)

    @property
    def images_per_step(self) -> int:
        """Number of images in a batch over all processes."""
        return self.datamodule.batch_size * self.trainer.world_size

    def _ema_decay(self, _: int) -> float:
        images, kimg = self.images_per_step, self.hparams["ema_kimg"]
        kimg = auto_ema_kimg(images) if kimg is None else kimg
        return ema_decay(int(self.images_seen), images, kimg, self.hparams["ema_rampup"])

    def load_start(self) -> None:
        """Load the model to fine-tune, if there is one, see `transfer.start_from`."""
        if self.hparams["init_from"] is not None:
            start_from(self.generator, self.discriminator, self.hparams["init_from"])
            self.restart_average()

    def on_fit_start(self) -> None:
        """Check batch sizes and precision, and load the model to fine-tune."""
        # Not in `setup`, which is called before the weights of a resumed run are loaded.
        size, group = self.hparams["micro_batch"] or self.datamodule.batch_size, self.hparams["group"]
        if self.datamodule.batch_size % size:
            raise ValueError(
                f"data.batch_size is {self.datamodule.batch_size}, which micro_batch {size} does not divide"
            )
        if size % group:
            name = "micro_batch" if self.hparams["micro_batch"] else "data.batch_size"
            raise ValueError(f"{name} is {size}, which group {group} of minibatch deviation does not divide")
        if not self.datamodule.drop_last:
            raise ValueError("data.drop_last is false; minibatch deviation needs whole batches")
        if self.trainer.precision == "16-mixed":  # its scaler looks for infinite gradients, which are replaced here
            raise ValueError("trainer.precision is '16-mixed', whose range these gradients leave; use bf16-mixed")
        if int(self.batches_seen) == 0:
            self.load_start()
        if not self.hparams["noise_inputs"]:
            for network in (self.generator, self.published):
                network.synthesis.silence()

    def on_train_start(self) -> None:
        """Stop a resumed run that has seen enough images."""
        self._stop_when_done()
        if self.trainer.should_stop:
            seen = int(self.images_seen) / 1000
            rank_zero_info(
                f"this run has seen {seen:g} thousand images, and kimg is {self.hparams['kimg']:g}: it is done"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Run the phases generator, path length, discriminator and R1; the second and the last not in every batch."""
        hparams, step = self.hparams, int(self.batches_seen)
        generator, discriminator = self.optimizer_pair()
        assert discriminator is not None
        real = batch["image"] * 2 - 1
        vector = self._label_vector(batch, hparams["label_dropout"])
        gain = hparams["path_interval"]
        self.phase(generator, self.generator_loss, real, vector)
        if hparams["path_weight"] and step % gain == 0:
            self.phase(generator, lambda x, c: gain * self.path_length_loss(len(x), c), real, vector)
        self.phase(discriminator, self.discriminator_loss, real, vector)
        if step % hparams["r1_interval"] == 0:
            self.phase(discriminator, lambda x, c: hparams["r1_interval"] * self.r1_loss(x, c), real, vector)
        if (step + 1) % hparams["ada_interval"] == 0:
            self._adapt()

    def _label_vector(self, batch: Batch, dropout: float) -> Tensor | None:
        space = self.generator.label_space
        if space.kind == "none":  # there may be none in the data either
            return None
        label = batch["label"]
        return label_vector(drop_labels(label, dropout) if dropout else label, space, len(label), label.device)

    def styles(self, z: Tensor, vector: Tensor | None) -> Tensor:
        """Map random vectors (B, z_dim) to styles (B, num_ws, w_dim), and update the average style."""
        w: Tensor = self.generator.mapping(z, vector)
        mean = _mean_over_processes(w.detach().mean(0))
        self.generator.w_avg.lerp_(mean.to(self.generator.w_avg.dtype), _W_AVG_RATE)
        return w[:, None].expand(-1, self.generator.num_ws, -1)

    def generate(self, n: int, vector: Tensor | None) -> tuple[Tensor, Tensor]:
        """Draw images (n, C, H, W) and their styles from torch's global random state."""
        generator = self.generator
        z = torch.randn(n, generator.config.z_dim, device=self.device)
        styles = self.styles(z, vector)
        layers = styles.shape[1]
        if torch.rand(()) < self.hparams["style_mixing"]:
            first = int(torch.randint(1, layers, ()))
            other = generator.mapping(torch.randn_like(z), vector)[:, None].expand_as(styles)
            styles = torch.cat([styles[:, :first], other[:, first:]], dim=1)
        return generator.synthesis(styles, *self.noise(n)), styles

    def noise(self, n: int) -> list[Tensor | None]:
        """Draw noise for every convolution of n images; None for each without noise inputs."""
        if not self.hparams["noise_inputs"]:
            return [None] * len(self.generator.synthesis.noise_sizes())
        return [torch.randn(n, 1, *size, device=self.device) for size in self.generator.synthesis.noise_sizes()]

    def generator_loss(self, real: Tensor, vector: Tensor | None) -> Tensor:
        """Non-saturating logistic loss of as many drawn images as there are real ones."""
        images, _ = self.generate(len(real), vector)
        loss = logistic_generator(self.discriminator(self.augment(images), vector)).mean()
        self.log_training("loss_g", loss, {})
        return loss

    def path_length_loss(self, n: int, vector: Tensor | None) -> Tensor:
        """Path length penalty of n images, which updates the average length."""
        count = max(1, n // self.hparams["path_shrink"])
        images, styles = self.generate(count, None if vector is None else vector[:count])
        return self.path_penalty(path_lengths(images, styles, torch.randn_like(images)))

    def path_penalty(self, lengths: Tensor) -> Tensor:
        """Weighted squared distance of lengths (B,) from their average, which is updated."""
        mean = self.path_mean.lerp(lengths.mean(), self.hparams["path_decay"])  # as published, with its gradient
        self.path_mean.copy_(_mean_over_processes(mean.detach()))
        self.log("train/path_length", self.path_mean)
        penalty: Tensor = (lengths - mean).square().mean() * self.hparams["path_weight"]
        return penalty

    def discriminator_loss(self, real: Tensor, vector: Tensor | None) -> Tensor:
        """Logistic loss of real and drawn images."""
        with torch.no_grad():
            fake, _ = self.generate(len(real), vector)
        # One pass, which is faster on small images. Drawn and real images alternate, as do the groups of minibatch
        # deviation, so that each group holds images of one kind.
        both = torch.stack([self.augment(fake), self.augment(real)], 1).flatten(0, 1)
        logits = self.discriminator(both, None if vector is None else vector.repeat_interleave(2, 0))
        fake_logits, real_logits = logits[::2], logits[1::2]
        self._note_signs(real_logits)
        loss = self.logistic_loss(fake_logits, real_logits)
        self.log_training("loss_d", loss, {"logit_real": real_logits.mean(), "logit_fake": fake_logits.mean()})
        return loss

    @staticmethod
    def logistic_loss(fake: Tensor, real: Tensor) -> Tensor:
        """Compute the discriminator's loss from logits of drawn and of real images."""
        return 2 * logistic_discriminator(real, fake)  # the sum of both means

    def r1_loss(self, real: Tensor, vector: Tensor | None) -> Tensor:
        """Half the weighted R1 penalty."""
        real = real.detach().requires_grad_()
        logits = self.discriminator(self.augment(real), vector)
        self._note_signs(logits)
        penalty = r1_penalty(logits, real).mean()
        self.log("train/r1", penalty.detach())
        gamma: float | None = self.hparams["gamma"]
        if gamma is None:
            gamma = auto_gamma(self.generator.config.image_size, self.images_per_step)
        return penalty * (gamma / 2)

    def _note_signs(self, logits: Tensor) -> None:
        self.signs += torch.stack([logits.detach().sign().sum(), logits.new_tensor(len(logits))]).float()

    def _adapt(self) -> None:
        """Augment more if the discriminator finds more real images real than it should, else less."""
        total, count = _mean_over_processes(self.signs)
        self.log("train/real_sign", total / count)
        if self.hparams["ada_target"] is not None:
            images = self.images_per_step * self.hparams["ada_interval"]
            most = images / (1000 * self.hparams["ada_kimg"])
            self.augment.p.copy_(adapted(self.augment.p, total / count, self.hparams["ada_target"], most))
        self.log("train/augment_p", self.augment.p)
        self.signs.zero_()

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Batch, batch_idx: int) -> None:
        """Update the average, and stop once enough images were seen."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        self.images_seen += self.images_per_step
        self.log("train/kimg", self.images_seen / 1000)
        self._stop_when_done()

    def _stop_when_done(self) -> None:
        if self.hparams["kimg"] is not None and int(self.images_seen) / 1000 >= self.hparams["kimg"]:
            self.trainer.should_stop = True

    def measure(self, split: Split, batch: Batch, batch_idx: int) -> None:
        """Log the logits of unseen real images; if they fall below those of training, the discriminator overfits."""
        images, vector = batch["image"] * 2 - 1, self._label_vector(batch, 0.0)
        group = self.hparams["group"]
        whole = len(images) - len(images) % group  # the last batch of a split may be smaller
        if whole:
            logits = self.discriminator(images[:whole], None if vector is None else vector[:whole])
            self.log_unseen(split, {"logit_real": logits.float().mean()}, whole)

    def configure_optimizers(self) -> Any:
        """Build Adam, with rates and decays corrected for the steps that lazy regularisation adds."""
        hparams = self.hparams
        path_interval = hparams["path_interval"] if hparams["path_weight"] else None
        lazily = ((self.generator, path_interval), (self.discriminator, hparams["r1_interval"]))
        return [  # in one kernel, which is five times as fast on a CPU
            torch.optim.Adam(network.parameters(), fused=True, **adam_settings(hparams["lr"], interval))
            for network, interval in lazily
        ]


def _check_range(arguments: Mapping[str, float | None], fits: Callable[[float], bool], expected: str) -> None:
    for name, value in arguments.items():
        if value is not None and not fits(value):
            raise ValueError(f"{name} is {value}; {expected}")


def adam_settings(lr: float, interval: int | None) -> dict[str, Any]:
    """Settings of Adam for a network with one regularisation step more in every `interval` batches.

    Source: Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN", appendix B.
    """
    share = 1.0 if interval is None else interval / (interval + 1)
    return {"lr": lr * share, "betas": (0.0, 0.99**share), "eps": 1e-8}


def adapted(p: Tensor, sign: Tensor, target: float, most: float) -> Tensor:
    """Move the probability of augmentation by `most`: up if the mean sign of real logits is above the target.

    Source: Karras et al. 2020, "Training generative adversarial networks with limited data", section 3.2, where the
    probability may exceed 1, which destroys images.
    """
    return (p + (sign - target).sign() * most).clamp(0, 1)


def _mean_over_processes(value: Tensor) -> Tensor:
    """Average a tensor over all processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
        value /= torch.distributed.get_world_size()
    return value
