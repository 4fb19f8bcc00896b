"""Anatomy one can change: random but plausible label maps, for generators that draw images of them.

Source: Amirrajab et al. 2022, "Label-informed cardiac magnetic resonance image synthesis through conditional generative
adversarial networks"; Al Khalil et al. 2023, "On the usability of synthetic data for improving the robustness of deep
learning-based segmentation of cardiac magnetic resonance images".
"""

from medgen.anatomy.base import Compose, MaskTransform, Sometimes
from medgen.anatomy.deformation import RandomAffine, RandomElastic
from medgen.anatomy.lesions import InsertLesion
from medgen.anatomy.morphology import Thicken, Thin
from medgen.anatomy.topology import (
    HEART,
    Checked,
    Enclosed,
    NoHoles,
    OneComponent,
    Rule,
    Size,
    Tally,
    WithinImage,
    obeys,
)

__all__ = [
    "HEART",
    "Checked",
    "Compose",
    "Enclosed",
    "InsertLesion",
    "MaskTransform",
    "NoHoles",
    "OneComponent",
    "RandomAffine",
    "RandomElastic",
    "Rule",
    "Size",
    "Sometimes",
    "Tally",
    "Thicken",
    "Thin",
    "WithinImage",
    "obeys",
]
