"""Medfusion: images by diffusion in the latent space of an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from medgen.config import Moved
from medgen.diffusion.denoiser import NetworkDenoiser, PredictionType, guided
from medgen.diffusion.registry import find_sampler
from medgen.diffusion.samplers import check_eta
from medgen.diffusion.schedule import NoiseSchedule, ScheduleConfig
from medgen.generator import Generator, GeneratorConfig
from medgen.labels import Label
from medgen.nn.autoencoder import AutoencoderConfig, make_autoencoder
from medgen.nn.inference import for_inference
from medgen.nn.layers import LayerSpec
from medgen.nn.unet import UNet, UNetConfig
from medgen.noise import NoiseSource

_PUBLISHED_STEPS = 150


def _group_norm(groups: int) -> LayerSpec:
    return "group", {"num_groups": groups}


@dataclass(frozen=True, kw_only=True)
class MedfusionConfig(GeneratorConfig):
    """Shape of both stages; the defaults are the published ones for 256 px images.

    Attributes:
        autoencoder: The first stage.
        unet: The noise estimator on its latents.
        schedule: The forward process.
        prediction_type: What the UNet predicts: ``eps``, ``x_0`` or ``v``.
        clip: Hold estimates of the clean latent in [-1, 1] while sampling; not done by the published models.

    Source: Mueller-Franzes et al. 2023, "A multimodal comparison of latent denoising diffusion probabilistic models and
    generative adversarial networks for medical image synthesis", and its published settings.
    """

    image_size: tuple[int, int] = (256, 256)
    channels: int = 3
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    unet: UNetConfig = UNetConfig()
    schedule: ScheduleConfig = ScheduleConfig(shape="scaled_linear", beta_start=0.002)
    prediction_type: PredictionType = "eps"
    clip: bool = False

    moved: ClassVar = {
        "autoencoder": Moved("kind", "autoencoder"),
        "latent_channels": Moved("latent_channels", "autoencoder"),
        "num_codes": Moved("num_codes", "autoencoder"),
        "autoencoder_channels": Moved("hidden", "autoencoder"),
        "autoencoder_strides": Moved("strides", "autoencoder"),
        "autoencoder_groups": Moved("norm", "autoencoder", _group_norm),
        "autoencoder_attention": Moved("attention", "autoencoder"),
        "autoencoder_extra_heads": Moved("extra_heads", "autoencoder"),
        "unet_channels": Moved("hidden", "unet"),
        "unet_strides": Moved("strides", "unet"),
        "unet_groups": Moved("norm", "unet", _group_norm),
        "unet_blocks": Moved("blocks_per_level", "unet"),
        "unet_attention": Moved("attention", "unet"),
        "embedding_dim": Moved("embedding_dim", "unet"),
        "unet_extra_heads": Moved("extra_heads", "unet"),
        "learned_variance": Moved("learned_variance", "unet"),
        "self_conditioning": Moved("self_conditioning", "unet"),
        "objective": Moved("prediction_type"),
        "timesteps": Moved("timesteps", "schedule"),
        "schedule": Moved("shape", "schedule"),
        "beta_start": Moved("beta_start", "schedule"),
        "beta_end": Moved("beta_end", "schedule"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, part in (("autoencoder", self.autoencoder), ("unet", self.unet)):
            if part.spatial_dims != 2:
                raise ValueError(f"{name}.spatial_dims is {part.spatial_dims}; these are images, of 2 dimensions")
        if self._remainder(self.autoencoder.shrinkage):
            raise ValueError(
                f"image_size {self.image_size} is not divisible by {self.autoencoder.shrinkage}, the total stride of "
                "the autoencoder"
            )
        both = self.autoencoder.shrinkage, self.unet.shrinkage
        total = tuple(first * second for first, second in zip(*both, strict=True))
        if self._remainder(total):
            raise ValueError(
                f"image_size {self.image_size} is not divisible by {total}, the total stride of the autoencoder times "
                "that of the UNet"
            )

    def _remainder(self, shrinkage: tuple[int, ...]) -> bool:
        return any(side % by for side, by in zip(self.image_size, shrinkage, strict=True))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latent."""
        (height, width), (by_height, by_width) = self.image_size, self.autoencoder.shrinkage
        return self.autoencoder.latent_channels, height // by_height, width // by_width

    @classmethod
    def tiny(cls) -> Self:
        """16 px, 8 to 16 channels, 10 time steps."""
        return cls(
            image_size=(16, 16),
            channels=1,
            label_kind="single",
            label_names=("no finding", "finding"),
            autoencoder=AutoencoderConfig(latent_channels=4, num_codes=16, hidden=(8, 8, 16), strides=(1, 2, 1)),
            unet=UNetConfig(
                hidden=(8, 8, 16), strides=(1, 2, 2), norm=_group_norm(4), blocks_per_level=1, embedding_dim=16
            ),
            schedule=ScheduleConfig(timesteps=10, shape="scaled_linear", beta_start=0.002),
        )


class MedfusionGenerator(Generator, family="medfusion"):
    """Conditional latent diffusion model.

    The UNet works on latents of mean 0 and standard deviation 1 per channel: `latent_mean` and `latent_std` are
    measured on the training set. The published models use the latent as it is, which is mean 0 and std 1 here.
    """

    config_class = MedfusionConfig
    config: MedfusionConfig
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: MedfusionConfig) -> None:
        super().__init__(config)
        latent_channels = config.autoencoder.latent_channels
        self.autoencoder = make_autoencoder(config.autoencoder, config.channels)
        self.unet = UNet(config.unet, latent_channels, label_space=config.label_space)
        self.schedule = NoiseSchedule(**config.schedule.to_dict())
        self.register_buffer("latent_mean", torch.zeros(latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(latent_channels, 1, 1))

    @torch.inference_mode()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode images, (B, C, H, W) in [0, 1] both."""
        mean = self.autoencoder.encode_mean(images * 2 - 1)
        return (self.autoencoder.decode(mean).clamp(-1, 1) + 1) / 2

    def decode(self, latent: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of normalised latents (B, c, h, w)."""
        decoder = for_inference(self.autoencoder.decoder)
        return decoder(self.autoencoder.settle(latent * self.latent_std + self.latent_mean))

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
            steps: Sampling steps; default: 150, until which the paper's quality rises, or all of a shorter schedule.
            eta: DDIM's noise, 0 (none) to 1 (as published, the default).
            guidance: 1 follows the label as trained, more exaggerates it.
            negative_label: What guidance leads away from, one for all images; default: from no label.
            sampler: ``ddim``, ``ancestral`` or a diffusers scheduler such as ``dpm++``.
            decode_batch: Latents decoded together, which bounds the memory.
        """
        steps = min(_PUBLISHED_STEPS, len(self.schedule)) if steps is None else steps
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
        latent = find_sampler(sampler)(denoise, noise, self.config.latent_shape, self.schedule, steps=steps, **extra)
        return torch.cat([self.decode(part) for part in latent.split(decode_batch)])
