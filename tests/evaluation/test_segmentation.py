"""Segmentation utility on images where the answer is known: bright squares, and darker ones, before noise."""

import numpy as np
import pytest
import torch

from medgen.evaluation.segmentation import (
    SegmentationSetup,
    SegmentationUNet,
    SegmentedImages,
    SegmenterRecipe,
    dice,
    segmentation_utility,
    train_segmenter,
)

RECIPE = SegmenterRecipe(width=8, levels=3, steps=60, batch_size=8, lr=1e-2)


def squares(n, seed, *, shift=0):
    """Squares of two classes; `shift` moves the masks away from what the images show."""
    random = np.random.default_rng(seed)
    images = 0.2 * torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(seed))
    masks = torch.zeros(n, 32, 32, dtype=torch.int64)
    for image, mask in zip(images, masks, strict=True):
        for k, level in ((1, 0.7), (2, 0.4)):
            top, left = random.integers(0, 20), random.integers(0, 8) + 16 * (k - 1)
            image[:, top : top + 8, left : left + 8] = level + 0.1 * torch.rand(1, 8, 8)
            mask[top + shift : top + shift + 8, left : left + 8] = k
    return SegmentedImages(images=images, masks=masks, rows=torch.arange(n), groups=torch.arange(n) // 2)


def setup(synthetic, **changes):
    options = {"folds": 2, "recipe": RECIPE, "class_names": ("background", "bright", "dim")}
    return SegmentationSetup(train=squares(24, 0), test=squares(12, 1), synthetic=synthetic, **(options | changes))


def test_dice_counts_pixels_and_leaves_out_what_is_in_neither():
    truth = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 0, 0]]])
    predicted = torch.tensor([[[0, 1, 1, 0]], [[0, 0, 0, 2]]])
    found = dice(predicted, truth, 4)
    assert found[0, 0] == pytest.approx(2 * 1 / (2 + 2))
    assert found[1, 1] == 0  # asked for nowhere, drawn once
    assert found[:, 2].isnan().all()
    assert torch.equal(dice(truth, truth, 2)[0], torch.ones(1, dtype=torch.float64))


def test_a_network_learns_what_can_be_seen_and_moves_masks_with_images():
    module = train_segmenter([squares(24, 0)], RECIPE, 3)
    test = squares(10, 1)
    images, masks = test.read(range(10))
    assert dice(module.masks(images), masks, 3).mean() > 0.85


def test_output_has_the_size_of_the_input_for_sizes_that_are_not_square():
    assert SegmentationUNet(3, 4, width=4, levels=3)(torch.rand(2, 3, 16, 24)).shape == (2, 4, 16, 24)
    odd = SegmentedImages(
        images=torch.rand(2, 1, 30, 32), masks=torch.zeros(2, 30, 32), rows=torch.arange(2), groups=torch.arange(2)
    )
    with pytest.raises(ValueError, match="images are 30x32 pixels; 3 levels need sides divisible by 4"):
        train_segmenter([odd], RECIPE, 2)


def test_good_synthetic_cases_do_not_hurt_and_wrong_masks_do():
    good = {item.name: item for item in segmentation_utility(setup(squares(24, 2)), ratios=(1,))}
    assert list(good) == ["real", "real + classical", "real + 1 x synthetic"]
    assert good["real"].value.value > 0.8
    assert good["real + 1 x synthetic"].value.value > 0.8
    assert set(good["real"].per_label) == {"bright", "dim"}
    assert good["real"].value.low <= good["real"].value.value <= good["real"].value.high
    assert good["real"].value.value == pytest.approx(np.mean(good["real"].runs))
    wrong = train_segmenter([squares(24, 0), squares(24, 2, shift=4)], RECIPE, 3)
    images, masks = squares(12, 1).read(range(12))
    assert dice(wrong.masks(images), masks, 3).mean() < good["real"].value.low


def test_ratios_without_enough_synthetic_cases_are_left_out():
    names = [
        item.name
        for item in segmentation_utility(setup(squares(6, 2), recipe=SegmenterRecipe(width=4, levels=2, steps=1)))
    ]
    assert names == ["real", "real + classical", "real + 0.5 x synthetic"]
