from dataclasses import replace

import pytest
import torch
from torch import nn

from medgen.families.spade.config import SPADEConfig
from medgen.families.spade.discriminator import MultiscaleDiscriminator, spectral_discriminator
from medgen.families.spade.encoders import InnerStyleEncoder, StyleEncoder
from medgen.families.spade.networks import SPADESynthesis, instance_edges, resized, semantic_map
from medgen.families.spade.normalisation import ClassModulation, ModulatedNorm, SpatialModulation, norm_layer

CLASSES = ("background", "wall", "cavity")
TINY = SPADEConfig(
    image_size=(32, 48), channels=1, mask_names=CLASSES, width=2, num_upsamplings=4, hidden=4, style="none"
)
OPTIONS = [
    {},
    {"style": "vae", "style_dim": 5, "channels": 3},
    {"style": "inside", "style_dim": 32},
    {"style": "inside", "style_dim": 7, "num_upsamplings": 5, "image_size": (64, 32)},
    {"num_upsamplings": 5, "image_size": (32, 64), "norm": "group"},
    {"num_upsamplings": 6, "image_size": (64, 64)},
    {"num_upsamplings": 7, "image_size": (128, 128), "norm": "group"},
    {"norm": "instance", "kernel_size": 1},
    {"modulation": "clade", "spectral": False},
]


def network(*, spectral=True, **changes):
    torch.manual_seed(0)
    return SPADESynthesis(replace(TINY, **changes), spectral=spectral)


def inputs(config, batch=2):
    torch.manual_seed(1)
    masks = torch.randint(config.num_classes, (batch, *config.image_size))
    return semantic_map(masks, config.num_classes), torch.randn(batch, config.code_dim) if config.code_dim else None


# The generator


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_images_have_the_size_of_the_map_and_every_weight_shapes_them(options):
    synthesis = network(**options).train()
    config = synthesis.config
    images = synthesis(*inputs(config))
    assert images.shape == (2, config.channels, *config.image_size)
    assert images.abs().max() <= 1
    (images * torch.randn_like(images)).sum().backward()
    assert [name for name, weight in synthesis.named_parameters() if weight.grad is None] == []
    assert all(weight.grad.isfinite().all() for weight in synthesis.parameters())


@pytest.mark.parametrize(
    ("style", "num_upsamplings", "widths", "upsampled"),
    [
        ("none", 4, (16, 16, 16, 8, 4, 2, 1), (0, 0, 1, 1, 1, 1)),
        ("vae", 5, (16, 16, 16, 16, 8, 4, 2, 1), (0, 1, 0, 1, 1, 1, 1)),
        ("none", 6, (16, 16, 16, 16, 8, 4, 2, 1), (0, 1, 1, 1, 1, 1, 1)),
        ("none", 7, (16, 16, 16, 16, 8, 4, 2, 1, 0.5), (0, 1, 1, 1, 1, 1, 1, 1)),
        ("inside", 4, (16, 16, 16, 8, 4, 2, 1), (0, 0, 1, 1, 1, 1)),
        ("inside", 5, (32, 32, 32, 8, 4, 2, 1, 0.5), (0, 0, 1, 1, 1, 1, 1)),
    ],
)
def test_blocks_are_as_wide_as_published(style, num_upsamplings, widths, upsampled):
    config = SPADEConfig(
        image_size=(256, 256),
        mask_names=CLASSES,
        width=64,
        num_upsamplings=num_upsamplings,
        style=style,
        style_dim=8,
    )
    assert [stage.in_channels for stage in config.stages] == [64 * width for width in widths[:-1]]
    assert [stage.out_channels for stage in config.stages] == [64 * width for width in widths[1:]]
    assert [stage.upsamples for stage in config.stages] == list(map(bool, upsampled))
    assert config.base == (256 >> num_upsamplings,) * 2
    assert sum(upsampled) == num_upsamplings


def test_a_change_of_the_map_changes_the_image_there_most():
    synthesis = network(modulation="clade", norm="group").eval()
    masks = torch.zeros(1, 32, 48, dtype=torch.int64)
    changed = masks.clone()
    changed[:, :16, :16] = 2
    with torch.no_grad():
        before, after = (synthesis(semantic_map(mask, 3)) for mask in (masks, changed))
    difference = (after - before).abs()[0, 0]
    assert difference[:16, :16].mean() > 2 * difference[24:, 24:].mean()


def test_a_code_changes_the_image():
    synthesis = network(style="vae", style_dim=5).eval()
    semantic, code = inputs(synthesis.config)
    with torch.no_grad():
        assert (synthesis(semantic, code) - synthesis(semantic, -code)).abs().max() > 1e-3


def test_images_of_a_batch_do_not_depend_on_each_other_in_evaluation():
    synthesis = network().eval()
    semantic, _ = inputs(synthesis.config)
    with torch.no_grad():
        torch.testing.assert_close(synthesis(semantic)[1:], synthesis(semantic[1:]), rtol=0, atol=1e-6)


