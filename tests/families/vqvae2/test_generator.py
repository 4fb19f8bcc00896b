"""What VQ-VAE2's generator adds to the contract: codes, their probability, completion, sampling options."""

import itertools

import pytest
import torch

from medgen.families.vqvae2 import generator as generator_module
from medgen.families.vqvae2.generator import VQVAE2Config
from medgen.nn.vqvae2 import Codes
from tests.families.vqvae2.tiny import generator, pictures
from tests.tiny import changed


@pytest.fixture(scope="module")
def model():
    return generator()


@pytest.fixture
def decoded(model, monkeypatch):
    """The codes of every image that is decoded."""
    seen, decode = [], model._decoded
    monkeypatch.setattr(model, "_decoded", lambda codes: seen.append(codes) or decode(codes))
    return seen


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# Codes


@pytest.mark.parametrize(("channels", "image_size"), [(1, (16, 16)), (3, (16, 24))])
def test_images_become_two_maps_of_codes_and_images_again(channels, image_size):
    model = generator(channels=channels, image_size=image_size)
    images = pictures(3, model.config)
    codes = model.encode(images)
    height, width = image_size
    assert codes.top.shape == (3, height // 8, width // 8)
    assert codes.bottom.shape == (3, height // 4, width // 4)
    for part in codes:
        assert part.dtype == torch.int64
        assert 0 <= part.min() <= part.max() < model.config.autoencoder.num_codes
        assert len(part.unique()) > 4
    copies = model.decode(codes)
    assert copies.shape == images.shape
    assert 0 <= copies.min() < copies.max() <= 1
    assert torch.equal(model.reconstruct(images), copies)


def test_decoding_brings_the_decoder_of_the_first_stage_to_the_range_of_images(model):
    codes = model.encode(pictures(2, model.config))
    with torch.no_grad():
        expected = (model.autoencoder.decode_codes(codes) + 1) / 2
    torch.testing.assert_close(model.decode(codes), expected.clamp(0, 1), rtol=0, atol=1e-5)


def test_encoding_leaves_codebooks_and_modes_alone():
    model = generator().train()
    model.autoencoder.decode_both.eval()  # a part that is frozen
    codebooks = model.codebook_hash
    modes = [module.training for module in model.modules()]
    model.encode(pictures(2, model.config))
    assert model.codebook_hash == codebooks
    assert [module.training for module in model.modules()] == modes


def test_other_codebooks_have_another_hash():
    model, same = generator(), generator()
    assert model.codebook_hash == same.codebook_hash
    with torch.no_grad():
        next(same.autoencoder.parameters()).add_(1)
    assert model.codebook_hash == same.codebook_hash
    same.autoencoder.bottom_codes.codebook[3, 2] += 1e-3
    assert model.codebook_hash != same.codebook_hash


# Probability of codes


@pytest.mark.parametrize("level", ["top", "bottom"])
@torch.no_grad()
def test_log_probabilities_are_those_of_codes_guessed_one_after_the_other(model, level):
    codes, label = model.encode(pictures(2, model.config)), torch.tensor([1, 0])
    target = getattr(codes, level)
    bits = torch.zeros(2, dtype=torch.float64)
    for place in range(target[0].numel()):
        known = target.flatten(1).clone()
        known[:, place:] = 0
        known = known.view_as(target)
        logits = model.top(known, None, label) if level == "top" else model.bottom(known, codes.top, label)
        chance = logits.flatten(2)[:, :, place].double().softmax(1)
        bits += chance.gather(1, target.flatten(1)[:, place, None])[:, 0].log2()
    found = model.log_prob(codes, label)[level]
    torch.testing.assert_close(found.double(), bits / target[0].numel(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("level", "changes"),
    [
        ("top", {"autoencoder": {"num_codes": 3}}),
        ("top", {"autoencoder": {"num_codes": 3}, "top": {"attention": False, "output_blocks": 1}}),
        ("bottom", {"autoencoder": {"num_codes": 2}, "image_size": (8, 16)}),
        ("bottom", {"autoencoder": {"num_codes": 2}, "image_size": (8, 16), "bottom": {"attention": True}}),
    ],
    ids=str,
)
def test_probabilities_of_all_maps_add_up_to_one(level, changes):
    model = generator(**changes)
    config = model.config
    size = getattr(config, f"{level}_size")
    maps = torch.tensor([*itertools.product(range(config.autoencoder.num_codes), repeat=size[0] * size[1])]).unflatten(
        1, size
    )
    given = model.encode(pictures(1, config))
    codes = Codes(*(part.expand(len(maps), -1, -1) for part in given))._replace(**{level: maps})
    bits = model.log_prob(codes, "ill")[level].double() * maps[0].numel()
    assert bits.std() > 0.1
    assert (2**bits).sum().item() == pytest.approx(1, abs=1e-5)


def test_codes_that_are_equally_likely_have_the_logarithm_of_their_number():
    model = generator()
    for prior in (model.top, model.bottom):
        for parameter in (prior.to_logits.weight_g, prior.to_logits.bias):
            torch.nn.init.zeros_(parameter)
    found = model.log_prob(model.encode(pictures(2, model.config)))
    for level in ("top", "bottom"):
        torch.testing.assert_close(found[level], torch.full((2,), -4.0))  # 16 codes


def test_log_probabilities_depend_on_the_label_of_each_image():
    model = generator("multi")
    codes = model.encode(pictures(2, model.config))
    one, both, none = (model.log_prob(codes, label) for label in (["edema"], ["edema", "effusion"], None))
    mixed = model.log_prob(codes, [["edema"], ["edema", "effusion"]])
    for level in ("top", "bottom"):
        torch.testing.assert_close(mixed[level], torch.stack([one[level][0], both[level][1]]))
        assert ((one[level] - both[level]).abs() > 1e-3).all()
        assert ((one[level] - none[level]).abs() > 1e-3).all()


def test_bits_of_an_image_are_those_of_all_its_codes(model):
    images = pictures(2, model.config)
    found = model.log_prob(model.encode(images), "ill")
    torch.testing.assert_close(model.bits_of(images, "ill"), -(4 * found["top"] + 16 * found["bottom"]) / 20)


def test_log_probabilities_are_without_dropout_also_during_training():
    model = generator()
    codes = model.encode(pictures(2, model.config))
    expected = model.log_prob(codes)
    model.train()
    assert equal(model.log_prob(codes).values(), expected.values())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top": torch.full((1, 2, 2), 16)}, "codes of the top map span 16 to 16; expected 0 to 15"),
        ({"top": torch.zeros(1, 1, 2, dtype=torch.int64)}, r"the top map has shape \(1, 1, 2\); expected \(B, 2, 2\)"),
        ({"bottom": torch.zeros(1, 2, 4, dtype=torch.int64)}, r"the bottom map has shape \(1, 2, 4\); expected"),
        ({"bottom": torch.zeros(1, 4, 4)}, "codes of the bottom map are torch.float32"),
    ],
)
@pytest.mark.parametrize("method", ["log_prob", "decode"])
def test_maps_that_do_not_fit_are_refused(model, method, changes, message):
    codes = model.encode(pictures(1, model.config))._replace(**changes)
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(codes)


@pytest.mark.parametrize("codes", [torch.zeros(1, 2, 2, dtype=torch.int64), (1, 2, 3), None])
def test_what_is_no_pair_of_maps_is_refused(model, codes):
    for method in (model.log_prob, model.decode):
        with pytest.raises(ValueError, match="expected the top and the bottom map, as of encode"):
            method(codes)
    with pytest.raises(ValueError, match="expected a tensor of codes"):
        model.redraw_details(model.encode(pictures(1, model.config)))


@pytest.mark.parametrize("scale", [255.0, float("nan"), -1.0])
def test_images_of_another_scale_have_no_codes(model, scale):
    with pytest.raises(ValueError, match=r"(expected floating point|give numbers) in \[0, 1\]"):
        model.bits_of(pictures(1, model.config) * scale)


def test_images_of_grey_levels_have_no_codes_and_those_of_any_float_have(model):
    images = pictures(2, model.config)
    with pytest.raises(ValueError, match=r"images are torch\.uint8"):
        model.encode((images * 255).to(torch.uint8))
    assert torch.equal(model.encode(images.double()).bottom, model.encode(images).bottom)


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.0), ("top_k", 0), ("top_p", 2.0)])
def test_an_option_of_the_bottom_map_is_refused_by_its_own_name(model, name, value):
    with pytest.raises(ValueError, match=f"^bottom_{name} is {value}"):
        model.sample(1, **{f"bottom_{name}": value})
    with pytest.raises(ValueError, match=f"^{name} is {value}"):
        model.sample(1, **{name: value})


