"""What becomes of official options and files that no fixture has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from medgen.families.spade.config import SPADEConfig
from medgen.families.spade.convert import (
    build_discriminator,
    build_inner_style_encoder,
    build_style_encoder,
    build_synthesis,
    load_style_encoder_weights,
    load_synthesis_weights,
    synthesis_config,
    synthesis_weights,
)
from medgen.families.spade.networks import SPADESynthesis
from medgen.nn.spectral import SpectralConv2d
from tests.parity.conftest import Case, cases

OPTIONS = {"crop_size": 64, "label_nc": 3, "no_instance": True, "ngf": 1}


def old_file(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the first versions of spectral normalisation kept it: with the normalised weight, without v."""
    old = {name: weight for name, weight in weights.items() if not name.endswith("weight_v")}
    for name in (name for name in weights if name.endswith("weight_orig")):
        module = name.removesuffix("_orig")
        matrix = weights[name].flatten(1)
        old[module] = weights[name] / (weights[f"{module}_u"] @ matrix @ weights[f"{module}_v"])
    return old


@pytest.mark.slow
@pytest.mark.parametrize("case", cases("spade_g"))
def test_files_without_the_second_singular_vector_give_the_same_images(case: Case) -> None:
    networks = [build_synthesis(case.meta["constructor"]) for _ in range(2)]
    load_synthesis_weights(networks[0], case.weights)
    load_synthesis_weights(networks[1], {name: weight.clone() for name, weight in old_file(case.weights).items()})
    config = networks[0].config
    semantic = torch.rand(2, config.semantic_channels, *config.image_size)
    code = torch.randn(2, config.code_dim) if config.code_dim else None
    with torch.no_grad():
        for training in (False, True):  # a training pass finds v anew, from the same u
            ours, old = (network.train(training)(semantic, code) for network in networks)
            torch.testing.assert_close(old, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", cases("spade_e"))
def test_a_weight_that_is_missing_is_named(case: Case) -> None:
    damaged = {name: weight for name, weight in case.weights.items() if name != "layer3.0.weight_orig"}
    with pytest.raises(ValueError, match=r"layers\.2\.conv\.weight is missing"):
        load_style_encoder_weights(build_style_encoder(case.meta["constructor"]), damaged)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"num_classes": 3, "image_size": (64, 64), "num_upsamplings": 5, "style": "none"}),
        ({"no_instance": False, "contain_dontcare_label": True}, {"num_classes": 5}),
        ({"semantic_nc": 7}, {"num_classes": 7}),
        ({"crop_size": 512, "aspect_ratio": 2.0}, {"image_size": (256, 512), "base": (8, 16)}),
        ({"crop_size": 128, "num_upsampling_layers": "more"}, {"num_upsamplings": 6, "base": (2, 2)}),
        ({"use_vae": True, "z_dim": 9}, {"style": "vae", "style_dim": 9}),
        ({"netG": "stylespade", "num_upsampling_layers": "few"}, {"style": "inside", "style_dim": 16}),
        ({"norm_G": "spadeinstance1x1"}, {"norm": "instance", "kernel_size": 1}),
        ({"norm_mode": "clade"}, {"modulation": "clade"}),
    ],
    ids=str,
)
def test_options_become_sizes(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    config = synthesis_config(OPTIONS | changes)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(("norm", "spectral"), [("spadeinstance1x1", False), ("spectralspadeinstance1x1", True)])
def test_spectral_normalisation_is_an_option(norm: str, spectral: bool) -> None:
    first = build_synthesis(OPTIONS | {"norm_G": norm}).blocks[0].first
    assert isinstance(first, SpectralConv2d) == spectral


@pytest.mark.parametrize(
    ("build", "changes", "message"),
    [
        (build_synthesis, {"netG": "pix2pixhd"}, "netG is 'pix2pixhd'; our networks have 'spade', 'stylespade'"),
        (build_synthesis, {"norm_G": "spectralbatch"}, "norm_G is 'spectralbatch'"),
        (build_synthesis, {"num_upsampling_layers": "many"}, "num_upsampling_layers is 'many'"),
        (build_synthesis, {"netG": "stylespade"}, "num_upsampling_layers is 'normal'.* few, most"),
        (build_synthesis, {"add_dist": True}, "add_dist is True"),
        (build_style_encoder, {"crop_size": 128}, "crop_size is 128; the official encoder works from 256 on"),
        (build_style_encoder, {"norm_E": "instance"}, "norm_E is 'instance'; our networks have spectralinstance"),
        (build_discriminator, {"netD_subarch": "stylegan"}, "netD_subarch is 'stylegan'"),
        (build_discriminator, {"norm_D": "spectrallayer"}, "norm_D is 'spectrallayer'"),
    ],
)
def test_options_that_ask_for_other_networks_are_named(build: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(OPTIONS | changes)


@pytest.mark.parametrize("name", ["crop_size", "label_nc"])
def test_options_that_are_missing_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"lack {name}"):
        build_synthesis({key: value for key, value in OPTIONS.items() if key != name})


def test_an_inner_encoder_of_another_depth_is_refused() -> None:
    options = OPTIONS | {"netG": "stylespade", "num_upsampling_layers": "few", "resnet_n_downsample": 3}
    with pytest.raises(ValueError, match="resnet_n_downsample is 3; our networks have 4"):
        build_inner_style_encoder(options)


def test_weights_go_into_their_own_kind_of_network_only() -> None:
    network = SPADESynthesis(SPADEConfig(image_size=(32, 32), mask_names=("a", "b"), width=1))
    with pytest.raises(ValueError, match="the network is a SPADESynthesis; give a StyleEncoder"):
        load_style_encoder_weights(network, {})


def test_a_layer_that_is_never_used_is_left_out() -> None:
    config = synthesis_config(OPTIONS | {"num_upsampling_layers": "few"})
    weights = {"G_middle_0.conv_0.bias": torch.zeros(16), "G_middle_1.conv_0.bias": torch.ones(16)}
    assert synthesis_weights(weights, config).keys() == {"blocks.1.first.bias"}
