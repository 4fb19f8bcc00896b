"""Arguments of official constructors that ours cannot follow are refused, also those that change no shape."""

import pytest

from medgen.families.stylegan2.convert import build_discriminator, generator_config

GENERATOR = {"z_dim": 8, "w_dim": 8, "c_dim": 0, "img_resolution": 16, "img_channels": 1}
DISCRIMINATOR = {"c_dim": 0, "img_resolution": 16, "img_channels": 1, "channel_base": 64}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"mapping_kwargs": {"lr_multiplier": 0.1}}, "lr_multiplier of mapping_kwargs is 0.1; our networks have 0.01"),
        ({"synthesis_kwargs": {"use_noise": False}}, "use_noise of synthesis_kwargs is False; our networks have True"),
        ({"mapping_kwargs": {"activation": "relu"}}, "mapping_kwargs has activation, which our networks do not have"),
    ],
)
def test_a_generator_unlike_ours_is_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        generator_config(GENERATOR | arguments)


def test_a_discriminator_unlike_ours_is_refused():
    with pytest.raises(ValueError, match=r"lr_multiplier of mapping_kwargs is 1\.0"):
        build_discriminator(DISCRIMINATOR | {"mapping_kwargs": {"lr_multiplier": 1.0}})


def test_the_official_values_may_be_stated():
    stated = {"mapping_kwargs": {"lr_multiplier": 0.01}, "synthesis_kwargs": {"use_noise": True}}
    assert generator_config(GENERATOR | stated) == generator_config(GENERATOR)
