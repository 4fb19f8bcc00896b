"""Medfusion: latent diffusion with a small autoencoder (Mueller-Franzes et al. 2023)."""

from medgen.families.family import Family, OfficialFiles

FAMILY = Family(
    name="medfusion",
    title="Medfusion",
    model="medgen.families.medfusion.generator:MedfusionGenerator",
    stages=(
        "medgen.families.medfusion.modules:AutoencoderModule",
        "medgen.families.medfusion.modules:LatentDiffusionModule",
    ),
    components="medgen.families.medfusion.convert:COMPONENTS",
    official=OfficialFiles(
        expects="a diffusion checkpoint of the official Medfusion code (.ckpt)",
        recognise="medgen.families.medfusion.official:is_official",
        convert="medgen.families.medfusion.official:convert_checkpoint",
    ),
)
