"""The families of generators: one line each."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medgen.published import PublishedModel

FAMILIES: dict[str, str] = {
    "medfusion": "medgen.families.medfusion.generator:MedfusionGenerator",
    "spade": "medgen.families.spade.generator:SPADEGenerator",
    "stylegan2": "medgen.families.stylegan2.generator:StyleGAN2Generator",
    "stylegan3": "medgen.families.stylegan3.generator:StyleGAN3Generator",
    "vqvae2": "medgen.families.vqvae2.generator:VQVAE2Generator",
}


_TRANSLATORS = {"cyclegan": "medgen.families.cyclegan.translator:CycleGANTranslator"}


def family_class(name: str) -> type[PublishedModel]:
    """The generator class of a family, imported on demand.

    Raises:
        ValueError: If there is no such family; a newer medgen may have it.
    """
    if name not in FAMILIES and name not in _TRANSLATORS:
        raise ValueError(f"family {name!r} is unknown; this medgen has {', '.join(FAMILIES)}")
    module, _, attribute = (FAMILIES | _TRANSLATORS)[name].partition(":")
    found: type[PublishedModel] = getattr(import_module(module), attribute)
    return found
