"""Conversion of ``.pkl`` files of the official StyleGAN3 code."""

from __future__ import annotations

from collections.abc import Sequence

from medgen.families.family import Converted
from medgen.families.stylegan2.official import convert_networks, has_weight
from medgen.families.stylegan3.convert import load_generator_weights, pickled_config
from medgen.families.stylegan3.generator import StyleGAN3Generator
from medgen.foreign.file import ForeignFile


def is_official(file: ForeignFile) -> bool:
    """Check for a ``.pkl`` with a StyleGAN3."""
    return has_weight(file, "synthesis.input.freqs")


def convert_pickle(
    file: ForeignFile, *, image_size: tuple[int, int] | None = None, label_names: Sequence[str] = ()
) -> Converted:
    """Convert the averaged generator of a ``.pkl``; see `convert_networks`."""
    return convert_networks(
        file, StyleGAN3Generator, pickled_config, load_generator_weights, image_size=image_size, label_names=label_names
    )
