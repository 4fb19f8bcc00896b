"""Medfusion: diffusion in the latent space of an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from medgen.config import Moved
from medgen.diffusion.generator import DiffusionConfig, DiffusionGenerator
from medgen.diffusion.schedule import ScheduleConfig
from medgen.nn.autoencoder import AutoencoderConfig, KLAutoencoder, VQAutoencoder, make_autoencoder
from medgen.nn.layers import LayerSpec
from medgen.nn.unet import UNetConfig


def _group_norm(groups: int) -> LayerSpec:
    return "group", {"num_groups": groups}


@dataclass(frozen=True, kw_only=True)
class MedfusionConfig(DiffusionConfig):
    """Config of autoencoder and UNet; the defaults are published for 256 px images.

    Attributes:
        autoencoder: Config of the autoencoder, whose latents the UNet denoises.

    Source: Mueller-Franzes et al. 2023, "A multimodal comparison of latent denoising diffusion probabilistic models and
    generative adversarial networks for medical image synthesis", and its published settings.
    """

    image_size: tuple[int, int] = (256, 256)
    channels: int = 3
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    schedule: ScheduleConfig = ScheduleConfig(shape="scaled_linear", beta_start=0.002)

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
        if self.autoencoder.spatial_dims != 2:
            raise ValueError(f"autoencoder.spatial_dims is {self.autoencoder.spatial_dims}; these are images, of 2")
        if any(side % by for side, by in zip(self.image_size, self.autoencoder.shrinkage, strict=False)):
            raise ValueError(
                f"image_size {self.image_size} is not divisible by {self.autoencoder.shrinkage}, the total stride of "
                "the autoencoder"
            )
        super().__post_init__()

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


class MedfusionGenerator(DiffusionGenerator, family="medfusion"):
    """Conditional latent diffusion model; the published ones have latent mean 0 and standard deviation 1."""

    config_class = MedfusionConfig
    config: MedfusionConfig
    autoencoder: KLAutoencoder | VQAutoencoder

    def __init__(self, config: MedfusionConfig) -> None:
        super().__init__(config, make_autoencoder(config.autoencoder, config.channels))

    @torch.inference_mode()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode images (B, C, H, W) in [0, 1]."""
        mean = self.autoencoder.encode_mean(images * 2 - 1)
        return (self.autoencoder.decode(mean).clamp(-1, 1) + 1) / 2
