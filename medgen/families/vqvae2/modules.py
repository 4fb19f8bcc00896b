"""Training of VQ-VAE2: the autoencoder, then the prior of the top map, then that of the bottom map."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medgen.data.base import Batch
from medgen.data.encoded import EncodedSet
from medgen.families.vqvae2.generator import VQVAE2Config, VQVAE2Generator, bits_per_dimension
from medgen.losses.perceptual import FeaturePerceptualLoss
from medgen.nn.vqvae2 import VQVAE2, Codes
from medgen.training.base import LearningRateShape, LossModule, drop_labels
from medgen.training.ema import warmup_decay
from medgen.training.stages import FirstStageModule, LaterStageModule, load_parts, start_from

if TYPE_CHECKING:
    from medgen.data.base import ImageDataModule
    from medgen.data.image_table import Split

Level = Literal["top", "bottom"]

_LARGEST_SHIFT = 16
"""Pixels."""


class VQVAE2AutoencoderModule(FirstStageModule):
    """Trains the autoencoder.

    Args:
        config: The config of all stages.
        latent_weight: Weight of the commitment terms.
        perceptual: Network of a perceptual loss, see `FeaturePerceptualLoss`, or None (published); not the one that
            judges the result.
        perceptual_weight: Weight of the perceptual loss.
        perceptual_levels: Number of its resolutions to compare, from the finest on; None for all.
        restart_below: Codes used for fewer vectors per batch than this, on average, restart at vectors of the batch; 0
            (published) never restarts codes.
        lr: Learning rate of Adam.
        lr_shape: ``constant`` (published) or ``cosine`` down to 0 at the end.
        warmup: Optimiser steps of linear rise.
        seed: Seed of the run.

    Source: Razavi et al. 2019, "Generating diverse high-fidelity images with VQ-VAE-2", eq. 2.
    """

    def __init__(
        self,
        config: VQVAE2Config,
        latent_weight: float = 0.25,
        perceptual: str | None = None,
        perceptual_weight: float = 1.0,
        perceptual_levels: int | None = None,
        restart_below: float = 0.01,
        lr: float = 3e-4,
        lr_shape: LearningRateShape = "constant",
        warmup: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.save_hyperparameters()
        self.config = config
        self.autoencoder = VQVAE2(config.autoencoder, config.channels)
        for level in (self.autoencoder.top_codes, self.autoencoder.bottom_codes):
            level.restart_below = restart_below
        self.perceptual = FeaturePerceptualLoss(perceptual, levels=perceptual_levels) if perceptual else None

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct images (B, C, H, W) in [0, 1]."""
        copies: Tensor = self.autoencoder(images * 2 - 1)[0]
        return (copies.float() + 1) / 2

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the error of the copies and the distance of latents from their codes."""
        x = batch["image"] * 2 - 1
        copies, quantized = self.autoencoder(x)
        terms = {"mse": F.mse_loss(copies.float(), x), "latent": quantized.loss}
        loss: Tensor = terms["mse"] + self.hparams["latent_weight"] * terms["latent"]
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(*_shifted(copies, x)).mean()
            loss = loss + self.hparams["perceptual_weight"] * terms["perceptual"]
        self.log_training("loss", loss, terms)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the use of the codebooks."""
        for name, level in (("top", self.autoencoder.top_codes), ("bottom", self.autoencoder.bottom_codes)):
            used, perplexity = level.usage()
            self.log_dict({f"train/codes_used_{name}": used, f"train/perplexity_{name}": perplexity})

    def configure_optimizers(self) -> Any:
        """Build Adam for the autoencoder, whose codebooks have no gradients."""
        return self.adam(self.autoencoder)


