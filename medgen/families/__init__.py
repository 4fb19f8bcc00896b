"""The families of generators: one line each."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medgen.generator import Generator

FAMILIES: dict[str, str] = {
    "medfusion": "medgen.families.medfusion.generator:MedfusionGenerator",
    "spade": "medgen.families.spade.generator:SPADEGenerator",
    "stylegan2": "medgen.families.stylegan2.generator:StyleGAN2Generator",
    "stylegan3": "medgen.families.stylegan3.generator:StyleGAN3Generator",
    "vqvae2": "medgen.families.vqvae2.generator:VQVAE2Generator",
}


def family_class(name: str) -> type[Generator]:
    """The generator class of a family, imported on demand.

    Raises:
        ValueError: If there is no such family; a newer medgen may have it.
    """
    if name == "cyclegan":
        raise ValueError(
            "cyclegan models translate images instead of drawing them; use "
            "medgen.families.cyclegan.translator.Translator.from_pretrained"
        )
    if name not in FAMILIES:
        raise ValueError(f"family {name!r} is unknown; this medgen has {', '.join(FAMILIES)}")
    module, _, attribute = FAMILIES[name].partition(":")
    found: type[Generator] = getattr(import_module(module), attribute)
    return found
