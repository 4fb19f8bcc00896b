"""StyleGAN3: alias-free generators of the authors' code, for sampling."""

from medgen.families.family import Family, OfficialFiles

FAMILY = Family(
    name="stylegan3",
    title="StyleGAN3",
    model="medgen.families.stylegan3.generator:StyleGAN3Generator",
    components="medgen.families.stylegan3.convert:COMPONENTS",
    official=OfficialFiles(
        expects="a StyleGAN3 of the official code (.pkl)",
        recognise="medgen.families.stylegan3.official:is_official",
        convert="medgen.families.stylegan3.official:convert_pickle",
    ),
)
