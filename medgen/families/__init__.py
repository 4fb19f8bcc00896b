"""The families of models: one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from medgen.families import cyclegan, ddpm, medfusion, spade, stylegan2, stylegan3, vqvae2
from medgen.families.family import Family, Makes

if TYPE_CHECKING:
    from medgen.published import PublishedModel

FAMILIES: dict[str, Family] = {
    "medfusion": medfusion.FAMILY,
    "ddpm": ddpm.FAMILY,
    "spade": spade.FAMILY,
    "stylegan2": stylegan2.FAMILY,
    "stylegan3": stylegan3.FAMILY,
    "vqvae2": vqvae2.FAMILY,
    "cyclegan": cyclegan.FAMILY,
}


def find_family(name: str) -> Family:
    """The record of a family.

    Raises:
        ValueError: If there is no such family; a newer medgen may have it.
    """
    if name not in FAMILIES:
        raise ValueError(f"family {name!r} is unknown; this medgen has {', '.join(FAMILIES)}")
    return FAMILIES[name]


def family_names(makes: Makes = "generator") -> list[str]:
    """Names of the families whose models are generators, or of another kind."""
    return [name for name, family in FAMILIES.items() if family.makes == makes]


def family_class(name: str) -> type[PublishedModel]:
    """The class of a family's models, imported on demand.

    Raises:
        ValueError: If there is no such family; a newer medgen may have it.
    """
    return cast("type[PublishedModel]", find_family(name).model_class())
