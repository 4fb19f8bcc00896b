import math

import pytest
import torch

from medgen.losses.ssim import ssim


@pytest.mark.parametrize("shape", [(2, 3, 24, 30), (2, 1, 12, 16, 14)])
def test_an_image_is_fully_like_itself(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    torch.testing.assert_close(ssim(x, x), torch.ones(2))


def test_flat_images_differ_in_brightness_only() -> None:
    a, b, c1 = 0.2, 0.7, 0.01**2
    likeness = ssim(torch.full((1, 1, 16, 16), a), torch.full((1, 1, 16, 16), b))
    assert likeness.item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-4)


def test_one_window_agrees_with_the_formula() -> None:
    x, y = torch.rand(1, 1, 11, 11, dtype=torch.float64), torch.rand(1, 1, 11, 11, dtype=torch.float64)
    tap = torch.tensor([math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)], dtype=torch.float64)
    w = tap[:, None] * tap[None, :] / tap.sum() ** 2
    mean_x, mean_y = (w * x).sum(), (w * y).sum()
    var_x, var_y = (w * (x - mean_x) ** 2).sum(), (w * (y - mean_y) ** 2).sum()
    covariance = (w * (x - mean_x) * (y - mean_y)).sum()
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    expected = expected / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    assert ssim(x, y).item() == pytest.approx(expected.item(), rel=1e-9)


def test_a_volume_of_equal_slices_is_as_alike_as_its_slices() -> None:
    x, y = torch.rand(2, 1, 20, 20), torch.rand(2, 1, 20, 20)
    volumes = [image[:, :, None].expand(-1, -1, 12, -1, -1) for image in (x, y)]
    torch.testing.assert_close(ssim(*volumes), ssim(x, y), atol=1e-5, rtol=0)


def test_every_image_is_compared_on_its_own() -> None:
    x, y = torch.rand(3, 1, 16, 16), torch.rand(3, 1, 16, 16)
    torch.testing.assert_close(ssim(x, y)[1:2], ssim(x[1:2], y[1:2]))


def test_opposite_images_count_as_zero_if_wanted() -> None:
    x = torch.rand(1, 1, 16, 16)
    assert ssim(x, 1 - x) < -0.5
    assert ssim(x, 1 - x, nonnegative=True) == 0


def test_sides_shorter_than_the_window_are_compared_pixel_by_pixel() -> None:
    x, y, c1 = torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8), 0.01**2
    expected = ((2 * x * y + c1) / (x * x + y * y + c1)).mean()
    assert ssim(x, y).item() == pytest.approx(expected.item(), rel=1e-5)


def test_mixed_precision_does_not_change_the_result() -> None:
    x = torch.rand(1, 1, 32, 32)
    y = (x + 0.01 * torch.randn_like(x)).clamp(0, 1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = ssim(x, y)
    torch.testing.assert_close(mixed, ssim(x, y))


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ssim got shapes \(1, 1, 16, 16\) and \(1, 1, 16, 17\)"):
        ssim(torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 17))


def test_an_even_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window is 10; use an odd number"):
        ssim(torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16), window=10)
