"""A pixel-space DDPM: a UNet that denoises the images themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from medgen.diffusion.generator import DiffusionConfig, DiffusionGenerator
from medgen.diffusion.schedule import ScheduleConfig
from medgen.nn.unet import UNetConfig


@dataclass(frozen=True, kw_only=True)
class DDPMConfig(DiffusionConfig):
    """Sizes of a pixel-space model; the widths are those published for CIFAR-10, the forward process is the paper's.

    Attributes:
        image_size: Height and width; divisible by the UNet's total stride.
        unet: Four levels with attention at a quarter of the size.

    Source: Ho et al. 2020, "Denoising diffusion probabilistic models", section 4 and appendix B.
    """

    image_size: tuple[int, int] = (64, 64)
    channels: int = 1
    unet: UNetConfig = UNetConfig(
        hidden=(128, 128, 256, 256, 256),
        strides=(1, 2, 2, 2, 1),
        attention=("none", "none", "linear", "none", "none"),
        embedding_dim=512,
    )
    schedule: ScheduleConfig = ScheduleConfig(shape="linear", beta_start=1e-4, beta_end=0.02)
    clip: bool = True

    @classmethod
    def tiny(cls) -> Self:
        """16 px, 8 to 16 channels, 10 time steps."""
        return cls(
            image_size=(16, 16),
            label_kind="single",
            label_names=("no finding", "finding"),
            unet=UNetConfig(
                hidden=(8, 8, 16),
                strides=(1, 2, 2),
                norm=("group", {"num_groups": 4}),
                blocks_per_level=1,
                embedding_dim=16,
            ),
            schedule=ScheduleConfig(timesteps=10, shape="linear", beta_start=1e-4, beta_end=0.02),
        )


class DDPMGenerator(DiffusionGenerator, family="ddpm"):
    """Draws images by denoising them pixel by pixel."""

    config_class = DDPMConfig
    config: DDPMConfig
