"""Training of a pixel-space DDPM."""

from __future__ import annotations

from medgen.diffusion.objective import Distance
from medgen.families.ddpm.generator import DDPMConfig, DDPMGenerator
from medgen.training.base import LearningRateShape
from medgen.training.diffusion import DiffusionModule


class DDPMModule(DiffusionModule[DDPMGenerator]):
    """Trains the UNet on images.

    Args:
        config: What is trained and published.
        distance: Distance of the prediction from its target; ``mse`` is published.
        label_dropout: Probability per image of being trained without its label, for classifier-free guidance.
        lr: Learning rate of AdamW.
        weight_decay: Its weight decay.
        lr_shape: ``constant`` (published), or ``cosine`` down to 0 at the end.
        warmup: Optimiser steps of linear rise.
        ema_decay: Decay of the published average per step; 0.9999 is published for long runs.
        seed: Seed of noise, times and label dropout.

    Source: Ho et al. 2020, "Denoising diffusion probabilistic models", algorithm 1 and appendix B.
    """

    def __init__(
        self,
        config: DDPMConfig,
        distance: Distance = "mse",
        label_dropout: float = 0.1,
        lr: float = 2e-4,
        weight_decay: float = 0.0,
        lr_shape: LearningRateShape = "constant",
        warmup: int = 0,
        ema_decay: float = 0.999,
        seed: int = 0,
    ) -> None:
        super().__init__(
            DDPMGenerator(config),
            distance=distance,
            label_dropout=label_dropout,
            lr=lr,
            weight_decay=weight_decay,
            lr_shape=lr_shape,
            warmup=warmup,
            ema_decay=ema_decay,
            seed=seed,
        )
        self.save_hyperparameters()
