"""The names and shapes of Medfusion's published checkpoints, at full size."""

from math import prod

import pytest
import torch

from medgen.families.medfusion.convert import build_autoencoder, build_unet, load_weights
from medgen.labels import LabelSpace
from medgen.nn.autoencoder import AutoencoderConfig, KLAutoencoder
from medgen.nn.unet import UNet, UNetConfig
from tests.parity.conftest import published_keys

pytestmark = pytest.mark.parametrize("published", published_keys("medfusion"))

SIZES = {
    "noise_estimator": "n_parameters_noise_estimator",
    "latent_embedder": "n_parameters_latent_embedder_without_perceiver",
}


def shapes(published: dict, variant: str) -> dict[str, list[int]]:
    entry = published["variants"][variant]
    if "state_dict" in entry:
        return {name: weight["shape"] for name, weight in entry["state_dict"].items()}
    changed = {name: weight["shape"] for name, weight in entry["shapes_that_differ"].items()}
    return shapes(published, entry["same_keys_as"]) | changed


def published_networks(latent_channels: int) -> dict[str, torch.nn.Module]:
    """The networks of the published settings, as official arguments and as our own defaults."""
    unet = {
        "in_ch": latent_channels,
        "out_ch": latent_channels,
        "spatial_dims": 2,
        "hid_chs": [256, 256, 512, 1024],
        "kernel_sizes": [3, 3, 3, 3],
        "strides": [1, 2, 2, 2],
        "time_embedder_kwargs": {"emb_dim": 1024},
        "cond_embedder_kwargs": {"emb_dim": 1024, "num_classes": 2},
        "deep_supervision": False,
    }
    vae = {
        "emb_channels": latent_channels,
        "hid_chs": [64, 128, 256, 512],
        "strides": [1, 2, 2, 2],
        "deep_supervision": 1,
    }
    return {"noise_estimator": build_unet(unet), "latent_embedder": build_autoencoder(vae)}


@pytest.mark.parametrize("variant", ["diffusion_pipeline_chest_emb8", "diffusion_pipeline_emb4"])
def test_published_layout_loads_strictly(published, variant):
    layout = shapes(published, variant)
    latent_channels = layout["noise_estimator.in_conv.conv.weight"][1]
    with torch.device("meta"):
        for prefix, network in published_networks(latent_channels).items():
            weights = {
                name.removeprefix(f"{prefix}."): torch.empty(shape)
                for name, shape in layout.items()
                if name.startswith(f"{prefix}.")
            }
            load_weights(network, weights)


def test_defaults_are_the_published_size(published):
    entry = published["variants"]["diffusion_pipeline_chest_emb8"]
    with torch.device("meta"):
        networks = {
            "noise_estimator": UNet(UNetConfig(), 8, label_space=LabelSpace("single", ("a", "b"))),
            "latent_embedder": KLAutoencoder(AutoencoderConfig(), 3),
        }
    for name, network in networks.items():
        assert sum(prod(p.shape) for p in network.parameters()) == entry[SIZES[name]]
