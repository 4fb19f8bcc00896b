"""Random but plausible changes of anatomical label maps, for generators of images from them.

Transforms take maps and one random stream per map::

    from medgen.anatomy import HEART, Checked, Compose, RandomElastic, Thicken
    from medgen.noise import NoiseSource

    change = Checked(Compose([RandomElastic(pixels=(0, 2), smoothness=16), Thicken(2, (1, 3), into=(0, 3))]), HEART)
    changed = change(masks, NoiseSource(0, range(len(masks))))  # masks are (n, H, W) int64; another seed, other hearts
    print(change.tally)

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
    SCARRED_HEART,
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
    "SCARRED_HEART",
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
