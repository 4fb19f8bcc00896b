"""StyleGAN3: StyleGAN2's styles with an alias-free synthesis; for sampling only."""

from __future__ import annotations

from torch import Tensor

from medgen.families.stylegan2.generator import StyledGenerator
from medgen.families.stylegan3.config import StyleGAN3Config
from medgen.families.stylegan3.networks import Synthesis
from medgen.noise import NoiseSource


class StyleGAN3Generator(StyledGenerator, family="stylegan3"):
    """Draws images in one pass, with weights of the authors' code, see `medgen.foreign.convert.convert`."""

    config_class = StyleGAN3Config
    config: StyleGAN3Config

    def __init__(self, config: StyleGAN3Config) -> None:
        super().__init__(config)
        self.synthesis = Synthesis(config)

    def draw(self, styles: Tensor) -> Tensor:
        """Draw images from styles, see `StyledGenerator.draw`; there is no noise."""
        images: Tensor = self.synthesis(styles)
        return images

    def _sample(
        self,
        label: Tensor | None,
        noise: NoiseSource,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        center: str = "label",
    ) -> Tensor:
        """Draw one batch of images; for the options see `StyleGAN2Generator._sample`."""
        return self.draw(self._styles(label, noise, truncation_psi, truncation_cutoff, center))
