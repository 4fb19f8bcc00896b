"""Base of translators, which turn images of one domain into those of another, such as another scanner or stain."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from medgen.checkpoint import About, model_card
from medgen.config import ModelConfig
from medgen.generator import Precision, check_precision
from medgen.images import check_images
from medgen.nn.modes import evaluating
from medgen.published import PublishedModel

_USAGE = """\
```python
import medgen

translator = medgen.load("{name}")  # a folder, or org/name on the Hub
translated = translator.translate(images, to="DOMAIN")  # images of another domain, (n, C, H, W) in [0, 1]
```"""


class Translator(PublishedModel):
    """Base of the translators: a `PublishedModel` whose domains are the classes of its config.

    A family sets `config_class` and writes `_translate`. Networks work in [-1, 1]; `translate` works in [0, 1].
    """

    config: ModelConfig

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains."""
        return self.config.label_names

    @classmethod
    def card(cls, config: ModelConfig, about: About, name: str) -> str:
        """Write the text of the model card, with the name of the checkpoint as heading."""
        use = _USAGE.replace("DOMAIN", config.label_names[-1])
        return model_card(about, family=cls.family, name=name, use=use)

    @abstractmethod
    def _translate(self, images: Tensor, to: int) -> Tensor:
        """Translate a batch of images (B, C, H, W) in [-1, 1] to a domain."""

    def check_options(self, options: Mapping[str, object]) -> None:
        """Raise a ValueError for any sampling option; these are for generators."""
        if options:
            raise ValueError(f"sampling options {', '.join(options)} are for generators; {self.family} translates")

    @torch.no_grad()
    def translate(
        self, images: Tensor, to: str | int, *, batch_size: int = 16, precision: Precision = "float32"
    ) -> Tensor:
        """Translate images to a domain.

        Args:
            images: Images of the other domain, (n, C, H, W) in [0, 1].
            to: The domain, by name or number.
            batch_size: Images translated together; changes memory and speed, not the images.
            precision: ``bf16`` runs the networks in bfloat16.

        Returns:
            (n, C, H, W) float32 in [0, 1], on the CPU.

        Raises:
            ValueError: If the domain is unknown, or images are of another shape or range.
        """
        number = self.label_space.index(to)
        check_images(images, channels=self.config.channels)
        if not len(images):
            raise ValueError(f"images have shape {tuple(images.shape)}; give at least one")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; use at least 1")
        check_precision(precision)
        device = self.device
        autocast = torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
        with evaluating(self), autocast:
            parts = [
                self._translate(part.to(device) * 2 - 1, number).float().add(1).div(2).clamp(0, 1).cpu()
                for part in images.float().split(batch_size)
            ]
        return torch.cat(parts)
