"""Checkpoint folders of format version 1, one of each family, load and give the images that they gave when written."""

from pathlib import Path

import numpy as np
import pytest
import torch

from medgen.families.cyclegan.translator import CycleGANTranslator
from medgen.images import to_uint8
from medgen.loading import from_pretrained
from tests.stored import VERSION_1

TRANSLATOR = "cyclegan"
GENERATORS = sorted(folder.name for folder in VERSION_1.iterdir() if folder.name != TRANSLATOR)


def assert_close(images: torch.Tensor, folder: Path) -> None:
    expected = np.load(folder / "images.npy").astype(int)
    found = to_uint8(images).numpy().astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1  # grey level: processors add up in other orders


@pytest.mark.parametrize("family", GENERATORS)
def test_a_generator_draws_the_same_images(family):
    assert_close(from_pretrained(VERSION_1 / family).sample(2, "finding", seed=0), VERSION_1 / family)


def test_a_translator_translates_the_same_image():
    image = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
    folder = VERSION_1 / TRANSLATOR
    assert_close(CycleGANTranslator.from_pretrained(folder).translate(image, "ill"), folder)
