"""The base of diffusion models: a UNet that denoises images, or the latents of an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from medgen.diffusion.denoiser import NetworkDenoiser, PredictionType, guided
from medgen.diffusion.registry import find_sampler
from medgen.diffusion.samplers import check_eta
from medgen.diffusion.schedule import NoiseSchedule, ScheduleConfig
from medgen.generator import Generator, GeneratorConfig
from medgen.labels import Label
from medgen.nn.inference import for_inference
from medgen.nn.unet import UNet, UNetConfig
from medgen.noise import NoiseSource


class Autoencoder(Protocol):
    """Interface of the autoencoder of a latent diffusion model, a module."""

    decoder: nn.Module

    def encode_mean(self, x: Tensor) -> Tensor:
        """Middle of the distribution of latents (B, c, h, w) of images (B, C, H, W) in [-1, 1]."""

    def settle(self, z: Tensor) -> Tensor:
        """Input of the decoder for latents (B, c, h, w): themselves, or the nearest codes."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(GeneratorConfig):
    """Base of the configs of diffusion models.

    Attributes:
        unet: The network that denoises.
        schedule: The forward process.
        prediction_type: What the UNet predicts: ``eps``, ``x_0`` or ``v``.
        clip: Hold estimates of what is denoised in [-1, 1] while sampling: right for images, wrong for latents.
    """

    unet: UNetConfig = UNetConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    prediction_type: PredictionType = "eps"
    clip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unet.spatial_dims != 2:
            raise ValueError(f"unet.spatial_dims is {self.unet.spatial_dims}; these are images, of 2 dimensions")
        _, *sides = self.latent_shape
        if any(side % by for side, by in zip(sides, self.unet.shrinkage, strict=True)):
            raise ValueError(
                f"image_size {self.image_size} makes the UNet denoise {sides[0]} x {sides[1]} pixels, which its total "
                f"stride {self.unet.shrinkage} does not divide; use another image_size or unet.strides"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what the UNet denoises: a latent, or without an autoencoder the image."""
        return self.channels, *self.image_size


class DiffusionGenerator(Generator):
    """Base of the families that draw by denoising.

    With an autoencoder, the UNet works on latents of mean 0 and standard deviation 1 per channel: `latent_mean` and
    `latent_std` are measured on the training set.

    Args:
        config: What the generator is rebuilt from.
        autoencoder: Encodes images to what is denoised; None denoises the images themselves.
    """

    config: DiffusionConfig
    default_steps: ClassVar[int] = 150
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: DiffusionConfig, autoencoder: nn.Module | None = None) -> None:
        super().__init__(config)
        channels = config.latent_shape[0]
        if autoencoder is not None:
            self.autoencoder = autoencoder
        self.unet = UNet(config.unet, channels, label_space=config.label_space)
        self.schedule = NoiseSchedule(**config.schedule.to_dict())
        if autoencoder is not None:
            self.register_buffer("latent_mean", torch.zeros(channels, 1, 1))
            self.register_buffer("latent_std", torch.ones(channels, 1, 1))

    def normalise(self, latent: Tensor) -> Tensor:
        """Latents (B, c, h, w) as the autoencoder gives them, as the UNet sees them."""
        return (latent - self.latent_mean) / self.latent_std

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, C, H, W) in [-1, 1] to what the UNet denoises, (B, c, h, w)."""
        if (autoencoder := self._autoencoder()) is None:
            return images
        return self.normalise(autoencoder.encode_mean(images))

    def decode(self, denoised: Tensor) -> Tensor:
        """Decode what was denoised, (B, c, h, w), to images (B, C, H, W), about [-1, 1]."""
        if (autoencoder := self._autoencoder()) is None:
            return denoised
        decoder = for_inference(autoencoder.decoder)
        image: Tensor = decoder(autoencoder.settle(denoised * self.latent_std + self.latent_mean))
        return image

    def _autoencoder(self) -> Autoencoder | None:
        return cast("Autoencoder | None", getattr(self, "autoencoder", None))

    def _check_values(
        self,
        *,
        steps: int | None = None,
        eta: float | None = None,
        guidance: float = 1.0,
        negative_label: Label = None,
        sampler: str = "ddim",
        decode_batch: int = 16,
        **others: Any,
    ) -> None:
        if steps is not None:
            self.schedule.timesteps(steps)
        find_sampler(sampler)
        if eta is not None and sampler != "ddim":
            raise ValueError(f"eta is an option of sampler 'ddim', not of {sampler!r}")
        if eta is not None:
            check_eta(eta)
        if decode_batch < 1:
            raise ValueError(f"decode_batch is {decode_batch}; use at least 1")
        if negative_label is not None and guidance == 1:
            raise ValueError("negative_label has no effect at guidance 1; use a larger guidance")

    def _sample(
        self,
        label: Tensor | None,
        noise: NoiseSource,
        *,
        steps: int | None = None,
        eta: float | None = None,
        guidance: float = 1.0,
        negative_label: Label = None,
        sampler: str = "ddim",
        decode_batch: int = 16,
    ) -> Tensor:
        """One batch of images.

        Args:
            label: Conditions, (B,) or (B, K), or None.
            noise: One random stream per image.
            steps: Sampling steps; default: `default_steps`, or all of a shorter schedule.
            eta: DDIM's noise, 0 (none) to 1 (as published, the default).
            guidance: 1 follows the label as trained, more exaggerates it.
            negative_label: What guidance leads away from, one for all images; default: from no label.
            sampler: ``ddim``, ``ancestral`` or a diffusers scheduler such as ``dpm++``.
            decode_batch: Latents decoded together, which bounds the memory.
        """
        steps = min(self.default_steps, len(self.schedule)) if steps is None else steps
        extra = {} if eta is None else {"eta": eta}
        if guidance != 1 and label is None:
            raise ValueError(
                f"guidance is {guidance}, but there is no label to guide by; give one or leave guidance at 1"
            )
        negative = self.label_space.resolve(negative_label, len(noise))
        network = guided(
            for_inference(self.unet),
            label,
            weight=guidance,
            negative=None if negative is None else negative.to(noise.device),
        )
        denoise = NetworkDenoiser(
            network,
            self.schedule,
            prediction_type=self.config.prediction_type,
            clip=self.config.clip,
            self_conditioning=self.config.unet.self_conditioning,
        )
        shape = self.config.latent_shape
        denoised = find_sampler(sampler)(denoise, noise, shape, self.schedule, steps=steps, **extra)
        return torch.cat([self.decode(part) for part in denoised.split(decode_batch)])
