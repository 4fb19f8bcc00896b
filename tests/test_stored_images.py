"""Bundled checkpoints draw the images that they drew when these were stored."""

from functools import cache

import numpy as np
import pytest

from medgen.generator import Generator
from medgen.images import to_uint8
from medgen.zoo import load
from tests.stored import FOLDER, OPTIONS, SEED, N, cases


@cache
def loaded(name: str) -> Generator:
    return load(name)


def drawn(name: str, key: str) -> np.ndarray:
    number, _, label = key.partition(":")
    images = loaded(name).sample(N, label or None, seed=SEED, **OPTIONS[name][int(number)])
    return to_uint8(images).numpy()


@pytest.mark.parametrize(("name", "key"), [pytest.param(*case, id=" ".join(case)) for case in cases()])
def test_the_images_are_those_that_were_stored(name, key):
    with np.load(FOLDER / f"{name}.npz") as stored:
        expected = stored[key].astype(int)
    images = drawn(name, key).astype(int)
    assert images.shape == expected.shape
    # Processors add up in other orders: elsewhere a pixel in a thousand may be one grey level apart.
    difference = np.abs(images - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.001
