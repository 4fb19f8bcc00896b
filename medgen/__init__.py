"""medgen: train, sample, evaluate and share generative models of 2-D medical images.

The public names below are imported on first use, so that ``import medgen`` costs milliseconds and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from medgen.evaluation.run import evaluate
    from medgen.generator import Generator, GeneratorConfig
    from medgen.hub import push
    from medgen.loading import load
    from medgen.translator import Translator
    from medgen.zoo import list_models

_HOME = {
    "Generator": "medgen.generator",
    "GeneratorConfig": "medgen.generator",
    "Translator": "medgen.translator",
    "evaluate": "medgen.evaluation.run",
    "list_models": "medgen.zoo",
    "load": "medgen.loading",
    "push": "medgen.hub",
}

__all__ = ["Generator", "GeneratorConfig", "Translator", "__version__", "evaluate", "list_models", "load", "push"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'medgen' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
