"""Training of SPADE: an autoencoder of label maps, if there is to be one, then generator against discriminators."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from medgen.data.base import Batch, ImageDataModule, Split
from medgen.families.spade.config import SPADEConfig
from medgen.families.spade.discriminator import MultiscaleDiscriminator
from medgen.families.spade.encoders import StyleEncoder
from medgen.families.spade.generator import SPADEGenerator, build_map_vae
from medgen.loading import load
from medgen.losses.adversarial import ADVERSARIAL, AdversarialKind
from medgen.losses.divergence import kl_divergence
from medgen.losses.feature_matching import feature_matching
from medgen.losses.perceptual import FeaturePerceptualLoss
from medgen.nn.gaussian import reparameterise
from medgen.nn.label_vector import label_vector
from medgen.nn.modes import evaluating
from medgen.noise import stream_seed
from medgen.published import load_strictly, part_of
from medgen.training.adversarial import AdversarialModule, generator_loss
from medgen.training.base import GenerativeModule, LearningRateShape, MeasuringModule
from medgen.training.ema import warmup_decay
from medgen.training.stages import FirstStageModule, discriminator_beside, load_parts, loss_networks, start_from

_BATCH = 64
_FIELDS_OF_MAPS = ("map_dim", "map_width", "mask_names", "dont_care", "image_size")


class LabelMapModule(FirstStageModule):
    """Trains the autoencoder of label maps; images are not used.

    Args:
        config: The config of both stages.
        kl_weight: Weight of the divergence of codes from standard normal ones, in nats per map.
        lr: Learning rate of AdamW.
        weight_decay: Its weight decay.
        lr_shape: ``constant``, or ``cosine`` down to 0 at the end.
        warmup: Optimiser steps of linear rise.
        seed: Seed of the run.

    Raises:
        ValueError: If the config has no such autoencoder.

    Source: Kingma and Welling 2014, "Auto-encoding variational Bayes", eq. 10.
    """

    config: SPADEConfig

    def __init__(
        self,
        config: SPADEConfig,
        kl_weight: float = 1.0,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        lr_shape: LearningRateShape = "cosine",
        warmup: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if not config.map_dim:
            raise ValueError("config.map_dim is 0: there is no autoencoder of label maps to train; give it a length")
        self.save_hyperparameters()
        self.config = config
        self.map_vae = build_map_vae(config)

    def setup(self, stage: str) -> None:
        """Check the data and their label maps against the config."""
        super().setup(stage)
        if stage == "fit":
            check_masks(self.config, self.datamodule)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss in nats per map: cross-entropy given the code, and divergence of the code."""
        mean, log_variance = self.map_vae.encode(batch["mask"])
        code = reparameterise(mean, log_variance, torch.randn_like(mean))
        logits = self.map_vae.decode(code).float()
        terms = {
            "cross_entropy": F.cross_entropy(logits, batch["mask"], reduction="sum") / len(mean),
            "kl": kl_divergence(mean, log_variance).mean(),
        }
        loss: Tensor = terms["cross_entropy"] + self.hparams["kl_weight"] * terms["kl"]
        self.log_training("loss", loss, terms)
        return loss

    def measure(self, split: Split, batch: Batch, batch_idx: int) -> None:
        """Log accuracy, and Dice of all classes but the background, of unseen maps after encoding and decoding."""
        masks = batch["mask"]
        copies = self.map_vae.draw(self.map_vae.encode(masks)[0])
        ours, theirs = (
            F.one_hot(part, self.config.num_classes)[..., 1:].flatten(0, 2).float() for part in (copies, masks)
        )
        overlap = 2 * (ours * theirs).sum(0) / (ours + theirs).sum(0).clamp(min=1)
        scores = {"accuracy": (copies == masks).float().mean(), "dice": overlap.mean()}
        self.log_unseen(split, scores, len(masks))

    def configure_optimizers(self) -> Any:
        """Build AdamW."""
        return self.adam(self.map_vae, torch.optim.AdamW, weight_decay=self.hparams["weight_decay"])


