"""CycleGAN's translator: two networks, each from one domain to the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from medgen.config import ModelConfig
from medgen.nn.resnet_generator import Norm, ResNetGenerator
from medgen.translator import Translator


@dataclass(frozen=True, kw_only=True)
class CycleGANConfig(ModelConfig):
    """Sizes of the networks; the defaults are published for 256 px.

    Attributes:
        image_size: Height and width, multiples of 4.
        label_names: Names of the two domains.
        width: Channels at full size.
        blocks: Residual blocks; 6 are published for 128 px.
        norm: ``instance`` is published.

    Source: Zhu et al. 2017, "Unpaired image-to-image translation using cycle-consistent adversarial networks".
    """

    image_size: tuple[int, int] = (256, 256)
    channels: int = 3
    label_kind: Literal["single"] = "single"
    width: int = 64
    blocks: int = 9
    norm: Norm = "instance"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_kind != "single" or len(self.label_names) != 2:
            raise ValueError(
                f"label_names is {list(self.label_names)} with label_kind {self.label_kind!r}; a translator has two "
                "domains, the classes of label_kind 'single'"
            )

    @classmethod
    def tiny(cls) -> Self:
        """16 px, 4 to 16 channels."""
        return cls(image_size=(16, 16), channels=1, label_names=("healthy", "ill"), width=4, blocks=1)


class CycleGANTranslator(Translator, family="cyclegan"):
    """Translates images between two domains."""

    config_class = CycleGANConfig
    config: CycleGANConfig

    def __init__(self, config: CycleGANConfig) -> None:
        super().__init__(config)
        channels = config.channels
        self.to_domain = nn.ModuleList(
            ResNetGenerator(channels, channels, width=config.width, blocks=config.blocks, norm=config.norm)
            for _ in config.label_names
        )

    def _translate(self, images: Tensor, to: int) -> Tensor:
        translated: Tensor = self.to_domain[to](images)
        return translated


# Training checkpoints of earlier versions name the config so.
TranslatorConfig = CycleGANConfig
torch.serialization.add_safe_globals([(CycleGANConfig, f"{__name__}.TranslatorConfig")])
