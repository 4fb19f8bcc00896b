"""Training of diffusion models, on images or on latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from medgen.data.latents import LatentStore
from medgen.diffusion.generator import DiffusionGenerator
from medgen.diffusion.objective import Distance, diffusion_loss
from medgen.training.base import LossModule, drop_labels
from medgen.training.stages import LaterStageModule

if TYPE_CHECKING:
    from medgen.data.base import Batch, Split
    from medgen.nn.autoencoder import KLAutoencoder, VQAutoencoder

D = TypeVar("D", bound=DiffusionGenerator)


class DiffusionModule(LossModule[D], Generic[D]):
    """Base of the modules that train a denoiser; as it stands, on the images themselves.

    Args:
        generator: The network to train; its autoencoder, if any, is frozen.
        distance: Distance of the prediction from its target.
        label_dropout: Probability per image of training without its label, for classifier-free guidance.
        **others: Arguments of `LossModule`.

    Raises:
        ValueError: If `label_dropout` is out of range.

    Source: Ho et al. 2020, "Denoising diffusion probabilistic models", algorithm 1.
    """

    def __init__(self, generator: D, *, distance: Distance, label_dropout: float, **others: Any) -> None:
        super().__init__(generator, **others)
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"label_dropout is {label_dropout}; it is a probability from 0 to 1")
        self.distance: Distance = distance
        self.label_dropout = label_dropout

    def clean(self, generator: D, batch: Batch, split: Split) -> Tensor:
        """Compute the images or latents (B, c, h, w) to which noise is added."""
        return generator.encode(batch["image"] * 2 - 1)

    def loss(self, generator: D, batch: Batch, split: Split) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the error of the prediction; for unseen images with fixed noise at times evenly over the schedule."""
        config, training = generator.config, split == "train"
        x_0 = self.clean(generator, batch, split)
        label = None if config.label_kind == "none" else batch["label"]
        if label is not None and training:
            label = drop_labels(label, self.label_dropout)
        count = len(generator.schedule)
        if training:
            t = torch.randint(count, (len(x_0),), device=x_0.device)
            eps = torch.randn_like(x_0)
        else:
            t = torch.linspace(0, count - 1, len(x_0)).round().long().to(x_0.device)
            eps = torch.randn(x_0.shape).to(x_0)  # on the CPU, so that every device measures alike
        found = diffusion_loss(
            lambda x_t, t, x_0: generator.unet.multiscale(x_t, t, label, x_0),
            x_0,
            t,
            eps,
            generator.schedule,
            prediction_type=config.prediction_type,
            distance=self.distance,
            clip=config.clip,
            self_conditioning=config.unet.self_conditioning,
        )
        return found.total, found.terms if training else {}


class LatentStageModule(LaterStageModule[D], DiffusionModule[D], Generic[D]):
    """Base of the modules that train the denoiser on latents of a frozen autoencoder, encoded once into the cache.

    Args:
        generator: The network to train.
        latent_variants: Encoded versions of each image under different augmentation; 1 without augmentation.
        normalise_latents: Whether to train on latents scaled to mean 0 and standard deviation 1. Fine-tuning keeps the
            scale of the model it starts from.
        **others: Arguments of `DiffusionModule`.
    """

    latents: LatentStore

    def __init__(self, generator: D, *, latent_variants: int, normalise_latents: bool, **others: Any) -> None:
        super().__init__(generator, **others)
        self.latent_variants = latent_variants
        self.normalise_latents = normalise_latents
        generator.autoencoder.requires_grad_(requires_grad=False)

    def on_fit_start(self) -> None:
        """Encode the training set, unless the cache has it, and measure the latents."""
        super().on_fit_start()
        self.latents = LatentStore(
            cast("KLAutoencoder | VQAutoencoder", self.generator.autoencoder),
            self.datamodule,
            latent_shape=self.generator.config.latent_shape,
            variants=self.latent_variants,
            device=self.device,
        )
        if self.normalise_latents and int(self.batches_seen) == 0 and self.hparams.get("init_from") is None:
            mean, std = self.latents.statistics()
            for target in (self.generator, self.published):
                target.latent_mean.copy_(mean)
                target.latent_std.copy_(std)

    def clean(self, generator: D, batch: Batch, split: Split) -> Tensor:
        """Get the latents of the batch: drawn from the cache in training, else the means of their distributions."""
        if split != "train":
            return super().clean(generator, batch, split)
        return generator.normalise(self.latents.draw(batch["index"], self.current_epoch).to(self.device))
