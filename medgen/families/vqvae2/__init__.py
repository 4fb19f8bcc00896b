"""VQ-VAE2: images from two maps of codes, drawn one after the other by PixelSNAIL priors."""

from dataclasses import dataclass, field
from pathlib import Path

from medgen.families.family import Family, OfficialFiles


@dataclass(frozen=True)
class OfficialOptions:
    """Files of the priors that belong to an autoencoder."""

    top: str | Path | None = field(default=None, metadata={"help": "pixelsnail_*.pt of the top map"})
    bottom: str | Path | None = field(default=None, metadata={"help": "pixelsnail_*.pt of the bottom map"})


FAMILY = Family(
    name="vqvae2",
    title="VQ-VAE2",
    model="medgen.families.vqvae2.generator:VQVAE2Generator",
    stages=(
        "medgen.families.vqvae2.modules:VQVAE2AutoencoderModule",
        "medgen.families.vqvae2.modules:PriorModule",
        "medgen.families.vqvae2.modules:PriorModule",
    ),
    components="medgen.families.vqvae2.convert:COMPONENTS",
    official=OfficialFiles(
        expects="the autoencoder of the official VQ-VAE2 code (vqvae_*.pt)",
        recognise="medgen.families.vqvae2.official:is_official",
        convert="medgen.families.vqvae2.official:convert_checkpoints",
        options=OfficialOptions,
    ),
)
