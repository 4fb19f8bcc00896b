"""What StyleGAN2 promises beyond the contract: truncation, noise, labels, proportions."""

from dataclasses import replace

import pytest
import torch

from medgen.families.stylegan2.config import StyleGAN2Config, smallest_base
from medgen.families.stylegan2.generator import StyleGAN2Generator
from medgen.labels import LabelSpace
from medgen.nn.label_vector import label_vector
from tests.tiny import NAMES, nudge


def config(kind="single", **changes):
    return replace(StyleGAN2Config.tiny(), **({"label_kind": kind, "label_names": NAMES[kind]} | changes))


def generator(kind="single", **changes):
    torch.manual_seed(0)
    return nudge(StyleGAN2Generator(config(kind, **changes))).eval()


@pytest.fixture(scope="module")
def model():
    return generator()


def test_without_truncation_nothing_is_pulled(model):
    plain = model.styles(4, "ill", seed=0)
    assert torch.equal(model.styles(4, "ill", seed=0, truncation_psi=1.0, truncation_cutoff=2), plain)


def test_full_truncation_is_the_average_style_of_the_label(model):
    found = {label: model.styles(2, label, seed=0, truncation_psi=0.0) for label in ("healthy", "ill")}
    for number, label in enumerate(found):
        assert torch.allclose(found[label], found[label][:1, :1].expand_as(found[label]))
        z = torch.randn(20_000, 16)
        mean = model.mapping(z, torch.eye(2)[[number]].expand(len(z), -1)).mean(0)
        torch.testing.assert_close(found[label][0, 0], mean, rtol=0, atol=0.1 * float(mean.std()))
    assert not torch.allclose(found["healthy"], found["ill"], atol=0.05)


def test_truncation_is_a_share_of_the_way_of_the_layers_it_is_for(model):
    plain, mean = model.styles(3, "ill", seed=1), model.styles(3, "ill", seed=1, truncation_psi=0.0)
    some = model.styles(3, "ill", seed=1, truncation_psi=0.5, truncation_cutoff=2)
    torch.testing.assert_close(some[:, :2], (plain + mean)[:, :2] / 2)
    assert torch.equal(some[:, 2:], plain[:, 2:])


def test_without_labels_truncation_pulls_to_the_average_of_training():
    model = generator("none")
    model.w_avg.normal_()
    for center in ("label", "all"):
        styles = model.styles(2, seed=0, truncation_psi=0.0, center=center)
        torch.testing.assert_close(styles, model.w_avg.expand_as(styles))


def test_labels_may_be_pulled_to_the_average_of_training_as_published(model):
    plain, mean = model.styles(2, "ill", seed=0), model.w_avg
    styles = model.styles(2, "ill", seed=0, truncation_psi=0.7, center="published")
    torch.testing.assert_close(styles, mean + 0.7 * (plain - mean))


def test_one_sample_has_the_style_it_says(model):
    styles = model.styles(3, ["ill", "healthy", "ill"], seed=4, first_index=2, truncation_psi=0.7)
    images = model.sample(
        3, ["ill", "healthy", "ill"], seed=4, first_index=2, truncation_psi=0.7, noise_mode="fixed", batch_size=2
    )
    torch.testing.assert_close(model.synthesize(styles), images)


def test_every_kind_of_noise_gives_other_images(model):
    images = {kind: model.sample(2, "ill", seed=0, noise_mode=kind) for kind in ("random", "fixed", "none")}
    assert (images["random"] - images["fixed"]).abs().max() > 1e-3
    assert (images["fixed"] - images["none"]).abs().max() > 1e-3


def test_one_style_may_stand_for_all_layers(model):
    w = torch.randn(2, 16)
    assert torch.equal(model.synthesize(w), model.synthesize(w[:, None].expand(-1, 6, -1)))


def test_labels_become_vectors():
    device = torch.device("cpu")
    single = label_vector(torch.tensor([1, -1, 0]), LabelSpace("single", ("a", "b")), 3, device)
    assert single.tolist() == [[0, 1], [0, 0], [1, 0]]
    findings = torch.tensor([[1.0, 0.0], [torch.nan, 1.0]])
    assert label_vector(findings, LabelSpace("multi", ("a", "b")), 2, device).tolist() == [[1, -1], [0, 1]]
    ages = torch.tensor([[0.5], [torch.nan]])
    circle = label_vector(ages, LabelSpace("continuous", ("age",)), 2, device)
    torch.testing.assert_close(circle, torch.tensor([[0.6, 0.8], [0, 0]]))
    assert label_vector(None, LabelSpace("single", ("a", "b")), 2, device).tolist() == [[0, 0], [0, 0]]
    assert label_vector(None, LabelSpace(), 2, device) is None


def test_a_model_that_needs_a_label_refuses_to_do_without():
    model = generator(needs_label=True)
    assert model.sample(1, "ill", seed=0).shape == (1, 1, 16, 16)
    with pytest.raises(ValueError, match="trained with labels only; give one of 'healthy', 'ill'"):
        model.sample(1, seed=0)


def test_numbers_of_one_sign_differ_from_the_start():
    model = generator("continuous")
    styles = [model.styles(1, [age], seed=0) for age in (0.4, 0.8)]
    assert (styles[0] - styles[1]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("size", "base"),
    [((256, 256), (4, 4)), ((320, 256), (5, 4)), ((16, 24), (4, 6)), ((224, 224), (7, 7)), ((512, 128), (16, 4))],
)
def test_synthesis_starts_as_small_as_can_be(size, base):
    assert smallest_base(size) == base
    assert config(image_size=size).size(0) == base


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"image_size": (250, 250)}, r"image_size is \(250, 250\); halved as often as can be it is \(125, 125\)"),
        (
            {"image_size": (48, 32), "base": (4, 4)},
            r"image_size is \(48, 32\); both sides must be those of base, \(4, 4\)",
        ),
        ({"mapping_layers": 0}, "mapping_layers is 0; use at least 1"),
        ({"clamp": 0.0}, "clamp is 0.0; use a number above 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        config(**changes)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"truncation_psi": -0.1}, "truncation_psi is -0.1; use 0"),
        ({"truncation_psi": 3.0}, "truncation_psi is 3.0; use 0"),
        ({"truncation_cutoff": 7}, "truncation_cutoff is 7; use 0 to 6"),
        ({"center": "mean"}, "center is 'mean'; use 'label', 'all' or 'published'"),
        ({"truncation_psi": 0.7, "center": "all"}, "center is 'all', but there are labels"),
        ({"noise_mode": "const"}, "noise_mode is 'const'; use one of random, fixed, none"),
        ({"psi": 0.7}, "sampling option psi is unknown to stylegan2; it has truncation_psi"),
    ],
)
def test_options_out_of_range_are_refused(model, options, text):
    for draw in (model.sample, model.styles):
        with pytest.raises(ValueError, match=text):
            draw(1, "ill", **options)


def test_styles_do_not_depend_on_the_noise_of_layers(model):
    assert torch.equal(model.styles(2, "ill", seed=1, noise_mode="none"), model.styles(2, "ill", seed=1))


def test_images_of_styles_have_noise_that_there_is(model):
    with pytest.raises(ValueError, match="noise_mode is 'const'; use one of random, fixed, none"):
        model.synthesize(torch.zeros(1, 6, 16), noise_mode="const")


def test_styles_of_another_shape_are_refused(model):
    with pytest.raises(ValueError, match=r"styles have shape \(2, 5, 16\); expected \(B, 6, 16\)"):
        model.synthesize(torch.zeros(2, 5, 16))
    with pytest.raises(ValueError, match="n is 0"):
        model.styles(0)
