"""Hausdorff distances of shapes whose distance is known."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import directed_hausdorff

from medgen.evaluation.statistics.hausdorff import hausdorff


def blank(n=1):
    return torch.zeros(n, 40, 60, dtype=torch.int64)


def disc(radius, *, row=20, column=30, label=1):
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(60), indexing="ij")
    return label * ((rows - row).square() + (columns - column).square() <= radius * radius).long()[None]


def square(top, left, side=9):
    mask = blank()
    mask[:, top : top + side, left : left + side] = 1
    return mask


@pytest.mark.parametrize("quantile", [0.95, 1])
@pytest.mark.parametrize(("down", "right", "distance"), [(0, 0, 0), (0, 4, 4), (5, 0, 5)])
def test_squares_are_as_far_apart_as_they_were_shifted(down, right, distance, quantile):
    assert hausdorff(square(5, 10), square(5 + down, 10 + right), 2, quantile=quantile).item() == distance


def test_of_squares_that_were_shifted_along_a_diagonal_only_a_corner_is_as_far():
    assert hausdorff(square(5, 10), square(17, 26), 2, quantile=1).item() == math.hypot(12, 16)
    assert 16 < hausdorff(square(5, 10), square(17, 26), 2).item() < 20


@pytest.mark.parametrize(("row", "column"), [(9, 9), (9, 19), (4, 14), (14, 14)])
def test_a_bump_on_any_side_is_a_pixel_away(row, column):
    bumped = square(5, 10)
    bumped[0, row, column] = 1
    assert hausdorff(bumped, square(5, 10), 2, quantile=1).item() == 1


def test_circles_around_one_centre_differ_by_their_radii():
    assert hausdorff(disc(8), disc(15), 2, quantile=1).item() == pytest.approx(7, abs=0.5)
    assert hausdorff(disc(8), disc(15), 2).item() == pytest.approx(7, abs=0.5)


def test_a_stray_pixel_moves_the_maximum_and_not_the_95_percent():
    stray = disc(10)
    stray[0, 20, 59] = 1
    assert hausdorff(stray, disc(10), 2, quantile=1).item() == 19
    assert hausdorff(stray, disc(10), 2).item() == 0


def test_the_larger_direction_counts_whichever_mask_is_first():
    both = disc(4, column=10) | disc(4, column=40)
    one = disc(4, column=10)
    assert hausdorff(both, one, 2).item() == hausdorff(one, both, 2).item()
    assert hausdorff(both, one, 2, quantile=1).item() == pytest.approx(30, abs=0.5)


def test_a_hole_has_a_border_and_so_has_the_edge_of_the_image():
    whole = torch.ones_like(blank())
    holed = whole.clone()
    holed[0, 20, 30] = 0
    assert hausdorff(whole, whole, 2).item() == 0
    assert hausdorff(holed, whole, 2, quantile=1).item() == 19  # from the pixel above the hole to the upper edge


def test_what_is_in_neither_mask_is_nan_and_what_is_in_one_is_as_far_as_the_diagonal():
    predicted, truth = torch.cat([disc(5), blank()]), torch.cat([disc(5), disc(5, label=2)])
    found = hausdorff(predicted, truth, 4)
    assert found.shape == (2, 3)
    assert found[0, 0] == 0
    assert found[1, 1] == math.hypot(40, 60)
    assert found[:, 2].isnan().all()
    assert found[1, 0].isnan()


def test_the_maximum_of_filled_shapes_agrees_with_scipy_on_their_border_points():
    random = np.random.default_rng(0)
    for _ in range(5):
        a, b = (disc(*random.integers(3, 9, 1), row=r, column=c) for r, c in random.integers(10, 30, (2, 2)))
        points = [[p for p in np.argwhere(mask[0].numpy()) if is_border(mask[0], *p)] for mask in (a, b)]
        expected = max(directed_hausdorff(*points)[0], directed_hausdorff(*points[::-1])[0])
        assert hausdorff(a, b, 2, quantile=1).item() == pytest.approx(expected)


def is_border(mask, row, column):
    return bool(mask[row, column]) and not all(
        mask[row + down, column + right] for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0))
    )


def test_what_is_no_label_map_is_refused():
    with pytest.raises(ValueError, match="masks hold the numbers 0 to 255; 2 classes are 0 to 1"):
        hausdorff(disc(5) * 255, disc(5), 2)
    with pytest.raises(ValueError, match=r"masks are torch.float32 of shape \(1, 40, 60\); give whole numbers"):
        hausdorff(disc(5).float(), disc(5), 2)
    with pytest.raises(ValueError, match=r"predicted is \(2, 40, 60\), truth \(1, 40, 60\); give the same shapes"):
        hausdorff(blank(2), blank(), 2)
    with pytest.raises(ValueError, match="quantile is 95; give a number above 0 and at most 1"):
        hausdorff(disc(5), disc(5), 2, quantile=95)