class SPADEModule(GenerativeModule[SPADEGenerator], AdversarialModule, MeasuringModule):
    """Trains generator and style encoder against discriminators that see images beside their label maps.

    Both steps use the same drawn images.

    Args:
        config: The config of the published model.
        label_maps: The stage before: a checkpoint written by `LabelMapModule`, or a SPADE checkpoint folder or zoo
            name; needed if the config has an autoencoder of label maps.
        adversarial: Adversarial loss; ``hinge`` is published.
        feature_weight: Weight of feature matching.
        perceptual: Network of the perceptual loss, see `FeaturePerceptualLoss`, or None; not the one that judges the
            result. (Published is VGG19, whose weights are a download.)
        perceptual_weight: Weight of the perceptual loss.
        perceptual_levels: Number of its resolutions to compare, from the finest on; None for all.
        kl_weight: Weight of the divergence of style codes from standard normal ones, summed over the batch.
        pixel_weight: Weight of the mean absolute error to the real image of the style code; published for cardiac MR
            with a style encoder is 100, else 0.
        mixed_weight: Weight of the adversarial loss of a second image of each map, with a style mixed from those of the
            batch, so that unseen styles follow the map, too; 0 (published) for none.
        scales: Number of discriminators, each at half the resolution of the one before.
        discriminator_width: Channels of their first layer.
        discriminator_layers: Layers of each.
        lr: Learning rate of Adam; the generator's is half of it and the discriminators' twice, as published.
        betas: Decay rates of Adam.
        accumulate_batches: Batches whose gradients are added up before a step; batch norm uses each batch alone.
        clip_norm: Largest gradient norm; None does not clip.
        ema_decay: Largest decay of the published average per step; it is at most (1 + n) / (10 + n) after n steps.
        init_from: A SPADE checkpoint folder or zoo name of the same shape and classes to fine-tune, with its
            discriminators, if any. Labels may differ, and without codes of styles and label maps the image size.
        seed: Seed of the run.

    Raises:
        ValueError: If an argument is out of range.

    Source: Park et al. 2019, "Semantic image synthesis with spatially-adaptive normalization", appendix A; images of
    mixed codes, as of random ones in Zhu et al. 2017, "Toward multimodal image-to-image translation", section 3.2.
    """

    def __init__(
        self,
        config: SPADEConfig,
        label_maps: str | None = None,
        adversarial: AdversarialKind = "hinge",
        feature_weight: float = 10.0,
        perceptual: str | None = "efficientnet_lite1",
        perceptual_weight: float = 10.0,
        perceptual_levels: int | None = None,
        kl_weight: float = 0.05,
        pixel_weight: float = 0.0,
        mixed_weight: float = 0.0,
        scales: int = 2,
        discriminator_width: int = 64,
        discriminator_layers: int = 4,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.0, 0.9),
        accumulate_batches: int = 1,
        clip_norm: float | None = None,
        ema_decay: float = 0.999,
        init_from: str | None = None,
        seed: int = 0,
    ) -> None:
        if adversarial not in ADVERSARIAL:
            raise ValueError(f"adversarial is {adversarial!r}; use one of {', '.join(ADVERSARIAL)}")
        if config.map_dim and label_maps is None and init_from is None:
            raise ValueError(
                "config.map_dim asks for an autoencoder of label maps; give label_maps, the checkpoint of its training "
                "(LabelMapModule), or set map_dim to 0"
            )
        for name, weight in (("pixel_weight", pixel_weight), ("mixed_weight", mixed_weight)):
            if weight and config.style in ("none", "drawn"):
                raise ValueError(
                    f"{name} is {weight}; config.style is {config.style!r}, which takes styles of no image"
                )
        super().__init__(
            SPADEGenerator(config),
            seed=seed,
            ema_decay=partial(warmup_decay, max_value=ema_decay),
            accumulate_batches=accumulate_batches,
            clip_norm=clip_norm,
        )
        self.save_hyperparameters()
        if self.generator.map_vae is not None:
            self.generator.map_vae.requires_grad_(requires_grad=False)
        self.discriminator = MultiscaleDiscriminator(
            config.semantic_channels + config.channels,
            width=discriminator_width,
            layers=discriminator_layers,
            scales=scales,
        )
        self.perceptual = FeaturePerceptualLoss(perceptual, levels=perceptual_levels) if perceptual else None
        self._measured = -1  # batches seen when the priors were last measured
        self.note(trained_with=loss_networks(self.hparams))

    def setup(self, stage: str) -> None:
        """Check data and batch sizes against the config."""
        super().setup(stage)
        if stage == "fit":
            check_masks(self.generator.config, self.datamodule)
            check_batches(self.generator.config, self.datamodule, self.trainer.world_size)

    def on_fit_start(self) -> None:
        """Load the weights that training starts from, unless it has started already."""
        if int(self.batches_seen) > 0:
            return
        source, maps = self.hparams["init_from"], self.hparams["label_maps"]
        if source is not None:
            # Layers between codes and the lowest resolution have a weight for each of its pixels.
            config = self.generator.config
            bound = ("image_size",) if config.style != "none" or config.map_dim else ()
            start_from(self.generator, source, label_weights=r"_prior\.", bound=bound)
            self._load_discriminator(source)
        if maps is not None:
            load_parts(self.generator, maps, ("map_vae",), "model.label_maps", fields=_FIELDS_OF_MAPS)
        self.restart_average()

    def _load_discriminator(self, source: str) -> None:
        """Load the discriminators of the model to fine-tune."""
        if Path(source).suffix == ".ckpt":
            content = torch.load(source, map_location="cpu", weights_only=True)
            weights: Mapping[str, Tensor] | None = part_of(content["state_dict"], "discriminator.")
        else:
            weights = discriminator_beside(load(source).folder)
        if weights is None:
            rank_zero_warn(f"{source} has no discriminators; training starts with new ones, which takes longer")
            return
        load_strictly(self.discriminator, weights, where=source)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Make one step of the generator, then one of the discriminators on the same images."""
        g_opt, d_opt = self.optimizer_pair()
        assert d_opt is not None
        semantic, real = self.generator.semantic(batch["mask"]), batch["image"] * 2 - 1
        with self.toggled_optimizer(g_opt):
            code, kl = self.styles_of(real)
            fake = self.generator.synthesis(semantic, code)
            mixed: Tensor | None = None
            if self.hparams["mixed_weight"] and code is not None:
                mixed = self.generator.synthesis(semantic, mixed_codes(code))
            self.descend(g_opt, self.generator_loss(semantic, fake, real, kl, mixed))
        with self.toggled_optimizer(d_opt):
            mixed = None if mixed is None else mixed.detach()
            self.descend(d_opt, self.discriminator_loss(semantic, fake.detach(), real, mixed))

    def styles_of(self, real: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Encode the styles of real images, with the summed divergence where they are distributions."""
        encoder = self.generator.style_encoder
        if encoder is None:
            prior = self.generator.style_prior
            return None if prior is None else torch.randn(len(real), prior.dim, device=real.device), None
        if not isinstance(encoder, StyleEncoder):
            return encoder.mean(real), None
        mean, log_variance = (part.float() for part in encoder(real))
        code = reparameterise(mean, log_variance, torch.randn_like(mean))
        return code, kl_divergence(mean, log_variance).sum()

    def generator_loss(
        self, semantic: Tensor, fake: Tensor, real: Tensor, kl: Tensor | None, mixed: Tensor | None
    ) -> Tensor:
        """Compute the loss of the generator and the style encoder."""
        hparams = self.hparams
        weights = {name: hparams[f"{name}_weight"] for name in ("perceptual", "kl", "pixel", "mixed")}
        weights |= {"adversarial": 1.0, "features": hparams["feature_weight"]}
        ours, theirs = self.compare(semantic, fake, real)
        terms = {"adversarial": self.adversarial_generator(ours)}
        if weights["features"]:
            terms["features"] = feature_matching(ours, theirs)
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(fake, real).mean()
        if kl is not None:
            terms["kl"] = kl
        if weights["pixel"]:
            terms["pixel"] = F.l1_loss(fake.float(), real)
        if mixed is not None:
            terms["mixed"] = self.adversarial_generator(self.compare(semantic, mixed, real)[0])
        loss = torch.stack([weights[name] * value.float() for name, value in terms.items()]).sum()
        self.log_training("loss_g", loss, terms, prefix="g_")
        return loss

    def discriminator_loss(self, semantic: Tensor, fake: Tensor, real: Tensor, mixed: Tensor | None) -> Tensor:
        """Compute the loss of the discriminators: the mean over their scales."""
        ours, theirs = self.compare(semantic, fake, real)
        loss = self._game(ours, theirs)
        if mixed is not None:
            loss = loss + self.hparams["mixed_weight"] * self._game(*self.compare(semantic, mixed, real))
        pairs = {"logit_fake": ours, "logit_real": theirs}
        means = {name: torch.stack([part[-1].float().mean() for part in parts]).mean() for name, parts in pairs.items()}
        self.log_training("loss_d", loss, means)
        return loss

    def _game(self, ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> Tensor:
        game = ADVERSARIAL[self.hparams["adversarial"]].discriminator
        losses = [2 * game(b[-1].float(), a[-1].float()) for a, b in zip(ours, theirs, strict=True)]  # sums of both
        return torch.stack(losses).mean()

    def adversarial_generator(self, features: list[list[Tensor]]) -> Tensor:
        """Compute the adversarial loss of the generator, the mean over scales, from features of its images."""
        return torch.stack([generator_loss(self.hparams["adversarial"], part[-1]) for part in features]).mean()

    def compare(self, semantic: Tensor, fake: Tensor, real: Tensor) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """Compute features of drawn and real images for each scale, in one batch with shared statistics."""
        pairs = torch.cat([torch.cat([semantic, images.to(semantic.dtype)], 1) for images in (fake, real)])
        features = self.discriminator(pairs)
        count = len(fake)
        return [[x[:count] for x in scale] for scale in features], [[x[count:] for x in scale] for scale in features]

    def on_validation_start(self) -> None:
        """Measure the distributions of codes, from which validation draws images."""
        if not self.trainer.sanity_checking:
            self._measure_codes()

    def on_train_epoch_end(self) -> None:
        """Measure the distributions of codes in epochs without validation, for the checkpoint."""
        self._measure_codes()

    def measure(self, split: Split, batch: Batch, batch_idx: int) -> None:
        """Log the error of unseen images after reconstruction from map and style."""
        generator, real = self.published, batch["image"] * 2 - 1
        encoder, prior = generator.style_encoder, generator.style_prior
        code = None if prior is None else prior.moments(None, len(real))[0] if encoder is None else encoder.mean(real)
        drawn = generator.synthesis(generator.semantic(batch["mask"]), code).float()
        self.log_unseen(split, {"l1": (drawn - real).abs().mean() / 2}, len(real))

    @torch.no_grad()
    def _measure_codes(self) -> None:
        """Fit the published priors to the codes of all training images, once for the same weights."""
        generator, seen = self.published, int(self.batches_seen)
        if self._measured == seen or not (generator.style_prior or generator.map_prior):
            return
        self._measured = seen
        fit_priors(generator, self.datamodule, seed=self.seed)
        for name in ("style_prior", "map_prior"):
            if (prior := getattr(generator, name)) is not None:
                getattr(self.generator, name).load_state_dict(prior.state_dict())  # the average of equals stays

    def configure_optimizers(self) -> Any:
        """Build Adam for both, with four times the learning rate for the discriminators.

        Source: Heusel et al. 2017, "GANs trained by a two time-scale update rule converge to a local Nash equilibrium".
        """
        lr, betas = self.hparams["lr"], self.hparams["betas"]
        trained = [weight for weight in self.generator.parameters() if weight.requires_grad]
        return [
            torch.optim.Adam(trained, lr=lr / 2, betas=betas),
            torch.optim.Adam(self.discriminator.parameters(), lr=lr * 2, betas=betas),
        ]


def mixed_codes(codes: Tensor) -> Tensor:
    """Permute each entry of codes (B, dim) over the batch: entries become independent, as those of drawn styles."""
    order = torch.rand(codes.shape, device=codes.device).argsort(0)
    return codes.gather(0, order)


@torch.no_grad()
def fit_priors(generator: SPADEGenerator, data: ImageDataModule, *, seed: int = 0) -> None:
    """Fit the priors of styles and label maps to the codes of all training images, without augmentation."""
    dataset = data.dataset("train")
    dataset.augmentation = None
    space, device = generator.label_space, generator.device
    noise = torch.Generator().manual_seed(stream_seed("priors", seed))
    found: dict[str, list[Tensor]] = {"style": [], "map": [], "vectors": []}

    def drawn(mean: Tensor, log_variance: Tensor) -> Tensor:
        normal = torch.randn(mean.shape, generator=noise).to(device)
        return reparameterise(mean, log_variance, normal).cpu()

    with evaluating(generator), torch.autocast(device.type, enabled=False):
        for start in range(0, len(dataset), _BATCH):
            batch = dataset.__getitems__(list(range(start, min(start + _BATCH, len(dataset)))))
            images = batch["image"].to(device) * 2 - 1
            if generator.style_encoder is not None:
                # Not drawn from their distributions: unseen styles are to be those that `encode_style` finds in images.
                found["style"].append(generator.style_encoder.mean(images).cpu())
            if generator.map_vae is not None:
                found["map"].append(drawn(*generator.map_vae.encode(batch["mask"].to(device))))
            vector = label_vector(batch.get("label"), space, len(images), torch.device("cpu"))
            found["vectors"] += [] if vector is None else [vector]
    vectors = torch.cat(found["vectors"]) if found["vectors"] else None
    for name, prior in (("style", generator.style_prior), ("map", generator.map_prior)):
        if prior is not None and found[name]:
            prior.fit(torch.cat(found[name]), vectors)


def check_masks(config: SPADEConfig, data: ImageDataModule) -> None:
    """Raise a ValueError for data without label maps, or with another number of classes."""
    if data.mask_classes != config.num_classes:
        extra = " and don't care" if config.dont_care else ""
        raise ValueError(
            f"data.mask_classes is {data.mask_classes}, but model.config has {config.num_classes} classes "
            f"({', '.join(config.mask_names)}{extra}); give label maps of as many classes (mask_column, mask_classes)"
        )


def check_batches(config: SPADEConfig, data: ImageDataModule, processes: int) -> None:
    """Raise a ValueError for batch norm of a single pixel of a single image; warn of it for single images.

    Several processes share the statistics of their batches.
    """
    if config.norm != "batch" or processes > 1:
        return
    images, size = len(data.table.rows("train")), data.batch_size
    cause = f"data.batch_size is {size}" if size == 1 else ""
    if not data.drop_last and images % size == 1:
        cause = f"data.drop_last is false, and batches of {size} leave 1 of {images} images"
    if cause and config.base == (1, 1):
        raise ValueError(
            f"{cause}; the lowest resolution is a single pixel, so that batch norm would get one value per channel and "
            "make it 0. Raise data.batch_size to at least 2 and set data.drop_last to true, or use model.config.norm "
            "'group'"
        )
    if size == 1:
        rank_zero_warn(
            "data.batch_size is 1 on a single device: batch norm takes the statistics of one image in training, but "
            "their average in sampling; raise it, or use model.config.norm 'group'"
        )
