"""Projection: what the generator drew is found again, whoever asks, and nothing else is touched."""

import math
from dataclasses import replace

import pytest
import torch

from medgen.families.stylegan2 import projection
from medgen.families.stylegan2.generator import StyleGAN2Config, StyleGAN2Generator
from medgen.families.stylegan2.projection import project
from medgen.families.stylegan3.generator import StyleGAN3Config, StyleGAN3Generator
from medgen.losses.ssim import ssim
from tests.tiny import nudge

PIXELS = {"perceptual_weight": 0, "steps": 3}


def generator(seed=0, **changes):
    torch.manual_seed(seed)
    return StyleGAN2Generator(replace(StyleGAN2Config.tiny(), **changes)).eval()


@pytest.fixture(scope="module")
def model():
    return generator()


@pytest.fixture(scope="module")
def images(model):
    return model.sample(2, "finding", seed=1, noise_mode="fixed")


def error(images, others):
    return (images - others).square().mean((1, 2, 3))


@pytest.fixture(scope="module")
def found(model, images):
    return project(model, images, "finding", perceptual_weight=0, steps=50)


@pytest.mark.slow
def test_images_that_the_generator_drew_are_found_again(model, images, found):
    average = model.synthesize(model.styles(2, "finding", truncation_psi=0))
    assert (found.mse < 0.2 * error(average, images)).all()


@pytest.mark.slow
def test_styles_give_the_reconstructions_and_these_the_numbers(model, images, found):
    assert found.styles.shape == (2, model.config.num_ws, model.config.w_dim)
    torch.testing.assert_close(model.synthesize(found.styles), found.reconstructions, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.mse, error(found.reconstructions, images))
    torch.testing.assert_close(found.psnr, -10 * found.mse.log10())
    torch.testing.assert_close(found.ssim, ssim(found.reconstructions, images))
    assert (found.styles[:, 0] - found.styles[:, 1]).abs().max() > 1e-2  # a style of its own for every layer


@pytest.mark.slow
def test_the_distance_decides_what_is_found(model, images):
    def by_brightness(prediction, target):
        return (prediction.mean((1, 2, 3)) - target.mean((1, 2, 3))).square()

    target = images * 0.5 + 0.25
    found = project(model, target, "finding", perceptual=by_brightness, pixel_weight=0, steps=40)
    start = model.synthesize(model.styles(2, "finding", truncation_psi=0))
    off = (found.reconstructions.mean((1, 2, 3)) - target.mean((1, 2, 3))).abs()
    assert (off < 0.05).all()
    assert ((start.mean((1, 2, 3)) - target.mean((1, 2, 3))).abs().max()) > 0.05
    assert (found.mse > 0.005).all()


@pytest.mark.slow
def test_the_default_network_is_there_and_counts(model, images):
    with_network = project(model, images[:1], "finding", steps=2, noise=0)
    without = project(model, images[:1], "finding", steps=2, noise=0, perceptual_weight=0)
    assert (with_network.styles - without.styles).abs().max() > 1e-3


def test_the_search_begins_at_the_average_style_of_each_label(model, images):
    label = ["no finding", "finding"]
    found = project(model, images, label, lr=1e-9, **PIXELS)
    torch.testing.assert_close(found.styles, model.styles(2, label, truncation_psi=0), rtol=0, atol=1e-6)
    assert (found.styles[0] - found.styles[1]).abs().max() > 1e-2


