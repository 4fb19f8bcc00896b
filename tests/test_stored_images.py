"""Bundled checkpoints draw the images that they drew when these were stored."""

import numpy as np
import pytest

from medgen.zoo import ZOO
from tests.stored import FOLDER, OPTIONS, cases, drawn


def test_every_bundled_checkpoint_has_stored_images():
    assert set(OPTIONS) == {name for name, entry in ZOO.items() if entry.where == "bundled"}


@pytest.mark.parametrize("name", OPTIONS)
def test_nothing_is_stored_that_is_not_compared(name):
    with np.load(FOLDER / f"{name}.npz") as stored:
        assert set(stored.files) == set(cases(name))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key"), [(name, key) for name in OPTIONS for key in cases(name)])
def test_the_images_are_those_that_were_stored(name, key):
    with np.load(FOLDER / f"{name}.npz") as stored:
        expected = stored[key].astype(int)
    images = drawn(name, key).astype(int)
    assert images.shape == expected.shape
    # Processors add up in other orders: elsewhere a pixel in a thousand may be one grey level apart.
    difference = np.abs(images - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.001
