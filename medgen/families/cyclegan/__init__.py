"""CycleGAN: translation of images between two domains, without pairs."""

from medgen.families.family import Family

FAMILY = Family(
    name="cyclegan",
    title="CycleGAN",
    makes="translator",
    model="medgen.families.cyclegan.translator:CycleGANTranslator",
    stages=("medgen.families.cyclegan.modules:CycleGANModule",),
    components="medgen.families.cyclegan.convert:COMPONENTS",
)
