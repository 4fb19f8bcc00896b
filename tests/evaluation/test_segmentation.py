"""Segmentation networks on images where the answer is known: bright squares, and darker ones, before noise."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from medgen.data import TableDataModule
from medgen.data.augmentation import Augmentation
from medgen.evaluation.judges.segmentation import (
    SegmentationUNet,
    SegmentedImages,
    SegmenterRecipe,
    class_means,
    dice,
    overlaps,
    patient_means,
    patient_scores,
    segmented_images,
    train_segmenter,
)
from medgen.evaluation.statistics.hausdorff import hausdorff

RECIPE = SegmenterRecipe(width=8, levels=3, steps=60, batch_size=4, lr=1e-2)


def squares(n, seed, *, shift=0, levels=(0.7, 0.4)):
    """Squares of two classes, two images of each patient; `shift` moves the masks away from what the images show."""
    random = np.random.default_rng(seed)
    images = 0.2 * torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(seed))
    masks = torch.zeros(n, 32, 32, dtype=torch.int64)
    for image, mask in zip(images, masks, strict=True):
        for k, level in enumerate(levels, start=1):
            top, left = random.integers(0, 20), random.integers(0, 8) + 16 * (k - 1)
            image[:, top : top + 8, left : left + 8] = level + torch.from_numpy(0.1 * random.random((1, 8, 8)))
            mask[top + shift : top + shift + 8, left : left + 8] = k
    return SegmentedImages(images=images, masks=masks, rows=torch.arange(n), groups=torch.arange(n) // 2)


class Oracle:
    """Gives the masks of the images it knows, whatever they show."""

    def __init__(self, data, classes=3):
        self.answers = {image.numpy().tobytes(): mask for image, mask in zip(data.images, data.masks, strict=True)}
        self.classes = classes

    def masks(self, images):
        return torch.stack([self.answers[image.numpy().tobytes()] for image in images])


def test_dice_counts_pixels_and_leaves_out_what_is_in_neither():
    truth = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 0, 0]]])
    predicted = torch.tensor([[[0, 1, 1, 0]], [[0, 0, 0, 2]]])
    found = dice(predicted, truth, 4)
    assert found[0, 0] == pytest.approx(2 * 1 / (2 + 2))
    assert found[1, 1] == 0  # asked for nowhere, drawn once
    assert found[:, 2].isnan().all()
    assert torch.equal(dice(truth, truth, 2)[0], torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(2, 8, 4), (1, 4, 8)])
@pytest.mark.parametrize("measure", [overlaps, dice, hausdorff])
def test_masks_of_other_shapes_are_not_compared(measure, shape):
    masks = torch.ones(2, 4, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match=re.escape(f"predicted is (2, 4, 8), truth {shape}; give the same shapes")):
        measure(masks, masks.new_ones(shape), 2)


@pytest.mark.slow
def test_a_network_learns_what_can_be_seen_and_moves_masks_with_images():
    recipe = replace(RECIPE, augment=Augmentation(horizontal_flip=True, translation=0.1))
    module = train_segmenter([squares(24, 0)], recipe, 3)
    images, masks = squares(10, 1).read(range(10))
    assert dice(module.masks(images), masks, 3).mean() > 0.85


def test_output_has_the_size_of_the_input_for_sizes_that_are_not_square():
    assert SegmentationUNet(3, 4, width=4, levels=3)(torch.rand(2, 3, 16, 24)).shape == (2, 4, 16, 24)
    odd = SegmentedImages(
        images=torch.rand(2, 1, 30, 32), masks=torch.zeros(2, 30, 32), rows=torch.arange(2), groups=torch.arange(2)
    )
    with pytest.raises(ValueError, match="images are 30x32 pixels; 3 levels need sides divisible by 4"):
        train_segmenter([odd], RECIPE, 2)


@pytest.mark.parametrize(
    ("size", "levels"),
    [((64, 64), 4), ((128, 128), 5), ((128, 96), 4), ((152, 152), 4), ((256, 320), 6), ((20, 28), 3)],
)
def test_larger_images_are_seen_at_more_resolutions(size, levels):
    assert SegmenterRecipe().for_images(*size).levels == levels
    assert SegmenterRecipe(levels=2).for_images(*size).levels == 2


@pytest.mark.slow
def test_wrong_masks_in_training_show_in_the_scores():
    wrong = train_segmenter([squares(24, 0), squares(24, 2, shift=4)], RECIPE, 3)
    right = train_segmenter([squares(24, 0), squares(24, 2)], RECIPE, 3)
    assert patient_scores(wrong, squares(12, 1)).dice.max() < patient_scores(right, squares(12, 1)).dice.min()


def test_a_network_that_is_right_has_a_dice_of_1_and_no_distance():
    data = squares(7, 0)
    found = patient_scores(Oracle(data), data, batch_size=3)
    assert found.patients.tolist() == [0, 1, 2, 3]
    assert torch.equal(found.dice, torch.ones(4, 2, dtype=torch.float64))
    assert torch.equal(found.hausdorff, torch.zeros(4, 2, dtype=torch.float64))


def test_masks_that_are_shifted_are_as_far_away_as_the_shift():
    found = patient_scores(Oracle(squares(6, 0)), squares(6, 0, shift=3))
    torch.testing.assert_close(found.hausdorff, torch.full((3, 2), 3.0, dtype=torch.float64))
    torch.testing.assert_close(found.dice, torch.full((3, 2), 5 / 8, dtype=torch.float64))


def test_only_the_rows_that_are_meant_are_judged_and_patients_keep_their_labels():
    data = replace(squares(8, 0), labels=torch.tensor([5, 5, 6, 6, 7, 7, 8, 8]))
    found = patient_scores(Oracle(data), data.subset(torch.tensor([7, 2, 3])))
    assert found.patients.tolist() == [1, 3]
    assert found.labels.tolist() == [6, 8]


def test_a_class_that_no_mask_has_is_not_judged_by_where_it_was_seen():
    truth = squares(4, 0)
    truth = replace(truth, masks=truth.masks % 2)  # without class 2, which the network sees everywhere
    found = patient_scores(Oracle(squares(4, 0)), truth)
    assert found.dice[:, 1].isnan().all()
    assert found.hausdorff[:, 1].isnan().all()
    assert (found.dice[:, 0] == 1).all()


def test_the_mean_over_images_of_a_patient_leaves_out_what_is_not_there():
    values = torch.tensor([[1.0, torch.nan], [3.0, 4.0], [5.0, torch.nan]])
    means = patient_means(values, torch.tensor([9, 9, 2]))
    torch.testing.assert_close(means, torch.tensor([[5.0, torch.nan], [2.0, 4.0]]), equal_nan=True)


def test_means_over_classes_count_patients_as_often_as_they_were_drawn():
    values = torch.tensor([[1.0, 10.0], [2.0, torch.nan]], dtype=torch.float64)
    found = class_means(np.array([[1.0, 1.0], [3.0, 1.0], [0.0, 2.0]]), values)
    np.testing.assert_allclose(found, [[5.75, 1.5, 10], [5.625, 1.25, 10], [2, 2, np.nan]])


def test_data_without_masks_are_refused(table):
    data = TableDataModule(csv=str(table), image_size=16, cache=False)
    with pytest.raises(ValueError, match="the data have no masks; give mask_classes, and for a table mask_column"):
        segmented_images(data, "train")


@pytest.mark.slow
def test_a_short_training_finds_the_heart_of_other_patients(data_root):
    folder = data_root / "cardiac_mr"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    data = TableDataModule(
        csv=str(folder / "labels.csv"),
        root=str(folder / "images_labels.zip"),
        split_column="split",
        patient_column="patient_id",
        label_column="group",
        mask_column="label_map",
        mask_classes=4,
        image_size=64,
    )
    train, val = segmented_images(data, "train"), segmented_images(data, "val")
    assert (len(train.groups.unique()), len(val.groups.unique())) == (59, 10)
    found = patient_scores(train_segmenter([train], SegmenterRecipe(steps=60, batch_size=8), 4), val)
    assert len(found.labels.unique()) == 5
    ventricle, muscle, cavity = found.dice.nanmean(0).tolist()
    assert ventricle > 0.4
    assert muscle > 0.5
    assert cavity > 0.7
