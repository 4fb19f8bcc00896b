"""StyleGAN3's generator: its options, its sizes, and that what it draws turns with its start."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from medgen.families.stylegan3.convert import generator_config
from medgen.families.stylegan3.generator import StyleGAN3Config, StyleGAN3Generator
from tests.tiny import nudge


def generator(**changes: Any) -> StyleGAN3Generator:
    torch.manual_seed(0)
    made = nudge(StyleGAN3Generator(replace(StyleGAN3Config.tiny(), **changes))).eval()
    made.w_avg.normal_()
    return made


def test_cutoffs_and_pixels_of_the_published_networks() -> None:
    bands = StyleGAN3Config().bands()
    assert [band.size[0] for band in bands] == [36, 36, 36, 52, 52, 84, 84, 148, 148, 148, 276, 276, 276, 256, 256]
    assert [band.rate for band in bands] == [16, 16, 16, 32, 32, 64, 64, 128, 128, 128, 256, 256, 256, 256, 256]
    assert (bands[0].cutoff, bands[12].cutoff, bands[14].cutoff) == (2, 128, 128)
    assert all(band.cutoff < band.stopband for band in bands)


def test_an_oblong_image_has_square_pixels_and_the_same_margins() -> None:
    square, oblong = (StyleGAN3Config(image_size=size).bands() for size in ((64, 64), (64, 96)))
    for one, other in zip(square[:-2], oblong[:-2], strict=True):
        assert (other.rate, other.cutoff, other.size[0]) == (one.rate, one.cutoff, one.size[0])
        assert other.size[1] - 20 == (one.size[1] - 20) * 3 // 2
    assert oblong[-1].size == (64, 96)


def test_the_middle_of_an_oblong_image_is_that_of_the_square_one() -> None:
    wide = generator(image_size=(16, 64), margin=10)
    square = StyleGAN3Generator(replace(wide.config, image_size=(16, 16))).eval()
    square.load_state_dict(wide.state_dict())
    styles = wide.styles(2, 0, seed=0)
    with torch.no_grad():
        expected, found = square.synthesis(styles), wide.synthesis(styles)
    # Margins are finite, so that what is beyond them differs a little.
    difference = (found[..., 28:36] - expected[..., 4:12]).abs().max()
    assert difference < 0.02 * expected.std()


def test_a_turned_start_turns_the_image_of_an_r_network() -> None:
    made = generator(kernel=1, radial_filters=True)
    styles = made.styles(2, 0, seed=0)
    with torch.no_grad():
        upright = made.synthesis(styles)
        made.synthesis.start.transform[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        turned = made.synthesis(styles)
    assert (turned - upright).abs().max() > 0.1
    torch.testing.assert_close(turned, upright.rot90(1, (2, 3)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("radial", [False, True])
def test_a_moved_start_moves_the_image_even_by_part_of_a_pixel(radial: bool) -> None:
    made = generator(image_size=(32, 32), num_layers=6, margin=10, radial_filters=radial)
    styles = made.styles(2, 0, seed=0)
    x = (torch.arange(32) + 0.5 - 16) / 32
    with torch.no_grad():
        still = made.synthesis(styles)
        made.synthesis.start.transform[0, 2] = 1 / 64  # half a pixel
        moved = made.synthesis(styles)
    # The image at places half a pixel on, from its own frequencies.
    frequencies = torch.fft.fftfreq(32)
    shift = torch.exp(2j * math.pi * frequencies * 0.5)
    expected = torch.fft.ifft(torch.fft.fft(still, dim=3) * shift, dim=3).real
    middle = (x.abs() < 0.2).nonzero()[:, 0]
    found, wanted, before = (image[..., 8:24, middle] for image in (moved, expected, still))
    # 5 % here; a nonlinearity at the pixels' own rate gives 20 % and more.
    assert (found - wanted).abs().mean() < 0.1 * (found - before).abs().mean()


def test_styles_are_those_of_the_sample() -> None:
    made = generator()
    options = {"truncation_psi": 0.5, "truncation_cutoff": 3}
    images = made.synthesize(made.styles(3, 1, seed=4, **options))
    torch.testing.assert_close(made.sample(3, 1, seed=4, batch_size=2, **options), images, rtol=0, atol=1e-5)


def test_one_style_is_taken_for_every_layer() -> None:
    made = generator()
    styles = made.styles(2, 0, seed=0)
    torch.testing.assert_close(made.synthesize(styles[:, 0]), made.synthesize(styles))
    with pytest.raises(ValueError, match=r"styles have shape \(2, 3, 16\); expected \(B, 7, 16\)"):
        made.synthesize(styles[:, :3])


def test_truncation_to_nothing_gives_the_average_image_of_the_label() -> None:
    made = generator()
    images = made.sample(2, ["no finding", "finding"], seed=0, truncation_psi=0.0)
    again = made.sample(1, "no finding", seed=9, truncation_psi=0.0)
    torch.testing.assert_close(images[:1], again, rtol=0, atol=1e-5)
    assert not torch.allclose(images[0], images[1], atol=1e-4)
    average = made.sample(1, seed=3, truncation_psi=0.0, center="all")
    torch.testing.assert_close(average, made.synthesize(made.w_avg[None]))


def test_truncation_of_some_layers_leaves_the_others() -> None:
    made = generator()
    full, part = (made.styles(2, 0, seed=0, truncation_psi=psi, truncation_cutoff=2) for psi in (1.0, 0.5))
    assert not torch.allclose(part[:, :2], full[:, :2])
    assert torch.equal(part[:, 2:], full[:, 2:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation_psi": -0.1}, r"truncation_psi is -0\.1; use 0"),
        ({"truncation_cutoff": 8, "truncation_psi": 0.5}, "truncation_cutoff is 8; use 0 to 7, or None for all"),
        ({"center": "middle"}, "center is 'middle'; use 'label', 'all' or 'published'"),
        ({"center": "all", "truncation_psi": 0.5, "label": 0}, "center is 'all', but there are labels"),
        ({"noise_mode": "fixed"}, "sampling option noise_mode is unknown to stylegan3; it has truncation_psi"),
    ],
)
def test_options_are_refused_with_the_way_out(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generator().sample(1, seed=0, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (24, 24)}, r"image_size is \(24, 24\); the shorter side must be a power of two"),
        ({"image_size": (4, 4)}, r"image_size is \(4, 4\); the shorter side must be above twice first_cutoff, 2\.0"),
        ({"num_critical": 5}, "num_critical is 5; use 0 to num_layers - 1, 4"),
        ({"first_stopband": 2.0}, r"first_stopband is 2\.0 and last_stopband_rel .*; use more than first_cutoff, 2\.0"),
        ({"kernel": 5}, "kernel is 5; use 3, or 1"),
        ({"margin": -1}, "margin is -1; use at least 0"),
        ({"mapping_layers": 0}, "mapping_layers is 0; use at least 1"),
        ({"output_scale": 0.0}, r"output_scale is 0\.0; use a number above 0"),
        ({"clamp": 0.0}, r"clamp is 0\.0; use a number above 0, or None"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(StyleGAN3Config.tiny(), **changes)


ARGUMENTS = {"z_dim": 16, "c_dim": 2, "w_dim": 16, "img_resolution": 32, "img_channels": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w_dim": None}, "the arguments of the official constructor lack w_dim"),
        ({"synthesis_kwargs": {}}, "the official constructor has synthesis_kwargs, which our networks do not have"),
        ({"mapping_kwargs": {"depth": 3}}, "mapping_kwargs has depth, which our networks do not have"),
        ({"mapping_kwargs": {"lr_multiplier": 1}}, r"lr_multiplier of mapping_kwargs is 1; our networks have 0\.01"),
    ],
)
def test_official_arguments_that_ours_cannot_follow_are_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {name: value for name, value in (ARGUMENTS | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        generator_config(arguments)


def test_official_defaults_are_those_of_our_config() -> None:
    config = generator_config({"z_dim": 512, "c_dim": 0, "w_dim": 512, "img_resolution": 256, "img_channels": 3})
    assert config == StyleGAN3Config()
    assert generator_config(ARGUMENTS, ("a", "b")).label_names == ("a", "b")
    with pytest.raises(ValueError, match=r"label_names are \['a'\], but the generator has 2 classes"):
        generator_config(ARGUMENTS, ("a",))
