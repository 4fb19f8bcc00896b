"""How every family trains, stage by stage, at the size of its `tiny()`; a new family adds its line.

One that cannot be trained has no stages.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from medgen.families import family_class
from medgen.generator import GeneratorConfig


@dataclass(frozen=True)
class Stage:
    """One training module.

    Attributes:
        module: Its class path, as a recipe has it.
        arguments: Those that `tiny()` needs beside the config.
        previous: Which argument takes the checkpoint of the stage before.
        data: What its data need beside images and labels.
    """

    module: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    previous: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


MASKS = {"mask_column": "mask", "mask_classes": 3}

STAGES: Mapping[str, tuple[Stage, ...]] = {
    "medfusion": (
        Stage(
            "medgen.families.medfusion.modules.AutoencoderModule",
            {"perceptual": None, "discriminator_channels": (8, 8), "adversarial_start": 0},
        ),
        Stage("medgen.families.medfusion.modules.LatentDiffusionModule", previous="autoencoder"),
    ),
    "spade": (
        Stage("medgen.families.spade.modules.LabelMapModule", data=MASKS),
        Stage(
            "medgen.families.spade.modules.SPADEModule",
            {"perceptual": None, "discriminator_width": 4, "discriminator_layers": 2},
            previous="label_maps",
            data=MASKS,
        ),
    ),
    "stylegan2": (Stage("medgen.families.stylegan2.modules.StyleGAN2Module", {"label_layers": 2}),),
    "stylegan3": (),  # for sampling only
    "vqvae2": (
        Stage("medgen.families.vqvae2.modules.VQVAE2AutoencoderModule"),
        Stage("medgen.families.vqvae2.modules.PriorModule", {"level": "top"}, previous="previous"),
        Stage("medgen.families.vqvae2.modules.PriorModule", {"level": "bottom"}, previous="previous"),
    ),
}


def tiny_config(family: str) -> GeneratorConfig:
    """The family's `tiny()` with the classes of the test data."""
    tiny = family_class(family).config_class.tiny()
    return replace(tiny, label_kind="single", label_names=("healthy", "ill"))
