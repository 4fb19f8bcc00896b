import json

import pytest
import torch

from medgen.families.medfusion.convert import build_autoencoder, build_discriminators, build_unet, load_weights
from medgen.nn.layers import convolution

SMALL = json.loads('{"hid_chs": [8, 8, 16], "kernel_sizes": [3, [3, 3], 3], "strides": [1, 2, [2, 2]]}')


def official_discriminator() -> dict[str, torch.Tensor]:
    """Weights of a discriminator with two units, under the official names."""
    units = {"inc": (1, 4), "encoder.0": (4, 8)}
    weights = {}
    for name, (before, after) in units.items():
        weights |= {f"{name}.conv.{key}": w for key, w in convolution(2, before, after).state_dict().items()}
        weights |= {f"{name}.norm.{key}": torch.ones(after) for key in ("weight", "bias")}
    return weights | {f"outc.conv.{key}": w for key, w in convolution(2, 8, 1).state_dict().items()}


@pytest.fixture
def discriminator():
    arguments = {"in_channels": 1, "hid_chs": [4, 8], "strides": [1, 2], "norm_name": ["GROUP", {"num_groups": 2}]}
    return build_discriminators(arguments)[0]


def test_weights_reach_the_layer_they_belong_to(discriminator):
    weights = official_discriminator()
    load_weights(discriminator, weights)
    assert torch.equal(discriminator.layers[0].conv.weight, weights["encoder.0.conv.weight"])
    assert torch.equal(discriminator.last.bias, weights["outc.conv.bias"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outc.conv.bias": None}, "last.bias is missing"),
        ({"encoder.1.conv.bias": torch.zeros(8)}, "layers.1.conv.bias is not part of this model"),
        ({"outc.conv.bias": torch.zeros(2)}, r"last.bias is \(2,\), expected \(1,\)"),
    ],
)
def test_weights_of_another_network_are_refused_by_name(discriminator, change, message):
    weights = {name: w for name, w in (official_discriminator() | change).items() if w is not None}
    with pytest.raises(ValueError, match=f"the official network do not fit PatchDiscriminator.*{message}"):
        load_weights(discriminator, weights)


def test_perceptual_network_in_a_checkpoint_is_left_out(discriminator):
    load_weights(discriminator, official_discriminator() | {"perceiver.loss_fn.net.slice1.0.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("arguments", "extra_heads"), [({}, 0), ({"deep_supervision": True}, 2), ({"deep_supervision": 1}, 1)]
)
def test_deep_supervision_counts_the_autoencoders_extra_heads(arguments, extra_heads):
    autoencoder = build_autoencoder(SMALL | arguments)
    assert len(autoencoder.decoder.heads) == 1 + extra_heads


@pytest.mark.parametrize(("kind", "extra_heads"), [("concatenated", 1), ("additive", 2)])
def test_deep_supervision_of_a_unet_is_on_by_default(kind, extra_heads):
    unet = build_unet(SMALL | {"norm_name": "INSTANCE", "spatial_dims": 2}, kind)
    assert unet.config.extra_heads == extra_heads


def test_official_defaults_fill_what_is_not_given():
    with torch.device("meta"):
        unet, vae, vqvae = build_unet({}), build_autoencoder({}), build_autoencoder({}, "vq")
    assert unet.config.spatial_dims == 3
    assert unet.config.norm == ("group", {"num_groups": 32})
    assert vae.decoder.stem.first.norm.num_groups == 8
    assert vqvae.decoder.stem.first.norm.num_groups == 32
    assert vqvae.quantizer.codebook.shape == (8192, 4)


@pytest.mark.parametrize("dropout", [0.3, ["DROPOUT", {"p": 0.3}]])
def test_dropout_is_read_in_both_official_forms(dropout):
    assert build_autoencoder(SMALL | {"dropout": dropout}).encoder.stem.first.dropout.p == 0.3


def test_network_without_label_embedder_has_no_label():
    unet = build_unet(SMALL | {"norm_name": "INSTANCE", "spatial_dims": 2, "cond_embedder": None})
    assert unet.embed_label is None


def test_width_of_the_time_embeddings_waves_can_be_given():
    arguments = {"norm_name": "INSTANCE", "spatial_dims": 2}
    time = {"emb_dim": 16, "pos_embedder_kwargs": {"emb_dim": 6}}
    unet = build_unet(SMALL | arguments | {"time_embedder_kwargs": time, "cond_embedder": None})
    assert unet.embed_time.layers[0].weight.shape == (16, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"time_embedder": None}, "time_embedder is None"),
        ({"time_embedder_kwargs": {"act_name": "RELU"}}, "act_name"),
        ({"time_embedder_kwargs": {"pos_embedder_kwargs": {"max_period": 100}}}, "max_period"),
    ],
)
def test_time_embeddings_that_cannot_be_built_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_unet(arguments)