class PriorModule(LaterStageModule[VQVAE2Generator], LossModule[VQVAE2Generator]):
    """Trains the prior of the top map on codes of a trained autoencoder, or in a second run that of the bottom map.

    The second run ends in a checkpoint folder of the whole model. Codes are encoded once and read from the cache.

    Args:
        config: The config of the published model.
        level: ``top`` or ``bottom``.
        previous: The stage before: a checkpoint written by `VQVAE2AutoencoderModule` for ``top`` or by the run of
            ``top`` for ``bottom``, or a VQ-VAE2 checkpoint folder or zoo name, of the same shape.
        init_from: A VQ-VAE2 checkpoint folder or zoo name of the same shape to fine-tune; labels and image size may
            differ. Parts of `previous`, if given too, replace its own, and must have the same codebooks.
        code_variants: Encoded versions of each image under different augmentation; 1 without augmentation.
        label_smoothing: Share of the probability that is spread over all codes.
        label_dropout: Probability per image of training without its label, so that sampling can do without.
        lr: Learning rate of AdamW, as published.
        weight_decay: Its weight decay; none is published.
        lr_shape: ``constant`` (published) or ``cosine`` down to 0 at the end.
        warmup: Optimiser steps of linear rise.
        ema_decay: Largest decay of the published average per step; it is at most (1 + n) / (10 + n) after n steps.
        seed: Seed of dropout and label dropout.

    Source: Razavi et al. 2019, "Generating diverse high-fidelity images with VQ-VAE-2", section 3.2 and algorithm 2.
    """

    headline = "bits"

    def __init__(
        self,
        config: VQVAE2Config,
        level: Level,
        previous: str | None = None,
        init_from: str | None = None,
        code_variants: int = 1,
        label_smoothing: float = 0.0,
        label_dropout: float = 0.1,
        lr: float = 3e-4,
        weight_decay: float = 0.0,
        lr_shape: LearningRateShape = "constant",
        warmup: int = 0,
        ema_decay: float = 0.999,
        seed: int = 0,
    ) -> None:
        if level not in ("top", "bottom"):
            raise ValueError(f"level is {level!r}; use 'top' or 'bottom'")
        if previous is None and init_from is None:
            raise ValueError("previous and init_from are both missing; give the stage before, or a model to fine-tune")
        for name, value in (("label_smoothing", label_smoothing), ("label_dropout", label_dropout)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it is a share from 0 to 1")
        super().__init__(
            VQVAE2Generator(config),
            lr=lr,
            weight_decay=weight_decay,
            lr_shape=lr_shape,
            warmup=warmup,
            seed=seed,
            ema_decay=partial(warmup_decay, max_value=ema_decay),
        )
        self.save_hyperparameters()
        self.level = level
        self.generator.requires_grad_(requires_grad=False)
        getattr(self.generator, level).requires_grad_(requires_grad=True)
        self.stores: dict[str, EncodedSet] = {}

    @property
    def publishable(self) -> bool:
        """Whether the bottom prior is trained, too."""
        return self.level == "bottom"

    def on_fit_start(self) -> None:
        """Encode the training set, unless the cache has it."""
        super().on_fit_start()
        self._store("train")

    def _store(self, split: Split) -> EncodedSet:
        if split not in self.stores:
            variants = self.hparams["code_variants"] if split == "train" else 1
            self.stores[split] = open_codes(
                self.generator, self.datamodule, split, variants=variants, device=self.device
            )
        return self.stores[split]

    def _codes(self, split: Split, index: Tensor, epoch: int = 0) -> Codes:
        return unpack(self._store(split).read(index, epoch).to(self.device), self.generator.config)

    def logits(self, generator: VQVAE2Generator, codes: Codes, label: Tensor | None) -> Tensor:
        """Compute logits (B, num_codes, H, W) of the codes of this level."""
        if self.level == "top":
            logits: Tensor = generator.top(codes.top, None, label)
        else:
            logits = generator.bottom(codes.bottom, codes.top, label)
        return logits

    def loss(self, generator: VQVAE2Generator, batch: Batch, split: Split) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the cross-entropy of a batch of codes, and log bits per code."""
        training = split == "train"
        codes = self._codes(split, batch["index"], self.current_epoch if training else 0)
        label = None if generator.config.label_kind == "none" else batch["label"]
        if label is not None and training:
            label = drop_labels(label, self.hparams["label_dropout"])
        logits, target = self.logits(generator, codes, label), getattr(codes, self.level)
        smoothing = self.hparams["label_smoothing"] if training else 0.0
        loss = F.cross_entropy(logits.float(), target, label_smoothing=smoothing)
        return loss, {"bits": bits_per_dimension(logits.detach(), target).mean()}

    def load_start(self) -> None:
        """Load a whole model, the parts that earlier stages trained, or both."""
        generator, model, source = self.generator, self.hparams["init_from"], self.hparams["previous"]
        if model is not None:
            start_from(generator, model, label_weights=r"\.label\.", free=_DROPOUT)
        if source is not None:
            before = generator.codebook_hash
            first = self.level == "top"
            parts = ["autoencoder"] if first else ["autoencoder", "top"]
            fields = {"channels", "autoencoder"} if first else _ALL - {"bottom"}
            load_parts(generator, source, parts, "model.previous", fields=fields, free=_DROPOUT)
            if model is not None and generator.codebook_hash != before:
                raise ValueError(
                    f"model.init_from {model} has priors of other codebooks than those of model.previous {source}; "
                    "a prior knows one pair of codebooks only: leave init_from out to train a new one"
                )


_ALL = {field.name for field in dataclasses.fields(VQVAE2Config)}
_DROPOUT = ("top.dropout", "bottom.dropout")


def _shifted(*images: Tensor) -> list[Tensor]:
    """Shift images cyclically by the same few pixels.

    A network with strides looks less at some pixels. Without shifts, the decoder leaves a grid of errors at these.
    """
    down, right = torch.randint(_LARGEST_SHIFT, (2,)).tolist()
    return [part.roll((down, right), dims=(-2, -1)) for part in images]


def open_codes(
    generator: VQVAE2Generator, data: ImageDataModule, split: Split, *, variants: int, device: torch.device
) -> EncodedSet:
    """Open the cached codes of a split, one row per image: top map, then bottom map."""
    config, autoencoder = generator.config, generator.autoencoder

    def encode(images: Tensor) -> Tensor:
        return torch.cat([level.flatten(1) for level in autoencoder.encode(images).codes], dim=1)

    shape = (math.prod(config.top_size) + math.prod(config.bottom_size),)
    dtype = np.int16 if config.autoencoder.num_codes <= 2**15 else np.int32
    return EncodedSet.open(
        "code", data, split, autoencoder, encode, shape=shape, dtype=dtype, variants=variants, device=device
    )


def unpack(rows: Tensor, config: VQVAE2Config) -> Codes:
    """Split rows of `open_codes` into both maps."""
    top, bottom = rows.long().split([math.prod(config.top_size), math.prod(config.bottom_size)], dim=1)
    return Codes(top.unflatten(1, config.top_size), bottom.unflatten(1, config.bottom_size))
