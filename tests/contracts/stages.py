"""How the stages of every family train at the size of its `tiny()`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from medgen.families import FAMILIES, find_family
from medgen.generator import GeneratorConfig


@dataclass(frozen=True)
class Stage:
    """What a training module needs beside the config.

    Attributes:
        arguments: Those that `tiny()` needs.
        previous: Which argument takes the checkpoint of the stage before.
        data: What its data need beside images and labels.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    previous: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


MASKS = {"mask_column": "mask", "mask_classes": 3}

NEEDS: Mapping[str, tuple[Stage, ...]] = {
    "medfusion": (
        Stage({"perceptual": None, "discriminator_channels": (8, 8), "adversarial_start": 0}),
        Stage(previous="autoencoder"),
    ),
    "spade": (
        Stage(data=MASKS),
        Stage(
            {"perceptual": None, "discriminator_width": 4, "discriminator_layers": 2},
            previous="label_maps",
            data=MASKS,
        ),
    ),
    "stylegan2": (Stage({"label_layers": 2}),),
    "vqvae2": (
        Stage(),
        Stage({"level": "top"}, previous="previous"),
        Stage({"level": "bottom"}, previous="previous"),
    ),
    "cyclegan": (Stage({"discriminator_width": 4, "discriminator_layers": 1}),),
}
"""Of the families whose stages need anything; a new one adds its line."""

STAGES: Mapping[str, tuple[Stage, ...]] = {
    name: NEEDS.get(name, (Stage(),) * len(family.stages)) for name, family in FAMILIES.items()
}


def tiny_config(family: str) -> GeneratorConfig:
    """The family's `tiny()` with the classes of the test data."""
    tiny = find_family(family).config_class().tiny()
    return replace(tiny, label_kind="single", label_names=("healthy", "ill"))
