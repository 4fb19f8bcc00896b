"""StyleGAN3: StyleGAN2's styles with a synthesis whose details do not stick to the pixels; for sampling."""

from __future__ import annotations

from torch import Tensor

from medgen.families.stylegan2.generator import StyledGenerator
from medgen.families.stylegan3.config import StyleGAN3Config
from medgen.families.stylegan3.networks import Synthesis
from medgen.noise import NoiseSource


class StyleGAN3Generator(StyledGenerator, family="stylegan3"):
    """Draws images in one pass. It comes from weights of the authors' code, see `medgen.foreign.convert.convert`."""

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
        """One batch of images.

        Args:
            label: Conditions, (B,) or (B, K), or None.
            noise: One random stream per image.
            truncation_psi: Scale of the distance of styles from the average one: 1 for no change, less for more typical
                images that vary less.
            truncation_cutoff: Number of layers that are truncated, coarse to fine; None for all.
            center: The average that styles are pulled to: ``label`` for that of images with equal labels, ``all`` for
                that over all labels, for images without one, ``published`` for that over all labels in any case.
        """
        images: Tensor = self.synthesis(self._styles(label, noise, truncation_psi, truncation_cutoff, center))
        return images
