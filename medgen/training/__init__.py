"""Training: bases of the modules, stages, EMA, augmentation, callbacks, and runs from a recipe."""

from medgen.training.adversarial import AdversarialModule
from medgen.training.base import GenerativeModule, LossModule, PublishingModule, ReproducibleModule

__all__ = ["AdversarialModule", "GenerativeModule", "LossModule", "PublishingModule", "ReproducibleModule"]
