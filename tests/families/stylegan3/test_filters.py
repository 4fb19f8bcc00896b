"""The low-pass filters: what they let pass, in all directions, and that they move nothing."""

import math

import pytest
import torch

from medgen.families.stylegan3.filters import FilteredActivation, downsampling, low_pass, upsampling

SETTINGS = {"cutoff": 4.0, "width": 6.0, "rate": 32.0}


def response(kernel: torch.Tensor, frequency: float, angle: float = 0.0) -> float:
    """What is left of the amplitude of a wave."""
    places = (torch.arange(len(kernel)) - (len(kernel) - 1) / 2).double() / SETTINGS["rate"]
    if kernel.dim() == 1:
        return ((2 * math.pi * frequency * places).cos() * kernel).sum().item()
    along = math.cos(angle) * places + math.sin(angle) * places[:, None]
    return ((2 * math.pi * frequency * along).cos() * kernel).sum().item()


@pytest.mark.parametrize("radial", [False, True])
def test_a_filter_passes_what_is_below_the_cutoff(radial: bool) -> None:
    kernel = low_pass(24, **SETTINGS, radial=radial)
    assert response(kernel, 0) == pytest.approx(1, abs=1e-6)
    assert response(kernel, 1) > 0.99
    beyond = [abs(response(kernel, frequency)) for frequency in range(8, 17)]
    assert max(beyond) < 0.01


def test_half_is_left_at_the_cutoff() -> None:
    lines, discs = (
        [response(low_pass(24, cutoff=cutoff, width=6.0, rate=32.0, radial=radial), cutoff) for cutoff in (4, 6, 8)]
        for radial in (False, True)
    )
    assert lines == pytest.approx([0.5] * 3, abs=1e-3)
    # The edge of a disc is curved, so that a little less than half of what is about a place on it lies within.
    assert 0.4 < discs[0] < discs[1] < discs[2] < 0.5


def test_a_radial_filter_is_the_same_in_all_directions_and_another_is_not() -> None:
    radial = low_pass(24, **SETTINGS, radial=True)
    line = low_pass(24, **SETTINGS)
    spread = []
    for kernel in (radial, torch.outer(line, line)):
        found = [response(kernel, 4.0, angle) for angle in (0.0, 0.3, math.pi / 4)]
        spread.append(max(found) - min(found))
    assert spread[0] < 0.01 < 0.1 < spread[1]


def test_a_filter_of_one_tap_changes_nothing() -> None:
    one = low_pass(1, **SETTINGS)
    assert torch.equal(upsampling(one, 1, start=0, pixels=5, size=5), torch.eye(5))
    assert torch.equal(downsampling(one, 1, size=5), torch.eye(5))


def test_upsampling_puts_zeros_between_pixels_and_filters_them() -> None:
    taps = torch.tensor([1.0, 2.0, 4.0, 8.0])
    found = upsampling(taps, 2, start=3, pixels=3, size=8) @ torch.tensor([1.0, 10.0, 100.0])
    line = torch.tensor([0, 0, 0, 1, 0, 10, 0, 100, 0, 0, 0]).float()
    expected = torch.stack([(line[i : i + 4] * taps).sum() for i in range(8)])
    assert torch.equal(found, 2 * expected)


def test_downsampling_takes_every_other_place_of_the_filter() -> None:
    taps, line = torch.tensor([1.0, 2.0, 4.0]), torch.arange(7.0).square()
    expected = torch.stack([(line[i : i + 3] * taps).sum() for i in (0, 2, 4)])
    assert torch.equal(downsampling(taps, 2, size=3) @ line, expected)


def test_upsampling_keeps_the_values_of_a_smooth_wave() -> None:
    line = low_pass(24, cutoff=8.0, width=8.0, rate=32.0)
    coarse, fine = ((torch.arange(n) + 0.5) / n for n in (16, 32))
    found = upsampling(line, 2, start=12, pixels=16, size=32) @ (2 * math.pi * 2 * coarse).sin()
    torch.testing.assert_close(found[12:20], (2 * math.pi * 2 * fine).sin()[12:20], rtol=0, atol=0.02)


@pytest.mark.parametrize("size", [(8, 8), (9, 14), (12, 7)])
@pytest.mark.parametrize("radial", [False, True])
def test_an_activation_keeps_the_middle_where_it_is(size: tuple[int, int], radial: bool) -> None:
    up, down = low_pass(12, **SETTINGS), low_pass(12, cutoff=5.0, width=6.0, rate=32.0, radial=radial)
    activation = FilteredActivation(up, 2, down, 2, before=(10, 11), after=size, clamp=None)
    x = torch.randn(1, 2, 10, 11)
    found = activation(x)
    assert found.shape == (1, 2, *size)
    torch.testing.assert_close(activation(x.flip(2, 3)).flip(2, 3), found, rtol=0, atol=1e-5)


def test_an_activation_is_limited_before_the_second_filter() -> None:
    taps = low_pass(12, **SETTINGS)
    activation = FilteredActivation(taps, 2, taps, 2, before=(30, 30), after=(10, 10), clamp=3.0)
    torch.testing.assert_close(activation(torch.full((1, 1, 30, 30), 100.0)), torch.full((1, 1, 10, 10), 3.0))