def test_codes_may_be_small_whole_numbers(model):
    codes = model.encode(pictures(2, model.config))
    small = Codes(*(part.to(torch.int16) for part in codes))
    assert torch.equal(model.decode(small), model.decode(codes))
    assert equal(model.log_prob(small).values(), model.log_prob(codes).values())
    assert torch.equal(model.redraw_details(small.top, seed=0), model.redraw_details(codes.top, seed=0))


# Sampling options


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5},
        {"top_k": 2},
        {"top_p": 0.2},
        {"bottom_temperature": 0.5},
        {"bottom_top_k": 2},
        {"bottom_top_p": 0.2},
    ],
    ids=str,
)
def test_every_option_changes_the_images(model, options):
    assert (model.sample(4, "ill", seed=0, **options) - model.sample(4, "ill", seed=0)).abs().max() > 1e-3


@pytest.mark.parametrize("options", [{"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-6}], ids=str)
def test_only_the_likeliest_codes_leave_nothing_to_chance(model, options):
    assert torch.equal(model.sample(2, "ill", seed=1, **options), model.sample(2, "ill", seed=2, **options))


def test_the_bottom_map_can_be_drawn_in_another_way(model, decoded):
    for seed in (1, 2):
        model.complete(pictures(1, model.config), 0, "ill", seed=seed, top_k=1, bottom_top_k=16)
        model.redraw_details(decoded[0].top, "ill", seed=seed, temperature=9.0, bottom_temperature=1e-6)
    free, likeliest, free_too, likeliest_too = decoded
    assert torch.equal(free.top, free_too.top)
    assert not torch.equal(free.bottom, free_too.bottom)
    assert torch.equal(likeliest.bottom, likeliest_too.bottom)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; use a number above 0"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_k": 0}, "top_k is 0; use at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0; use a probability"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"bottom_temperature": 0.0}, "temperature is 0.0"),
        ({"bottom_top_k": 0}, "top_k is 0"),
        ({"bottom_top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": 2.5}, "sampling option top_k is 2.5; it is of type"),
        ({"steps": 3}, "sampling option steps is unknown to vqvae2; it has temperature, top_k"),
        ({"label": "sick"}, "label 'sick' is unknown"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused_before_anything_is_drawn(model, monkeypatch, options, message):
    monkeypatch.setattr(generator_module, "draw_codes", lambda *args, **options: pytest.fail("drew"))
    for draw in (
        lambda **options: model.sample(1, **options),
        lambda **options: model.complete(pictures(1, model.config), 8, **options),
        lambda **options: model.redraw_details(torch.zeros(1, 2, 2, dtype=torch.int64), **options),
    ):
        with pytest.raises(ValueError, match=message):
            draw(**options)


# Completion and new details


@pytest.mark.parametrize(
    ("kind", "label", "changes"),
    [("single", "ill", {}), ("multi", ["edema"], {}), ("none", None, {"channels": 3, "image_size": (24, 16)})],
)
def test_a_completed_image_keeps_the_codes_of_its_upper_rows(kind, label, changes, monkeypatch):
    model = generator(kind, **changes)
    seen, decode = [], model._decoded
    monkeypatch.setattr(model, "_decoded", lambda codes: seen.append(codes) or decode(codes))
    images = pictures(2, model.config)
    completed = model.complete(images, 8, label, seed=0)
    (codes,), given = seen, model.encode(images)
    assert torch.equal(completed, model.decode(codes))
    assert torch.equal(codes.top[:, :1], given.top[:, :1])
    assert torch.equal(codes.bottom[:, :2], given.bottom[:, :2])
    assert not torch.equal(codes.bottom[:, 2:], given.bottom[:, 2:])


def test_keeping_all_rows_is_a_copy_and_keeping_none_a_sample(model):
    images = pictures(2, model.config)
    assert torch.equal(model.complete(images, 16), model.reconstruct(images))
    torch.testing.assert_close(model.complete(images, 0, "ill", seed=3), model.sample(2, "ill", seed=3))


def test_new_details_keep_the_top_map(model, decoded):
    top = model.encode(pictures(2, model.config)).top
    first, second = (model.redraw_details(top, "ill", seed=seed) for seed in (0, 1))
    assert all(torch.equal(codes.top, top) for codes in decoded)
    assert (first - second).abs().max() > 1e-3


def complete(model, start=0, label="ill", **options):
    return model.complete(pictures(3, model.config)[start:], 8, label, **options)


def redraw(model, start=0, label="ill", **options):
    return model.redraw_details(model.encode(pictures(3, model.config)).top[start:], label, **options)


both = pytest.mark.parametrize("draw", [complete, redraw])


@both
def test_the_seed_decides_what_is_drawn(model, draw):
    assert torch.equal(draw(model, seed=7), draw(model, seed=7))
    assert not torch.allclose(draw(model, seed=7), draw(model, seed=8), atol=1e-3)


@both
def test_an_image_that_is_drawn_to_go_with_something_depends_on_its_number_alone(model, draw):
    together = draw(model, seed=7)
    torch.testing.assert_close(draw(model, seed=7, start=1, first_index=1), together[1:], rtol=0, atol=1e-5)


@both
def test_the_label_decides_what_is_drawn_to_go_with_something(model, draw):
    drawn = [draw(model, label=label) for label in ("ill", "healthy", None)]
    assert all((one - other).abs().max() > 1e-3 for one, other in itertools.combinations(drawn, 2))
    mixed = draw(model, label=["ill", "healthy", "ill"])
    torch.testing.assert_close(mixed, torch.stack([drawn[0][0], drawn[1][1], drawn[0][2]]), rtol=0, atol=1e-5)


@both
def test_drawing_to_go_with_something_is_in_evaluation_mode_and_restores_the_mode(draw):
    model = generator()
    expected = draw(model)
    model.train()
    model.bottom.eval()  # a part that is frozen
    assert torch.equal(draw(model), expected)
    assert model.top.training
    assert not model.bottom.training


@pytest.mark.parametrize("make", [complete, redraw, lambda model: model.reconstruct(pictures(1, model.config))])
def test_what_is_made_of_images_can_be_trained_on(model, make):
    weight = torch.ones(1, requires_grad=True)
    (make(model) * weight).sum().backward()
    assert weight.grad > 0


def test_a_prior_can_be_trained_on_codes():
    model = generator()
    model.top(model.encode(pictures(1, model.config)).top).sum().backward()
    assert model.top.to_logits.bias.grad.any()


@pytest.mark.parametrize("rows", [4, -8, 24])
def test_rows_that_cut_through_a_code_or_are_not_there_are_refused(model, rows):
    with pytest.raises(ValueError, match=f"rows is {rows}; use a multiple of 8 from 0 to 16"):
        model.complete(pictures(1, model.config), rows)


@pytest.mark.parametrize("shape", [(1, 1, 16, 24), (1, 1, 24, 16), (1, 1, 20, 20), (1, 3, 16, 16), (1, 16, 16)])
@pytest.mark.parametrize("rows", [0, 8])
def test_images_of_another_shape_are_not_completed(model, shape, rows):
    with pytest.raises(ValueError, match=r"images have shape .*; expected \(B, 1, 16, 16\)"):
        model.complete(torch.zeros(shape), rows)


@pytest.mark.parametrize(
    ("top", "message"),
    [
        (torch.full((1, 2, 2), 16), "span 16 to 16; expected 0 to 15"),
        (torch.full((1, 2, 2), -1), "span -1 to -1; expected 0 to 15"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), r"has shape \(1, 2, 3\); expected \(B, 2, 2\)"),
        (torch.zeros(2, 2, dtype=torch.int64), r"has shape \(2, 2\); expected"),
        (torch.zeros(1, 2, 2), "torch.float32; expected whole numbers"),
    ],
)
def test_top_maps_that_do_not_fit_are_refused(model, top, message):
    with pytest.raises(ValueError, match=message):
        model.redraw_details(top)


