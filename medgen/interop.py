"""The earlier name of `medgen.foreign.convert`."""

from medgen.foreign.convert import COMPONENTS, Component, convert, load_official

__all__ = ["COMPONENTS", "Component", "convert", "load_official"]
