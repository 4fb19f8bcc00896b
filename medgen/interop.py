"""The earlier name of `medgen.foreign.convert`."""

from medgen.families.family import Component
from medgen.foreign.convert import convert, load_official, official_networks

COMPONENTS = official_networks()

__all__ = ["COMPONENTS", "Component", "convert", "load_official"]
