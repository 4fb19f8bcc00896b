"""Augmentation moves image and mask alike, and depends on nothing but (seed, epoch, index)."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from medgen.data import Augmentation

EVERYTHING = Augmentation(
    horizontal_flip=True,
    vertical_flip=True,
    rotation_degrees=20,
    translation=0.1,
    scaling=0.2,
    shear_degrees=5,
    elastic_pixels=20,
    brightness=0.2,
    contrast=0.2,
)


def batch(count, size=32):
    """Images with one bright off-centre square each, and the same squares as masks."""
    masks = torch.zeros(count, size, size, dtype=torch.int64)
    masks[:, 6:14, 10:18] = 1
    return masks[:, None].float(), masks


def run(augment, count, *, seed=0, epoch=0, indices=None, masks=True):
    images, classes = batch(count)
    where = np.arange(count) if indices is None else np.array(indices)
    return augment(images, classes if masks else None, seed=seed, epochs=np.full(count, epoch), indices=where)


def test_nothing_changes_by_default():
    images, masks = run(Augmentation(), 3)
    torch.testing.assert_close(images, batch(3)[0], rtol=0, atol=0)
    torch.testing.assert_close(masks, batch(3)[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    "augment",
    [
        Augmentation(horizontal_flip=True),
        Augmentation(vertical_flip=True),
        Augmentation(rotation_degrees=30),
        Augmentation(translation=0.2),
        Augmentation(scaling=0.3),
        Augmentation(shear_degrees=20),
        Augmentation(elastic_pixels=40),
    ],
    ids=lambda augment: next(name for name, value in vars(augment).items() if value and name != "elastic_smoothness"),
)
def test_masks_move_exactly_as_their_images(augment):
    images, masks = run(augment, 16)
    assert (images[:, 0] - masks.float()).abs().mean() < 0.01  # interpolated edges
    assert not torch.equal(masks, batch(16)[1])
    assert masks.dtype == torch.int64
    assert set(masks.unique().tolist()) == {0, 1}


def test_what_comes_in_from_outside_mirrors_the_inside():
    bright = torch.full((8, 1, 32, 24), 0.7)
    augment = Augmentation(rotation_degrees=10, translation=0.2, scaling=0.2, shear_degrees=5)
    images, _ = augment(bright, None, seed=0, epochs=np.zeros(8, dtype=np.int64), indices=np.arange(8))
    torch.testing.assert_close(images, bright)


def test_a_shift_by_whole_pixels_does_not_blur():
    noise = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    shifted, _ = Augmentation(translation=0.1)(
        noise, None, seed=0, epochs=np.zeros(1, dtype=np.int64), indices=np.arange(1)
    )
    assert not torch.equal(shifted, noise)
    nearest = (shifted.flatten()[:, None] - noise.flatten()).abs().amin(1)  # every pixel is one of the original's
    assert nearest.max() < 1e-4


def test_intensities_change_without_the_mask():
    images, masks = run(Augmentation(brightness=0.3), 8)
    torch.testing.assert_close(masks, batch(8)[1], rtol=0, atol=0)
    assert images.amax((1, 2, 3)).unique().numel() > 1
    assert images.max() <= 1


def test_each_image_depends_on_seed_epoch_and_index_only():
    images, masks = run(EVERYTHING, 6, epoch=2)
    torch.manual_seed(123)
    for index in range(6):
        alone, mask = run(EVERYTHING, 1, epoch=2, indices=[index])
        torch.testing.assert_close(alone[0], images[index], rtol=0, atol=0)
        torch.testing.assert_close(mask[0], masks[index], rtol=0, atol=0)
    for other in (run(EVERYTHING, 6, epoch=3), run(EVERYTHING, 6, epoch=2, seed=1)):
        assert not torch.equal(other[0], images)


def test_elastic_deformations_are_those_of_torchvision(monkeypatch):
    ours = run(Augmentation(elastic_pixels=40, elastic_smoothness=3.3), 4)
    monkeypatch.setattr("medgen.data.augmentation._Elastic", v2.ElasticTransform)
    theirs = run(Augmentation(elastic_pixels=40, elastic_smoothness=3.3), 4)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-4)
    assert torch.equal(ours[1], theirs[1])


def test_images_are_the_same_with_and_without_masks():
    torch.testing.assert_close(run(EVERYTHING, 4)[0], run(EVERYTHING, 4, masks=False)[0], rtol=0, atol=0)


def test_the_global_random_state_is_left_alone_on_every_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", pytest.fail)
    before = torch.get_rng_state()
    run(EVERYTHING, 2)
    assert torch.equal(before, torch.get_rng_state())


def test_flips_happen_in_half_of_the_cases_and_independently():
    count = 2000
    images, _ = run(Augmentation(horizontal_flip=True, vertical_flip=True), count, masks=False)
    original = batch(1)[0][0]
    variants = [original, original.flip(-1), original.flip(-2), original.flip((-1, -2))]
    shares = [float((images == variant).flatten(1).all(dim=1).float().mean()) for variant in variants]
    assert sum(shares) == pytest.approx(1)
    assert shares == pytest.approx([0.25] * 4, abs=0.05)


def test_the_same_batch_is_not_changed_in_place():
    images, masks = batch(4)
    EVERYTHING(images, masks, seed=0, epochs=np.zeros(4, dtype=np.int64), indices=np.arange(4))
    torch.testing.assert_close(images, batch(4)[0], rtol=0, atol=0)
    torch.testing.assert_close(masks, batch(4)[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"translation": 1.5}, r"augment\.translation is 1\.5"),
        ({"rotation_degrees": -1}, r"augment\.rotation_degrees is -1"),
        ({"elastic_smoothness": 0}, r"augment\.elastic_smoothness is 0"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)