def test_parts_of_no_image_and_of_images_before_the_first_are_refused(model):
    with pytest.raises(ValueError, match="n is 0; ask for at least one image"):
        model.complete(pictures(1, model.config)[:0], 8)
    with pytest.raises(ValueError, match="first_index is -1; images are numbered from 0"):
        model.complete(pictures(1, model.config), 8, first_index=-1)


# Shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (16, 20)}, r"image_size is \(16, 20\); both sides must be divisible by 8"),
        ({"top": {"kernel_size": 4}}, "kernel_size is 4; use an odd number from 3 on"),
        ({"bottom": {"kernel_size": 1}}, "kernel_size is 1"),
        ({"top": {"hidden_channels": 24}}, "hidden_channels is 24; attention needs a multiple of 16"),
        ({"top": {"dropout": 1.0}}, "dropout is 1.0; it is a probability from 0 to below 1"),
        ({"bottom": {"dropout": -0.1}}, "dropout is -0.1"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_before_the_first_stage_is_trained(changes, message):
    with pytest.raises(ValueError, match=message):
        changed(VQVAE2Config.tiny(), **changes)


def test_without_attention_any_width_will_do():
    model = generator(top={"hidden_channels": 24, "attention": False}, bottom={"hidden_channels": 40})
    assert model.sample(1, seed=0).isfinite().all()


def test_an_image_of_one_top_code_can_be_drawn():
    small = generator(image_size=(8, 8), bottom={"attention": True})
    assert small.sample(2, "ill", seed=0).shape == (2, 1, 8, 8)
    assert small.bits_of(pictures(2, small.config)).isfinite().all()
