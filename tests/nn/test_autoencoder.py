import pytest
import torch

from medgen.nn.autoencoder import AutoencoderConfig, KLAutoencoder, VQAutoencoder
from medgen.nn.blocks import BlockStyle
from medgen.nn.patch_discriminator import unit_discriminator
from tests.nn.test_blocks import randomised

SMALL = {"latent_channels": 2, "num_codes": 4, "hidden": (8, 16, 16), "strides": (1, 2, 2)}
OPTIONS = {
    "plain": {"residual": False},
    "instance_norm": {"norm": "instance"},
    "batch_norm": {"norm": "batch"},
    "prelu": {"activation": "prelu", "norm": ("instance", {"affine": True})},
    "dropout": {"dropout": 0.1},
    "pooled": {"learned_resampling": False},
    "linear": {"attention": "linear"},
    "attention_per_level": {"attention": ("none", "linear", "spatial")},
    "pooled_attention": {"learned_resampling": False, "attention": "spatial"},
    "all_heads": {"extra_heads": 2},
    "no_heads": {"extra_heads": 0},
    "kernels_per_level": {"kernel_sizes": (5, 3, 3)},
    "stride_3": {"strides": (1, 3, 2)},
    "stem_stride": {"strides": (2, 3, 2)},
    "rgb_to_grey": {},
    "volume": {"spatial_dims": 3},
    "thick_slices": {"spatial_dims": 3, "kernel_sizes": ((1, 3, 3), 3, 3), "strides": (1, (1, 2, 2), 2)},
    "volume_attention": {"spatial_dims": 3, "attention": "spatial"},
}


def build(name):
    torch.manual_seed(0)
    config = AutoencoderConfig(**SMALL | OPTIONS[name])
    side = 12 if config.spatial_dims == 2 else 4
    x = torch.randn(2, 3 if name == "rgb_to_grey" else 1, *[side] * config.spatial_dims)
    return config, x


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_returns_to_the_size_of_the_image_and_trains_every_parameter(name):
    config, x = build(name)
    autoencoder = randomised(KLAutoencoder(config, x.shape[1], out_channels=1))
    mean, logvar = autoencoder.encode_moments(x)
    images = autoencoder.decode_multiscale(mean + logvar)
    assert mean.shape[:2] == logvar.shape[:2] == (2, 2)
    assert images[0].shape[2:] == tuple(side // config.strides[0] for side in x.shape[2:])
    assert len(images) == config.extra_heads + 1
    assert all(image.shape[1] == 1 for image in images)
    sum((image**2).sum() for image in images).backward()
    assert [n for n, p in autoencoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize(("name", "sizes"), [("all_heads", [12, 6, 3]), ("stride_3", [12, 4])])
def test_each_head_has_the_resolution_of_its_level(name, sizes):
    config, x = build(name)
    autoencoder = KLAutoencoder(config, 1)
    images = autoencoder.decode_multiscale(autoencoder.encode_moments(x)[0])
    assert [image.shape[-1] for image in images] == sizes


@pytest.mark.parametrize("name", ["all_heads", "volume"])
def test_quantised_autoencoder_trains_every_parameter(name):
    config, x = build(name)
    autoencoder = randomised(VQAutoencoder(config, 1))
    images, quantized = autoencoder.decode_multiscale(autoencoder.encode(x))
    (quantized.loss + sum((image**2).sum() for image in images)).backward()
    assert [n for n, p in autoencoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_zero_noise_encodes_to_the_mean_and_noise_is_scaled_by_the_deviation():
    autoencoder = randomised(KLAutoencoder(AutoencoderConfig(**SMALL), 1))
    x = torch.randn(1, 1, 8, 8)
    mean, logvar = autoencoder.encode_moments(x)
    noise = torch.randn_like(mean)
    assert torch.equal(autoencoder.encode(x, torch.zeros_like(mean)), mean)
    torch.testing.assert_close(autoencoder.encode(x, noise), mean + (logvar / 2).exp() * noise)


def test_log_variance_is_clamped():
    autoencoder = KLAutoencoder(AutoencoderConfig(**SMALL), 1)
    autoencoder.to_moments[1].weight.data.mul_(1e6)
    _, logvar = autoencoder.encode_moments(torch.randn(1, 1, 16, 16))
    assert logvar.min() == -30
    assert logvar.max() == 20


def test_decode_is_the_first_of_all_resolutions():
    autoencoder = randomised(KLAutoencoder(AutoencoderConfig(**SMALL), 1))
    z = torch.randn(1, 2, 4, 4)
    assert torch.equal(autoencoder.decode(z), autoencoder.decode_multiscale(z)[0])


def test_quantised_decoding_sees_codes_only():
    autoencoder = randomised(VQAutoencoder(AutoencoderConfig(**SMALL), 1))
    z = torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(autoencoder.decode(z), autoencoder.decode(autoencoder.quantize(z).latent))


def test_number_of_heads_beyond_the_levels_is_refused():
    with pytest.raises(ValueError, match="extra_heads 3 is out of range; 3 levels allow 0-2"):
        AutoencoderConfig(hidden=(8, 8, 8), strides=(1, 2, 2), extra_heads=3)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_discriminator_gives_one_logit_per_patch(spatial_dims):
    style = BlockStyle(spatial_dims=spatial_dims, norm="instance")
    discriminator = unit_discriminator(1, hidden=(8, 8, 16), strides=(1, 2, 2), style=style)
    assert discriminator(torch.randn(2, 1, *[16] * spatial_dims)).shape == (2, 1, *[4] * spatial_dims)


def test_channels_last_and_autocast_agree_with_float32():
    autoencoder = randomised(KLAutoencoder(AutoencoderConfig(**SMALL, attention="linear"), 1)).eval()
    x = torch.randn(2, 1, 16, 16)
    expected = autoencoder.decode(autoencoder.encode_moments(x)[0])
    autoencoder.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(autoencoder.decode(autoencoder.encode_moments(x)[0]), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = autoencoder.decode(autoencoder.encode_moments(x)[0])
    assert (half.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_discriminators_of_earlier_training_runs_load():
    network = unit_discriminator(1, hidden=(8, 8, 16), strides=(1, 2, 2))
    old = {}
    for name, weight in network.state_dict().items():
        part, _, rest = name.partition(".")
        number, _, inner = rest.partition(".")
        before = {"first": f"units.0.{rest}", "last": f"head.{rest}"}
        old[before[part] if part in before else f"units.{int(number) + 1}.{inner}"] = weight + 1
    network.load_state_dict(old, strict=True)
    assert torch.equal(network.last.bias, old["head.bias"])
    assert torch.equal(network.layers[1].conv.weight, old["units.2.conv.weight"])
