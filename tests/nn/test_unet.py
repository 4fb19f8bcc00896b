import math

import pytest
import torch

from medgen.labels import LabelSpace
from medgen.nn.unet import AdditiveUNet, UNet, UNetConfig
from tests.nn.test_blocks import randomised

SMALL = {
    "hidden": (8, 8, 16),
    "strides": (1, 2, 2),
    "norm": ("group", {"num_groups": 4}),
    "embedding_dim": 16,
}
OPTIONS = {
    "published": {},
    "plain": {"residual": False},
    "instance_norm": {"norm": "instance"},
    "batch_norm": {"norm": "batch"},
    "dropout": {"dropout": 0.1},
    "pooled": {"learned_resampling": False},
    "one_block": {"blocks_per_level": 1},
    "three_blocks": {"blocks_per_level": 3, "attention": ("none", "linear", "none")},
    "linear": {"attention": "linear"},
    "spatial": {"attention": ("none", "none", "spatial")},
    "head": {"extra_heads": 1},
    "variance": {"learned_variance": True, "extra_heads": 1},
    "self_conditioning": {"self_conditioning": True},
    "stride_3": {"strides": (1, 3, 3)},
    "no_stride": {"strides": (1, 1, 1)},
    "kernels_per_level": {"kernel_sizes": (5, 3, 1)},
    "four_levels": {"hidden": (8, 8, 16, 16), "strides": (1, 2, 3, 3), "extra_heads": 2},
    "volume": {"spatial_dims": 3},
    "thick_slices": {"spatial_dims": 3, "kernel_sizes": ((1, 3, 3), 3, 3), "strides": (1, (1, 2, 2), (1, 2, 2))},
    "volume_attention": {"spatial_dims": 3, "attention": "spatial"},
    "findings": {},
    "values": {},
    "unconditional": {},
}
KINDS = {"findings": "multi", "values": "continuous", "unconditional": "none"}


def build(cls, name):
    torch.manual_seed(0)
    config = UNetConfig(**SMALL | OPTIONS[name])
    side = 18 if 3 in config.strides else {2: 8, 3: 4}[config.spatial_dims]
    x = torch.randn(2, 2, *[side] * config.spatial_dims)
    kind = KINDS.get(name, "single")
    labels = LabelSpace(kind, () if kind == "none" else ("a", "b", "c"))
    label = {"none": None, "single": torch.tensor([0, 2])}.get(kind, torch.rand(2, 3))
    return randomised(cls(config, 2, label_space=labels)), x, torch.tensor([3, 700]), label


@pytest.fixture
def unet():
    return build(UNet, "published")[0].eval()


@pytest.mark.slow
@pytest.mark.parametrize("cls", [UNet, AdditiveUNet])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_keeps_the_shape_and_trains_every_parameter(cls, name):
    unet, x, t, label = build(cls, name)
    full, *lower = unet.multiscale(x, t, label)
    assert full.shape == (2, 4 if unet.config.learned_variance else 2, *x.shape[2:])
    assert len(lower) == unet.config.extra_heads
    assert all(estimate.shape[1] == 2 for estimate in lower)
    sum((estimate**2).sum() for estimate in (full, *lower)).backward()
    assert [n for n, p in unet.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_estimate_is_the_first_of_all_resolutions():
    unet, x, t, label = build(UNet, "head")
    assert torch.equal(unet(x, t, label), unet.multiscale(x, t, label)[0])


def test_lower_heads_read_ever_lower_resolutions():
    unet, x, t, label = build(UNet, "four_levels")
    assert [image.shape[-1] for image in unet.multiscale(x, t, label)] == [18, 9, 3]


@pytest.mark.parametrize("name", ["published", "findings", "values"])
def test_time_and_label_change_the_estimate(name):
    unet, x, t, label = build(UNet, name)
    estimate = unet(x, t, label)
    assert not torch.allclose(unet(x, t + 50, label), estimate)
    assert not torch.allclose(unet(x, t, label.roll(1, 0)), estimate)


@pytest.mark.parametrize(("name", "unknown"), [("published", -1), ("findings", math.nan), ("values", math.nan)])
def test_unknown_label_of_one_image_is_no_label_for_that_image_alone(name, unknown):
    unet, x, t, label = build(UNet, name)
    dropped = label.clone()
    dropped[1] = unknown
    estimate = unet(x, t, dropped)
    torch.testing.assert_close(estimate[0], unet(x, t, label)[0])
    torch.testing.assert_close(estimate[1], unet(x, t)[1])


def test_self_conditioning_shows_the_input_again():
    unet, x, t, label = build(UNet, "self_conditioning")
    seen = []
    unet.stem.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, 2:]))
    unet(x, t, label, torch.full_like(x, 5.0))
    unet(x, t, label)
    assert torch.equal(seen[0], x)
    assert torch.equal(seen[1], torch.zeros_like(x))


def test_label_for_a_network_without_labels_is_refused():
    unet, x, t, _ = build(UNet, "unconditional")
    with pytest.raises(ValueError, match="built without labels"):
        unet(x, t, torch.tensor([0, 1]))


def test_estimate_for_a_network_without_self_conditioning_is_refused(unet):
    x = torch.zeros(1, 2, 4, 4)
    with pytest.raises(ValueError, match="without self_conditioning"):
        unet(x, torch.tensor([1]), None, x)


def test_latent_that_cannot_be_halved_names_the_sizes_that_can(unet):
    with pytest.raises(ValueError, match=r"\(5, 4\); this UNet needs multiples of \(2, 2\)"):
        unet(torch.zeros(1, 2, 5, 4), torch.tensor([1]))


def test_config_that_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match=r"hidden .* has one entry; a UNet needs a stem and at least one level"):
        UNetConfig(hidden=(32,), strides=(1,))


def test_number_of_heads_beyond_the_levels_is_refused():
    with pytest.raises(ValueError, match="extra_heads 2 is out of range; these levels allow 0-1"):
        UNet(UNetConfig(**SMALL, extra_heads=2), 2)


@pytest.mark.parametrize("name", ["published", "spatial", "findings"])
def test_channels_last_and_bfloat16_agree_with_float32(name):
    unet, x, t, label = build(UNet, name)
    unet.eval()
    expected = unet(x, t, label)
    unet.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(unet(x, t, label), expected, rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = unet(x, t, label)
    whole = unet.bfloat16()(x.bfloat16(), t, label)
    for half in (autocast, whole):
        assert (half.float() - expected).abs().mean() < 0.05 * expected.abs().mean()
