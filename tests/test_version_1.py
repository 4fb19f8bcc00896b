"""Checkpoint folders of format version 1, one of each family, load and give the images that they gave when written."""

from pathlib import Path

import numpy as np
import pytest
import torch

from medgen.families.cyclegan.translator import Translator
from medgen.generator import Generator
from medgen.images import to_uint8

HOME = Path(__file__).parent / "stored" / "version_1"


def assert_close(images: torch.Tensor, folder: Path) -> None:
    difference = np.abs(to_uint8(images).numpy().astype(int) - np.load(folder / "images.npy").astype(int))
    assert difference.max() <= 1  # grey level: processors add up in other orders


@pytest.mark.parametrize("family", ["medfusion", "spade", "stylegan2", "stylegan3", "vqvae2"])
def test_a_generator_draws_the_same_images(family):
    assert_close(Generator.from_pretrained(HOME / family).sample(2, "finding", seed=0), HOME / family)


def test_a_translator_translates_the_same_image():
    image = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
    assert_close(Translator.from_pretrained(HOME / "cyclegan").translate(image, "ill"), HOME / "cyclegan")