def test_the_seed_decides_the_noise_and_without_noise_nothing(model, images):
    first, same, other = (project(model, images, seed=seed, **PIXELS).styles for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert (first - other).abs().max() > 1e-4
    still = [project(model, images, seed=seed, noise=0, **PIXELS).styles for seed in (1, 2)]
    assert torch.equal(*still)


def test_images_do_not_know_of_one_another(model, images):
    together = project(model, images, ["no finding", "finding"], **PIXELS)
    apart = project(model, images, ["no finding", "finding"], batch_size=1, **PIXELS)
    torch.testing.assert_close(together.styles, apart.styles, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_noise_begins_at_the_spread_of_styles_and_is_gone_in_the_end(model, images, monkeypatch):
    seen, draw = [], model.draw
    monkeypatch.setattr(model, "draw", lambda styles: seen.append(styles.detach()) or draw(styles))
    project(model, images, "finding", perceptual_weight=0, steps=40, lr=1e-9, noise=0.1)
    mean = model.styles(2, "finding", truncation_psi=0)
    scale = (model.styles(256, "finding")[:, 0] - mean[0, 0]).square().sum(1).mean().sqrt()
    levels = [float((styles - mean).std()) for styles in seen]
    assert levels[0] == pytest.approx(0.1 * float(scale), rel=0.2)
    assert levels[15] == pytest.approx(levels[0] * (1 - 15.5 / 30) ** 2, rel=0.3)
    assert max(levels[30:]) < 1e-6


def test_the_spread_of_styles_is_that_of_each_images_label(model):
    label = ["finding", "no finding", "finding"]
    found = projection._spread(model, label, model.styles(3, label, truncation_psi=0))
    for name, spread in zip(label, found, strict=True):
        styles, mean = model.styles(256, name)[:, 0], model.styles(1, name, truncation_psi=0)[0, 0]
        torch.testing.assert_close(spread, (styles - mean).square().sum(1).mean().sqrt())
    assert (found[0] - found[1]).abs() > 1e-2


@pytest.mark.parametrize(("time", "pace"), [(0.025, 0.5), (0.05, 1), (0.75, 1), (0.875, 0.5), (1.0, 0.0)])
def test_the_learning_rate_rises_stays_and_falls(time, pace):
    assert projection._pace(time) == pytest.approx(pace)


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_whatever_the_caller_does_the_same_is_found(model, images, context):
    expected = project(model, images, "finding", **PIXELS)
    with context():
        found = project(model, images.clone(), "finding", **PIXELS)
    torch.testing.assert_close(found.styles, expected.styles, rtol=0, atol=1e-5)
    assert not found.styles.requires_grad


def test_the_generator_is_left_as_it_was(images):
    model = generator().train()
    model.mapping.eval()  # a part that is frozen
    model.synthesis.start.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    modes = [part.training for part in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    during = []
    model.synthesis.register_forward_pre_hook(lambda synthesis, inputs: during.append(synthesis.training))
    project(model, images, "finding", **PIXELS)
    assert during == [False] * 3  # the result goes through another form of it
    assert [part.training for part in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(bool((parameter.grad == 1).all()) for parameter in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"label_kind": "none", "label_names": ()}, None),
        ({"label_kind": "multi", "label_names": ("edema", "effusion")}, [["edema"], []]),
        ({"label_kind": "continuous", "label_names": ("age",), "channels": 3}, [[40.0], [50.0]]),
    ],
)
def test_images_with_every_kind_of_label_are_found(changes, label):
    model = generator(**changes)
    images = model.sample(2, label, seed=1, noise_mode="fixed")
    start = model.synthesize(model.styles(2, label, truncation_psi=0))
    found = project(model, images, label, perceptual_weight=0, steps=20)
    assert (found.mse < error(start, images)).all()


def test_a_generator_without_noise_will_do():
    torch.manual_seed(0)
    model = nudge(StyleGAN3Generator(StyleGAN3Config.tiny())).eval()
    label = model.label_space.names[0]
    images = model.synthesize(model.styles(1, label, seed=1))
    start = model.synthesize(model.styles(1, label, truncation_psi=0))
    found = project(model, images, label, perceptual_weight=0, steps=20)
    assert (found.mse < 0.7 * error(start, images)).all()


def test_progress_is_shown_where_it_is_asked_for(model, images, capsys):
    project(model, images, batch_size=1, **PIXELS)
    assert capsys.readouterr().err == ""
    project(model, images, batch_size=1, progress=True, **PIXELS)
    assert "6/6" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 1, 16, 24), r"images have shape \(1, 1, 16, 24\); expected \(B, 1, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16), "images have shape"),
        (torch.zeros(1, 16, 16), "images have shape"),
        (torch.zeros(0, 1, 16, 16), "there are no images; give at least one"),
        (torch.full((1, 1, 16, 16), 1.1), r"images span \[1.1, 1.1\]; expected floating point in \[0, 1\]: divide"),
        (torch.full((1, 1, 16, 16), -1.0), r"images span \[-1, -1\]"),
        (torch.full((1, 1, 16, 16), math.nan), "images hold NaN or infinite values"),
        (torch.zeros(1, 1, 16, 16, dtype=torch.uint8), "images are torch.uint8; expected floating point"),
    ],
)
def test_what_is_no_image_of_the_generator_is_refused(model, images, message):
    with pytest.raises(ValueError, match=message):
        project(model, images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; use at least 1"),
        ({"steps": 1.5}, "steps is 1.5; use a whole number"),
        ({"batch_size": 0}, "batch_size is 0; use at least 1"),
        ({"lr": 0.0}, "lr is 0.0; use a number above 0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"noise": -0.1}, "noise is -0.1; use 0 or more"),
        ({"perceptual_weight": -1}, "perceptual_weight is -1"),
        ({"pixel_weight": math.inf}, "pixel_weight is inf"),
        ({"pixel_weight": 0, "perceptual_weight": 0}, "perceptual_weight and pixel_weight are 0; one of them"),
        ({"label": "sick"}, "label 'sick' is unknown"),
        ({"label": ["finding"]}, "label has 1 entries for 2 images"),
    ],
)
def test_options_that_make_no_sense_are_refused(model, images, options, message):
    with pytest.raises(ValueError, match=message):
        project(model, images, **{"perceptual": lambda x, y: (x - y).mean((1, 2, 3))} | options)
