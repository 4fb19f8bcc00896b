"""StyleGAN2 with adaptive augmentation."""

from medgen.families.family import Family, OfficialFiles, Verb

FAMILY = Family(
    name="stylegan2",
    title="StyleGAN2",
    model="medgen.families.stylegan2.generator:StyleGAN2Generator",
    stages=("medgen.families.stylegan2.modules:StyleGAN2Module",),
    components="medgen.families.stylegan2.convert:COMPONENTS",
    official=OfficialFiles(
        expects="a StyleGAN2 of the official StyleGAN2-ADA or StyleGAN3 code (.pkl)",
        recognise="medgen.families.stylegan2.official:is_official",
        convert="medgen.families.stylegan2.official:convert_pickle",
    ),
    verbs={
        "walk": Verb(
            arguments="NAME --out FILE",
            help="an animation between seeds or labels, GIF or MP4; StyleGAN only",
            run="medgen.families.stylegan2.commands:walk",
        ),
        "mix": Verb(
            arguments="NAME --out FILE",
            help="a grid of images with styles of two; StyleGAN only",
            run="medgen.families.stylegan2.commands:mix",
        ),
    },
)