def test_a_batch_of_one_from_a_single_pixel_names_the_way_out():
    synthesis = network(image_size=(16, 16)).train()
    with pytest.raises(ValueError, match="raise batch_size to at least 2"):
        synthesis(*inputs(synthesis.config, 1))
    network(image_size=(16, 16), norm="group").train()(*inputs(synthesis.config, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "layer"}, "norm is 'layer'; use one of batch, instance, group"),
        ({"modulation": "film"}, "modulation is 'film'"),
        ({"style": "outside"}, "style is 'outside'"),
        ({"mask_names": ()}, "give at least two classes"),
        ({"kernel_size": 5}, "kernel_size is 5"),
        ({"style": "vae", "style_dim": 0}, "style_dim is 0 with style 'vae'"),
        ({"width": 0}, "width is 0; use at least 1"),
        ({"map_width": 0}, "map_width is 0; use at least 1"),
        ({"num_upsamplings": 3}, "num_upsamplings is 3; with style 'none' use one of 4, 5, 6, 7"),
        ({"style": "inside", "style_dim": 4, "num_upsamplings": 6}, "with style 'inside' use one of 4, 5"),
        (
            {"image_size": (32, 40)},
            r"image_size is \(32, 40\); with num_upsamplings 4 both sides must be divisible by 16",
        ),
        ({"image_size": (16, 16), "norm": "instance"}, "a single pixel"),
        ({"image_size": (128, 128), "num_upsamplings": 7, "width": 1}, "width is 1"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


@pytest.mark.parametrize(
    ("semantic", "code", "message"),
    [
        ((2, 3, 32, 32), (2, 5), r"semantic has shape .*; expected \(B, 3, 32, 48\)"),
        ((2, 3, 32, 48), None, r"code has shape None; with style 'vae' give one of shape \(2, 5\)"),
        ((2, 3, 32, 48), (1, 5), r"code has shape \(1, 5\)"),
    ],
)
def test_inputs_that_do_not_fit_are_named(semantic, code, message):
    with pytest.raises(ValueError, match=message):
        network(style="vae", style_dim=5)(torch.zeros(semantic), None if code is None else torch.zeros(code))


# Normalisation


@pytest.mark.parametrize(
    ("channels", "groups"), [(1024, 32), (128, 32), (64, 16), (32, 8), (12, 1), (5, 1), (4, 1), (1, 1)]
)
def test_groups_have_at_least_four_channels_where_there_are_as_many(channels, groups):
    assert norm_layer("group", channels, affine=False).num_groups == groups


def test_spade_scales_by_one_more_than_gamma_and_adds_beta():
    layer = ModulatedNorm(nn.Identity(), SpatialModulation(2, 3, hidden=4, kernel_size=1))
    for conv in (layer.modulation.gamma, layer.modulation.beta):
        nn.init.zeros_(conv.weight)
    layer.modulation.gamma.bias.data = torch.tensor([0.5, -1.0])
    layer.modulation.beta.bias.data = torch.tensor([0.0, 3.0])
    x = torch.randn(1, 2, 4, 4)
    out = layer(x, torch.zeros(1, 3, 4, 4))
    torch.testing.assert_close(out[:, 0], 1.5 * x[:, 0])
    torch.testing.assert_close(out[:, 1], torch.full((1, 4, 4), 3.0))


def test_clade_scales_and_shifts_each_class_by_its_own_numbers():
    layer = ModulatedNorm(nn.Identity(), ClassModulation(1, 2))
    layer.modulation.gamma.data, layer.modulation.beta.data = torch.tensor([[2.0], [3.0]]), torch.tensor([[0.0], [1.0]])
    masks = torch.tensor([[[0, 1]]])
    assert layer(torch.full((1, 1, 1, 2), 5.0), semantic_map(masks, 2)).flatten().tolist() == [10.0, 16.0]


# Semantic maps


def test_a_semantic_map_has_a_channel_for_every_class():
    masks = torch.tensor([[[0, 2], [1, 1]]])
    assert semantic_map(masks, 3).tolist() == [[[[1, 0], [0, 0]], [[0, 0], [1, 1]], [[0, 1], [0, 0]]]]


def test_what_nobody_knows_and_edges_come_after_the_classes():
    masks = torch.tensor([[[0, 2, 2]]])
    found = semantic_map(masks, 2, dont_care=True, edges=instance_edges(masks))
    assert found[0, :, 0].tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize(
    ("masks", "options", "message"),
    [
        (torch.full((1, 2, 2), 3), {}, "masks hold 3 to 3; there are the classes 0 to 2"),
        (torch.full((1, 2, 2), 4), {"dont_care": True}, "there are the classes 0 to 3"),
        (torch.full((1, 2, 2), -1), {}, "masks hold -1 to -1"),
        (torch.zeros(1, 2, 2), {}, "type torch.float32; give class numbers"),
        (torch.zeros(2, 2, dtype=torch.int64), {}, r"shape \(2, 2\)"),
    ],
)
def test_masks_that_are_none_are_refused(masks, options, message):
    with pytest.raises(ValueError, match=message):
        semantic_map(masks, 3, **options)


def test_edges_are_on_both_sides_of_a_border():
    instances = torch.tensor([[[7, 7, 7, 7], [7, 7, 9, 9], [7, 7, 9, 9], [7, 7, 9, 9]]])
    expected = [[0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 1, 0]]
    assert instance_edges(instances)[0, 0].tolist() == expected


def test_a_map_is_made_smaller_by_taking_every_other_pixel():
    semantic = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(resized(semantic, (2, 4)), semantic[:, :, ::2])
    assert resized(semantic, (4, 4)) is semantic


# Style encoders


@pytest.mark.parametrize(
    ("image_size", "size", "layers", "features"),
    [
        ((256, 256), 256, 6, (16, 4, 4)),
        ((64, 48), 256, 6, (16, 4, 4)),
        ((64, 64), None, 4, (16, 4, 4)),
        ((48, 96), None, 3, (8, 6, 12)),
        ((16, 16), None, 2, (4, 4, 4)),
    ],
)
def test_a_style_encoder_halves_images_until_four_pixels_are_left(image_size, size, layers, features):
    encoder = StyleEncoder(image_size, 1, 2, 6, size=size)
    images = torch.randn(2, 1, *image_size)
    assert len(encoder.layers) == layers
    assert encoder.features(images).shape == (2, *features)
    mean, log_variance = encoder(images)
    assert mean.shape == log_variance.shape == (2, 6)


def test_the_mean_of_a_style_encoder_is_that_of_its_distribution():
    encoder, images = StyleEncoder((32, 32), 1, 2, 6, size=None).eval(), torch.randn(2, 1, 32, 32)
    assert torch.equal(encoder.mean(images), encoder(images)[0])


def test_images_of_any_size_are_brought_to_that_of_the_style_encoder():
    encoder = StyleEncoder((32, 32), 1, 2, 6, size=None).eval()
    image = torch.randn(1, 1, 32, 32)
    smaller = nn.functional.interpolate(image, size=(24, 40), mode="bilinear")
    assert encoder.mean(smaller).shape == (1, 6)
    assert not torch.equal(encoder.mean(smaller), encoder.mean(image))


def test_images_too_small_for_a_style_encoder_are_refused():
    with pytest.raises(ValueError, match="images of 4 x 64 pixels are too small"):
        StyleEncoder((4, 64), 1, 2, 6, size=None)


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_an_inner_style_encoder_gives_codes_as_long_as_the_generator_takes(norm):
    config = replace(TINY, style="inside", style_dim=32, norm=norm)
    encoder = InnerStyleEncoder(config).train()
    code = encoder(torch.randn(2, 1, 32, 48))
    assert SPADESynthesis(config)(inputs(config)[0], code).shape == (2, 1, 32, 48)
    code.sum().backward()
    assert all(weight.grad is not None for weight in encoder.parameters())


def test_an_inner_style_encoder_needs_two_pixels_at_the_lowest_resolution():
    with pytest.raises(ValueError, match="at least 2 x 2 pixels"):
        InnerStyleEncoder(replace(TINY, style="inside", style_dim=32, image_size=(16, 32)))


# Discriminators


def test_each_scale_sees_half_the_size_and_gives_all_its_features():
    torch.manual_seed(0)
    discriminator = MultiscaleDiscriminator(4, width=3, layers=3, scales=3).eval()
    x = torch.randn(2, 4, 64, 48)
    found = discriminator(x)
    assert [[layer.shape[1] for layer in scale] for scale in found] == [[3, 6, 12, 1]] * 3
    assert [tuple(scale[0].shape[2:]) for scale in found] == [(33, 25), (17, 13), (9, 7)]
    torch.testing.assert_close(found[0], discriminator.scales[0].features(x))


def test_pixels_outside_do_not_darken_the_border_of_a_smaller_scale():
    seen = []
    discriminator = MultiscaleDiscriminator(1, width=2, layers=2, scales=2).eval()
    discriminator.scales[1].first.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    discriminator(torch.ones(1, 1, 16, 16))
    assert torch.equal(seen[0], torch.ones(1, 1, 8, 8))


@pytest.mark.parametrize(("arguments", "name"), [({"layers": 0}, "layers"), ({"scales": 0}, "scales")])
def test_discriminators_without_layers_or_scales_are_refused(arguments, name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        MultiscaleDiscriminator(4, **arguments)


def test_layers_of_a_discriminator_are_at_most_512_wide():
    with torch.device("meta"):
        discriminator = spectral_discriminator(1, width=256, layers=4)
    assert [layer.conv.out_channels for layer in discriminator.layers] == [512, 512, 512]
