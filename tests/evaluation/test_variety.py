import pytest
import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from medgen.evaluation.checks.variety import lossless_bytes, mean_image, ms_ssim, pair_similarity, scales


def stripes(n, seed):
    """Images with stripes at random places, of size 64."""
    shift = torch.randint(64, (n,), generator=torch.Generator().manual_seed(seed))
    wave = torch.sin(torch.arange(64) / 3)
    return torch.stack([wave.roll(int(s)).expand(1, 64, 64) for s in shift]) / 2 + 0.5


def test_the_mean_of_varied_images_packs_smaller_than_that_of_collapsed_ones():
    rows = torch.arange(200)
    varied = mean_image(stripes(200, 0), rows)
    collapsed = mean_image(stripes(1, 0).expand(200, -1, -1, -1), rows)
    for kind in ("png", "jpeg"):
        assert lossless_bytes(varied)[kind] < lossless_bytes(collapsed)[kind]


def test_mean_is_of_the_given_rows_only():
    images = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4), 0.5 * torch.ones(1, 4, 4)])
    assert mean_image(images, torch.tensor([0, 2])).unique().item() == 0.25


def test_files_are_lossless_in_colour_and_grey():
    generator = torch.Generator().manual_seed(0)
    for channels in (1, 3):
        image = torch.rand(channels, 32, 32, generator=generator)
        assert min(lossless_bytes(image).values()) > 0.9 * channels * 32 * 32  # noise does not pack


def test_ms_ssim_is_that_of_the_paper_where_five_scales_fit():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 1, 192, 192, generator=generator)
    b = 0.7 * a + 0.3 * torch.rand(2, 1, 192, 192, generator=generator)
    expected = [
        multiscale_structural_similarity_index_measure(a[i : i + 1], b[i : i + 1], data_range=1.0) for i in (0, 1)
    ]
    torch.testing.assert_close(ms_ssim(a, b), torch.stack(expected))


@pytest.mark.slow
@pytest.mark.parametrize(("side", "expected"), [(11, 1), (64, 3), (96, 3), (99, 4), (176, 5), (1024, 5)])
def test_small_images_get_as_many_scales_as_fit(side, expected):
    assert scales(side) == expected
    image = torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ms_ssim(image, image), torch.ones(2))


def test_images_too_small_for_one_window_are_refused():
    with pytest.raises(ValueError, match="images are 8 pixels wide or high; MS-SSIM needs at least 11"):
        scales(8)


def test_collapsed_images_are_more_alike_than_varied_ones():
    varied = pair_similarity(stripes(40, 0), torch.arange(40), pairs=60)
    collapsed = pair_similarity(stripes(1, 0).expand(40, -1, -1, -1), torch.arange(40), pairs=60)
    assert varied.high < collapsed.low
    assert collapsed.value == pytest.approx(1)
    with pytest.raises(ValueError, match="pairs need at least two"):
        pair_similarity(stripes(4, 0), torch.tensor([0]))
