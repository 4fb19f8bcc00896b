"""Whether images show the masks they were asked for: on squares, with a trained network and with one that knows all."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from medgen.evaluation.checks.consistency import consistency, intensity_distance, style_agreement
from medgen.evaluation.judges.segmentation import train_segmenter
from tests.evaluation.test_segmentation import RECIPE, Oracle, squares

NAMES = ("background", "bright", "dim")


@pytest.fixture(scope="module")
def segmenter():
    return train_segmenter([squares(24, 0)], RECIPE, 3)


@pytest.mark.slow
def test_images_that_show_their_masks_are_read_as_well_as_real_ones(segmenter):
    found = consistency(segmenter, squares(16, 5), squares(16, 6), NAMES)
    assert found.dice.real.value > 0.85
    assert found.dice.ratio.value == pytest.approx(1, abs=0.1)
    assert set(found.dice_per_class) == set(found.hausdorff_per_class) == {"bright", "dim"}
    assert found.dice_per_class["dim"].synthetic.value > 0.85


@pytest.mark.slow
def test_images_that_show_another_mask_are_found_out(segmenter):
    found = consistency(segmenter, squares(16, 5, shift=4), squares(16, 6), NAMES)
    assert found.dice.ratio.high < 0.7
    assert found.hausdorff.synthetic.value > found.hausdorff.real.high
    assert found.hausdorff.synthetic.value == pytest.approx(4, abs=0.5)


def test_the_ratio_is_that_of_the_means():
    # Squares of 8 pixels that are moved by s overlap by (8 - s) / 8.
    synthetic, real = squares(6, 0, shift=4), squares(6, 0, shift=2)
    found = consistency(Oracle(squares(6, 0)), synthetic, real, NAMES).dice
    assert (found.synthetic.value, found.real.value) == pytest.approx((4 / 8, 6 / 8))
    assert found.ratio == pytest.approx((2 / 3, 2 / 3, 2 / 3))


def test_the_network_may_err_as_much_on_real_images():
    data = squares(6, 0, shift=4)
    found = consistency(Oracle(squares(6, 0)), data, data, NAMES)
    assert found.dice.ratio == pytest.approx((1, 1, 1))
    assert found.hausdorff.ratio == pytest.approx((1, 1, 1))


def test_the_masks_of_one_patient_are_drawn_on_both_sides():
    shifts = [squares(2, seed, shift=shift) for seed, shift in enumerate((0, 1, 2, 3, 4, 5))]
    data = replace(
        squares(12, 0),
        images=torch.cat([part.images for part in shifts]),
        masks=torch.cat([part.masks for part in shifts]),
    )
    truth = replace(data, masks=torch.cat([squares(2, seed).masks for seed in range(6)]))
    same = consistency(Oracle(truth), data, data, NAMES).dice.ratio
    others = consistency(Oracle(truth), replace(data, groups=data.groups + 100), data, NAMES).dice.ratio
    assert same == pytest.approx((1, 1, 1))
    assert others.value == pytest.approx(1)
    assert others.low < 0.9 < 1.1 < others.high


def test_a_class_that_one_side_lacks_is_left_out():
    data = squares(6, 0)
    bright = replace(data, masks=data.masks % 2)
    found = consistency(Oracle(data), bright, data, NAMES)
    assert list(found.dice_per_class) == ["bright"]
    assert found.dice.synthetic.value == 1
    with pytest.raises(ValueError, match="have no class in common but the background"):
        consistency(Oracle(data), bright, replace(data, masks=data.masks // 2 * 2), NAMES)


def test_distances_have_no_ratio_where_all_real_masks_are_met():
    found = consistency(Oracle(squares(6, 0)), squares(6, 0, shift=4), squares(6, 0), NAMES)
    assert (found.hausdorff.synthetic.value, found.hausdorff.real.value) == (4, 0)
    assert np.isnan(found.hausdorff.ratio).all()


@pytest.mark.slow
def test_what_does_not_fit_is_refused(segmenter):
    data = squares(4, 0)
    with pytest.raises(ValueError, match="class_names has 2 names; the network has 3 classes"):
        consistency(segmenter, data, data, NAMES[:2])
    half = replace(data, images=data.images[..., :16], masks=data.masks[..., :16])
    with pytest.raises(ValueError, match=r"synthetic images are \(1, 32, 16\), real ones \(1, 32, 32\) "):
        consistency(segmenter, half, data, NAMES)
    with pytest.raises(ValueError, match="masks hold the numbers 0 to 6; 3 classes are 0 to 2"):
        consistency(segmenter, replace(data, masks=data.masks * 3), data, NAMES)
    with pytest.raises(ValueError, match=r"images_a is \(4, 1, 32, 32\), images_b \(3, 1, 32, 32\)"):
        style_agreement(segmenter, data.images, data.images[:3])
    with pytest.raises(ValueError, match="groups has 3 entries for 4 images"):
        style_agreement(segmenter, data.images, data.images, groups=torch.arange(3))


def test_another_contrast_changes_intensities_and_not_the_anatomy(segmenter):
    images = squares(12, 5).images
    other = 0.7 * images + 0.2  # in the same order, so that each intensity moves to its own new value
    found = style_agreement(segmenter, images, other, groups=torch.arange(12) // 2)
    assert found.dice.value > 0.95
    assert found.intensity.value == pytest.approx(float((other - images).abs().mean()))
    assert found.intensity.low < found.intensity.value < found.intensity.high


def test_another_anatomy_changes_the_agreement_and_not_the_intensities(segmenter):
    images = squares(12, 5).images
    found = style_agreement(segmenter, images, images.roll(8, 2))
    assert found.intensity == (0, 0, 0)
    assert found.dice.high < 0.5
    assert found.dice_per_class[0].high < 0.5


def test_the_same_images_agree_in_everything(segmenter):
    images = squares(4, 5).images
    found = style_agreement(segmenter, images, images, batch_size=3)
    assert found.dice == (1, 1, 1)
    assert len(found.dice_per_class) == 2
    assert found.intensity == (0, 0, 0)


def test_intensity_distances_agree_with_scipy():
    random = torch.Generator().manual_seed(0)
    a, b = torch.rand(3, 2, 8, 8, generator=random), torch.rand(3, 2, 8, 8, generator=random) ** 2
    expected = [
        np.mean([wasserstein_distance(x.flatten(), y.flatten()) for x, y in zip(one, other, strict=True)])
        for one, other in zip(a.numpy(), b.numpy(), strict=True)
    ]
    np.testing.assert_allclose(intensity_distance(a, b), expected, rtol=1e-6)
