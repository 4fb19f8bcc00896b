"""Images of one domain shown as those of another: another scanner, another stain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from medgen.checkpoint import CARD_FILE, About, CheckpointError, model_card, read_checkpoint, write_checkpoint
from medgen.generator import GeneratorConfig, load_strictly
from medgen.nn.modes import evaluating
from medgen.nn.resnet_generator import Norm, ResNetGenerator

FAMILY = "cyclegan"
_USAGE = """\
```python
from medgen.families.cyclegan.translator import Translator

translator = Translator.from_pretrained("{name}")  # a folder
translated = translator.translate(images, "DOMAIN")  # images of the other domain, (n, C, H, W) in [0, 1]
```"""
"""Name in ``config.json``. It is no family of generators: it has nothing to draw without an image."""


@dataclass(frozen=True, kw_only=True)
class TranslatorConfig(GeneratorConfig):
    """Sizes of the networks; the defaults are the published ones for 256 px.

    Attributes:
        image_size: Height and width, multiples of 4.
        channels: Channels of the images of both domains.
        label_kind: ``single``.
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


class Translator(nn.Module):
    """Two generators, each from one domain to the other.

    Args:
        config: Sizes and names of the domains.
    """

    config_class: ClassVar = TranslatorConfig

    def __init__(self, config: TranslatorConfig) -> None:
        super().__init__()
        self.config = config
        self.about = About()
        channels = config.channels
        self.to_domain = nn.ModuleList(
            ResNetGenerator(channels, channels, width=config.width, blocks=config.blocks, norm=config.norm)
            for _ in config.label_names
        )

    @torch.no_grad()
    def translate(self, images: Tensor, to: str | int, *, batch_size: int = 16) -> Tensor:
        """Images of the other domain shown as those of a domain.

        Args:
            images: (n, C, H, W) in [0, 1], with sides that are multiples of 4.
            to: The domain, by name or number.
            batch_size: Images translated together.

        Returns:
            (n, C, H, W) float32 in [0, 1], on the CPU.

        Raises:
            ValueError: If there is no such domain, or images are of another shape or range.
        """
        number = self.config.label_space.index(to)
        if not isinstance(images, Tensor):
            raise ValueError(f"images are {images!r:.80}; give a tensor (n, {self.config.channels}, H, W) in [0, 1]")
        if images.dim() != 4 or images.shape[1] != self.config.channels or not images.numel():
            raise ValueError(f"images have shape {tuple(images.shape)}; expected (n, {self.config.channels}, H, W)")
        if not images.isfinite().all():
            raise ValueError("images hold NaN or infinite values; give numbers in [0, 1]")
        if not images.is_floating_point() or images.min() < 0 or images.max() > 1:
            raise ValueError("images must be floating point in [0, 1]; divide 8-bit ones by 255")
        device = next(self.parameters()).device
        with evaluating(self):
            parts = [self.to_domain[number](part.to(device) * 2 - 1) for part in images.float().split(batch_size)]
        return torch.cat(parts).float().add(1).div(2).clamp(0, 1).cpu()

    def save_pretrained(self, folder: str | Path, *, about: About | None = None) -> Path:
        """Write a checkpoint folder, whole or not at all; see `medgen.checkpoint.write_checkpoint`."""
        state = {name: weight.detach().cpu().contiguous() for name, weight in self.state_dict().items()}
        about = about or self.about
        return write_checkpoint(
            folder,
            family=FAMILY,
            config=self.config.to_dict(),
            state=state,
            about=about,
            extra_files={CARD_FILE: self.card(self.config, about, Path(folder).resolve().name)},
        )

    @staticmethod
    def card(config: TranslatorConfig, about: About, name: str) -> str:
        """The text of the model card of a translator, with its name as the heading."""
        return model_card(about, family=FAMILY, name=name, use=_USAGE.replace("DOMAIN", config.label_names[1]))

    @staticmethod
    def from_pretrained(folder: str | Path) -> Translator:
        """Load a translator from a checkpoint folder, in evaluation mode, on the CPU.

        Raises:
            FileNotFoundError: If there is no checkpoint.
            ValueError: If a file is damaged, or of another family or shape.
        """
        checkpoint = read_checkpoint(folder)
        if checkpoint.family != FAMILY:
            raise CheckpointError(f"{folder} holds a {checkpoint.family} model; load it with medgen.load")
        translator = Translator(TranslatorConfig.from_dict(checkpoint.config))
        load_strictly(translator, checkpoint.state, where=str(folder), assign=True)
        translator.about = checkpoint.about
        return translator.eval()
