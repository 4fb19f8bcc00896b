"""What Medfusion's generator adds to the contract: its sampling options and its latent space."""

import pytest
import torch

from medgen.diffusion.samplers import SAMPLERS
from medgen.diffusion.schedule import ScheduleConfig
from medgen.families.medfusion.generator import MedfusionConfig, MedfusionGenerator
from medgen.nn.autoencoder import KLAutoencoder, VQAutoencoder
from tests.tiny import changed, generator


@pytest.fixture(scope="module")
def model():
    return generator()


def draw(model, label="ill", n=2, **options):
    return model.sample(n, label, seed=0, **options)


def differ(one, other):
    return bool((one - other).abs().max() > 1e-3)


def same(one, other):
    return torch.allclose(one, other, rtol=0, atol=1e-4)


def test_the_defaults_are_the_published_ones():
    config = MedfusionConfig()
    assert (config.latent_shape, config.autoencoder.latent_channels) == ((8, 32, 32), 8)
    assert config.schedule == ScheduleConfig(timesteps=1000, shape="scaled_linear", beta_start=0.002, beta_end=0.02)
    options = MedfusionGenerator._sample.__kwdefaults__
    assert (options["sampler"], options["guidance"]) == ("ddim", 1.0)


@pytest.mark.slow
def test_the_default_is_150_steps():
    model = generator(schedule={"timesteps": 200})
    assert same(draw(model), draw(model, steps=150))
    assert differ(draw(model), draw(model, steps=200))


def test_the_default_is_all_steps_of_a_shorter_schedule(model):
    assert same(draw(model), draw(model, steps=10))


def test_the_default_is_as_noisy_as_published(model):
    assert same(draw(model), draw(model, eta=1.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"steps": 3},
        {"eta": 0.0},
        {"guidance": 3.0},
        {"guidance": 0.0},
        {"guidance": 3.0, "negative_label": "healthy"},
        {"sampler": "ancestral", "steps": 5},
        {"sampler": "dpm++", "steps": 5},
        {"sampler": "unipc", "steps": 5},
        {"sampler": "EulerDiscreteScheduler", "steps": 5},
    ],
    ids=str,
)
def test_every_option_changes_the_images(model, options):
    images = draw(model, **options)
    assert differ(images, draw(model))
    assert images.isfinite().all()


@pytest.mark.parametrize("sampler", [*SAMPLERS, "dpm++_sde"])
def test_an_image_does_not_depend_on_its_batch_with_any_sampler(model, sampler):
    together = draw(model, n=3, sampler=sampler, steps=4)
    assert same(draw(model, n=3, sampler=sampler, steps=4, batch_size=1), together)
    assert same(model.sample(1, "ill", seed=0, first_index=2, sampler=sampler, steps=4), together[2:])


def test_guidance_one_is_the_label_as_trained_and_guidance_zero_ignores_it(model):
    assert same(draw(model, guidance=1.0), draw(model))
    assert same(draw(model, guidance=0.0, steps=4), draw(model, None, steps=4))


def test_guidance_away_from_the_label_itself_leads_nowhere(model):
    assert same(draw(model, guidance=3.0, negative_label="ill"), draw(model))


def test_a_negative_label_differs_from_none(model):
    assert differ(draw(model, guidance=3.0, negative_label="healthy"), draw(model, guidance=3.0))


@pytest.mark.parametrize(
    ("kind", "label", "negative"), [("multi", ["edema"], ["effusion"]), ("continuous", [1.0], [-1.0])]
)
def test_findings_and_numbers_can_be_guided(kind, label, negative):
    model = generator(kind)
    assert differ(draw(model, label, guidance=4.0, negative_label=negative), draw(model, label))


@pytest.mark.parametrize("decode_batch", [1, 2, 100])
def test_decoding_in_parts_changes_nothing(model, decode_batch, monkeypatch):
    sizes = []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda latent: sizes.append(len(latent)) or decode(latent))
    expected = draw(model, n=3)
    sizes.clear()
    assert same(draw(model, n=3, decode_batch=decode_batch), expected)
    assert max(sizes) == min(decode_batch, 3)
    assert sum(sizes) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 11}, "steps is 11"),
        ({"eta": 2.0}, "eta is 2.0; use 0 .* to 1"),
        ({"eta": 0.5, "sampler": "ancestral"}, "eta is an option of sampler 'ddim', not of 'ancestral'"),
        ({"decode_batch": 0}, "decode_batch is 0; use at least 1"),
        ({"label": None, "guidance": 2.0}, "guidance is 2.0, but there is no label to guide by"),
        ({"negative_label": "healthy"}, "negative_label has no effect at guidance 1"),
        ({"guidance": 2.0, "negative_label": "z"}, "label 'z' is unknown"),
        ({"sampler": "magic"}, "sampler 'magic' is unknown; use 'ddim', 'ancestral'"),
        ({"sampler": "LCMScheduler"}, "cannot be used: it is made for distilled models"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        draw(model, **options)


def test_latents_are_brought_back_to_their_measured_scale(model):
    torch.manual_seed(0)
    latent = torch.randn(2, *model.config.latent_shape)
    scaled = generator()
    scaled.latent_mean.fill_(0.5)
    scaled.latent_std.fill_(2.0)
    with torch.no_grad():
        assert same(scaled.decode(latent), model.autoencoder.decode(latent * 2 + 0.5))
        assert same(model.decode(latent), model.autoencoder.decode(latent))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"prediction_type": "v"},
        {"prediction_type": "x_0"},
        {"unet": {"learned_variance": True}},
        {"unet": {"self_conditioning": True}},
        {"unet": {"extra_heads": 1}},
        {"autoencoder": {"kind": "vq"}},
        {"unet": {"attention": "linear"}},
    ],
    ids=str,
)
def test_every_shape_of_the_model_samples(changes):
    images = draw(generator(**changes), sampler="ancestral", steps=4)
    assert images.isfinite().all()
    assert images.std() > 0


@pytest.mark.parametrize(("kind", "expected"), [("kl", KLAutoencoder), ("vq", VQAutoencoder)])
def test_the_config_chooses_the_first_stage(kind, expected):
    assert isinstance(generator(autoencoder={"kind": kind}).autoencoder, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_size": (16, 17)},
            r"image_size \(16, 17\) is not divisible by \(2, 2\), the total stride of the autoencoder",
        ),
        (
            {"image_size": (16, 18)},
            r"\(16, 18\) makes the UNet denoise 8 x 9 pixels, which its total stride \(2, 2\) does not divide",
        ),
        ({"autoencoder": {"kind": "vae"}}, "kind is 'vae'; use 'kl' or 'vq'"),
        (
            {"unet": {"hidden": (8, 16)}},
            r"strides has 3 entries, hidden has 2; give one per level, not strides \(1, 2, 2\) for hidden \(8, 16\)",
        ),
        ({"autoencoder": {"strides": (1, 2)}}, "strides has 2 entries, hidden has 3"),
        ({"unet": {"attention": ("none", "linear")}}, "attention has 2 entries"),
        (
            {"unet": {"norm": ("group", {"num_groups": 3})}},
            r"num_groups of norm is 3, which does not divide 8, 8, 16 of hidden \(8, 8, 16\)",
        ),
        ({"unet": {"spatial_dims": 3}}, "unet.spatial_dims is 3; these are images"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_before_the_first_stage_is_trained(changes, message):
    with pytest.raises(ValueError, match=message):
        changed(MedfusionConfig.tiny(), **changes)
