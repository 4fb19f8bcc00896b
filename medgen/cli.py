"""Entry point of the command ``medgen``; see `medgen.commands.main`."""

from medgen.commands.main import main

__all__ = ["main"]
