"""Training of Medfusion: the autoencoder, then the diffusion model on its latents."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from medgen.data.base import Batch
from medgen.diffusion.objective import Distance
from medgen.families.medfusion.generator import MedfusionConfig, MedfusionGenerator
from medgen.losses.adversarial import AdversarialKind
from medgen.losses.autoencoder import AutoencoderLoss, PixelLoss, Reduction
from medgen.losses.divergence import kl_divergence
from medgen.losses.perceptual import FeaturePerceptualLoss
from medgen.nn.autoencoder import KLAutoencoder, make_autoencoder
from medgen.nn.gaussian import reparameterise
from medgen.nn.patch_discriminator import unit_discriminator
from medgen.training.adversarial import AdversarialModule
from medgen.training.base import LearningRateShape
from medgen.training.diffusion import LatentStageModule
from medgen.training.ema import ema_decay as published_decay
from medgen.training.stages import FirstStageModule, load_parts, start_from


class AutoencoderModule(FirstStageModule, AdversarialModule):
    """Trains the autoencoder: reconstruction at every scale, and patch discriminators from a given batch on.

    Args:
        config: The config of both stages.
        pixel: ``l1`` (published) or ``mse``.
        perceptual: Network of the perceptual loss, see `FeaturePerceptualLoss`, or None; not the one that judges the
            result.
        perceptual_weight: Weight of the perceptual loss.
        perceptual_size: Height and width of the images in it; None for their own.
        perceptual_levels: Number of the network's resolutions to compare, from the finest on; None for all.
        ssim_weight: Weight of one minus the structural similarity.
        latent_weight: Weight of the KL divergence, or of the codebook loss of a ``vq`` autoencoder.
        adversarial: Adversarial loss; None trains without discriminators.
        adversarial_weight: Weight of the decoder's adversarial loss, times the adaptive weight.
        adversarial_start: Batches before the adversarial loss is added.
        discriminator_warmup: Batches before that in which the discriminators train already.
        discriminator_channels: Channels of each discriminator layer; all but the first halve the size.
        reduction: ``sum`` (published for ``kl``) or ``mean`` (published for ``vq``), see `AutoencoderLoss`.
        lr: Learning rate of both Adam optimisers.
        lr_shape: ``constant`` (published) or ``cosine`` down to 0 at the end; that of the discriminators counts their
            own steps.
        warmup: Batches of linear rise.
        accumulate_batches: Batches per optimiser step.
        clip_norm: Largest gradient norm; None does not clip.
        seed: Seed of the noise.

    Source: Mueller-Franzes et al. 2023 (published: ``perceptual`` LPIPS, ``adversarial`` hinge, lr 1e-4 without
    and 1e-6 with discriminators).
    """

    renamed_arguments: ClassVar = {"critic_lead": "discriminator_warmup"}

    def __init__(
        self,
        config: MedfusionConfig,
        pixel: PixelLoss = "l1",
        perceptual: str | None = "efficientnet_lite1",
        perceptual_weight: float = 1.0,
        perceptual_size: int | None = None,
        perceptual_levels: int | None = None,
        ssim_weight: float = 1.0,
        latent_weight: float = 1e-6,
        adversarial: AdversarialKind | None = "hinge",
        adversarial_weight: float = 1.0,
        adversarial_start: int = 0,
        discriminator_warmup: int = 0,
        discriminator_channels: tuple[int, ...] = (64, 128, 256, 512),
        reduction: Reduction = "sum",
        lr: float = 1e-4,
        lr_shape: LearningRateShape = "constant",
        warmup: int = 0,
        accumulate_batches: int = 1,
        clip_norm: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed, accumulate_batches, clip_norm)
        self.save_hyperparameters()
        self.config = config
        self.autoencoder = make_autoencoder(config.autoencoder, config.channels)
        heads = config.autoencoder.extra_heads + 1 if adversarial else 0
        strides = (1, *[2] * (len(discriminator_channels) - 1))
        self.discriminators = nn.ModuleList(
            unit_discriminator(config.channels, hidden=discriminator_channels, strides=strides) for _ in range(heads)
        )
        self.loss = AutoencoderLoss(
            pixel=pixel,
            perceptual=FeaturePerceptualLoss(perceptual, perceptual_size, perceptual_levels) if perceptual else None,
            perceptual_weight=perceptual_weight,
            ssim_weight=ssim_weight,
            adversarial=adversarial or "hinge",
            adversarial_weight=adversarial_weight,
            reduction=reduction,
            downscaling="area" if adversarial else "nearest-exact",
        )

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct images (B, C, H, W) in [0, 1] from the means of their latents."""
        return (self.autoencoder.decode(self.autoencoder.encode_mean(images * 2 - 1)) + 1) / 2

    def reconstruct(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Compute the output at every scale and the loss of the latent for images in [-1, 1]."""
        autoencoder = self.autoencoder
        if isinstance(autoencoder, KLAutoencoder):
            mean, logvar = autoencoder.encode_moments(x)
            z = reparameterise(mean, logvar, torch.randn_like(mean))
            return autoencoder.decode_multiscale(z), kl_divergence(mean, logvar).mean()
        outputs, quantized = autoencoder.decode_multiscale(autoencoder.encode(x))
        return outputs, quantized.loss

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Make a step of the autoencoder and, once they have started, one of the discriminators."""
        x = batch["image"] * 2 - 1
        generator, discriminator = self.optimizer_pair()
        until_start = self.hparams["adversarial_start"] - int(self.batches_seen)
        with self.toggled_optimizer(generator):
            outputs, latent_loss = self.reconstruct(x)
            if discriminator is not None and until_start <= 0:
                last_layers = [head.weight for head in self.autoencoder.decoder.heads]
                loss = self.loss(outputs, x, self.discriminators, last_layers)
            else:
                loss = self.loss(outputs, x)
            self.descend(generator, loss.total + self.hparams["latent_weight"] * latent_loss)
            self.step_schedule(0)
        self.log_training("loss", loss.total, {"latent": latent_loss, **loss.terms})
        if discriminator is not None and until_start <= self.hparams["discriminator_warmup"]:
            with self.toggled_optimizer(discriminator):
                loss = self.loss.discriminator_loss(outputs, x, self.discriminators)
                self.descend(discriminator, loss.total)
                self.step_schedule(1)
            self.log_training("loss_d", loss.total, loss.terms)

    def configure_optimizers(self) -> Any:
        """Build Adam for the autoencoder, and for the discriminators if there are any."""
        networks = [self.autoencoder, self.discriminators] if self.discriminators else [self.autoencoder]
        return [self.adam(network) for network in networks]


class LatentDiffusionModule(LatentStageModule[MedfusionGenerator]):
    """Trains the UNet on latents of a frozen autoencoder, which are encoded once and read from the cache.

    Args:
        config: The config of the published model.
        autoencoder: The first stage: a checkpoint written by `AutoencoderModule`, or a Medfusion checkpoint folder or
            zoo name of the same shape.
        init_from: A Medfusion checkpoint folder or zoo name of the same shape to fine-tune, autoencoder included;
            labels may differ.
        latent_variants: Encoded versions of each image under different augmentation; 1 without augmentation.
        distance: Distance of the prediction from its target.
        label_dropout: Probability per image of training without its label, for classifier-free guidance.
        lr: Learning rate of AdamW.
        weight_decay: Its weight decay.
        lr_shape: ``constant`` (published) or ``cosine`` down to 0 at the end.
        warmup: Optimiser steps of linear rise.
        ema_decay: Decay of the published average per step, or ``published`` for the authors' ramp, see
            `medgen.training.ema.ema_decay`.
        normalise_latents: Whether to train on latents scaled to mean 0 and standard deviation 1; not published.
        seed: Seed of noise, times and label dropout.

    Source: Mueller-Franzes et al. 2023; its published settings are the defaults of `config`, ``lr``, ``weight_decay``,
    ``distance`` and ``label_dropout`` (which it applies to whole batches).
    """

    def __init__(
        self,
        config: MedfusionConfig,
        autoencoder: str | None = None,
        init_from: str | None = None,
        latent_variants: int = 1,
        distance: Distance = "l1",
        label_dropout: float = 0.5,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        lr_shape: LearningRateShape = "constant",
        warmup: int = 0,
        ema_decay: float | Literal["published"] = 0.999,
        normalise_latents: bool = True,
        seed: int = 0,
    ) -> None:
        if (autoencoder is None) == (init_from is None):
            raise ValueError(f"give either autoencoder ({autoencoder!r}) or init_from ({init_from!r}), and not both")
        super().__init__(
            MedfusionGenerator(config),
            latent_variants=latent_variants,
            normalise_latents=normalise_latents,
            distance=distance,
            label_dropout=label_dropout,
            lr=lr,
            weight_decay=weight_decay,
            lr_shape=lr_shape,
            warmup=warmup,
            ema_decay=published_decay if ema_decay == "published" else ema_decay,
            seed=seed,
        )
        self.save_hyperparameters()

    def load_start(self) -> None:
        """Load the autoencoder, or a whole model."""
        generator, model, source = self.generator, self.hparams["init_from"], self.hparams["autoencoder"]
        if model is not None:
            start_from(generator, model, label_weights=r"^unet\.embed_label\.", free=_DROPOUT)
        else:
            fields = {"channels", "autoencoder"}
            load_parts(generator, source, ["autoencoder"], "model.autoencoder", fields=fields, free=_DROPOUT)


_DROPOUT = ("autoencoder.dropout", "unet.dropout")
