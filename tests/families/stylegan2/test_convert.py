"""Arguments of official constructors that ours cannot follow are refused, also those that change no shape."""

import pytest
import torch

from medgen.families.stylegan2.convert import build_discriminator, generator_config

GENERATOR = {"z_dim": 8, "w_dim": 8, "c_dim": 0, "img_resolution": 16, "img_channels": 1}
DISCRIMINATOR = {"c_dim": 0, "img_resolution": 16, "img_channels": 1, "channel_base": 64}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"mapping_kwargs": {"lr_multiplier": 0.1}}, "lr_multiplier of mapping_kwargs is 0.1; our networks have 0.01"),
        ({"synthesis_kwargs": {"use_noise": False}}, "use_noise of synthesis_kwargs is False; our networks have True"),
        ({"mapping_kwargs": {"activation": "relu"}}, "activation of mapping_kwargs is relu; our networks have lrelu"),
        ({"mapping_kwargs": {"dropout": 0.1}}, "mapping_kwargs has dropout, which our networks do not have"),
    ],
)
def test_a_generator_unlike_ours_is_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        generator_config(GENERATOR | arguments)


def test_a_discriminator_unlike_ours_is_refused():
    with pytest.raises(ValueError, match=r"lr_multiplier of mapping_kwargs is 1\.0"):
        build_discriminator(DISCRIMINATOR | {"c_dim": 2, "mapping_kwargs": {"lr_multiplier": 1.0}})


def test_the_official_values_may_be_stated():
    stated = {"mapping_kwargs": {"lr_multiplier": 0.01}, "synthesis_kwargs": {"use_noise": True}}
    assert generator_config(GENERATOR | stated) == generator_config(GENERATOR)


MAPPING = {"embed_features": None, "layer_features": None, "activation": "lrelu"}
RESAMPLED = {"resample_filter": [1, 3, 3, 1], "activation": "lrelu"}


def test_files_that_were_written_anew_from_tensorflow_state_every_argument():
    mapping = MAPPING | {"num_layers": 8, "lr_multiplier": 0.01, "w_avg_beta": 0.995}
    synthesis = RESAMPLED | {"num_fp16_res": 0, "conv_clamp": None, "architecture": "skip", "use_noise": True}
    stated = GENERATOR | {"mapping_kwargs": mapping, "synthesis_kwargs": synthesis}
    assert generator_config(stated) == generator_config(GENERATOR)


def test_so_do_their_discriminators_which_read_labels_without_a_layer():
    stated = DISCRIMINATOR | {
        "c_dim": 3,
        "architecture": "resnet",
        "cmap_dim": None,
        "block_kwargs": RESAMPLED | {"freeze_layers": 0},
        "mapping_kwargs": MAPPING | {"num_layers": 0, "lr_multiplier": 0.1},
        "epilogue_kwargs": {"mbstd_group_size": None, "mbstd_num_channels": 1, "activation": "lrelu"},
    }
    network = build_discriminator(stated)
    assert len(network.label.layers) == 0
    logits = network.eval()(torch.rand(3, 1, 16, 16), torch.eye(3))
    assert logits.isfinite().all()
    assert len(logits.unique()) == 3
