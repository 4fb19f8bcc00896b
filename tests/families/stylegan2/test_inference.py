"""Synthesis without gradients gives the numbers of the network that trains."""

from dataclasses import replace

import pytest
import torch

from medgen.families.stylegan2.generator import StyleGAN2Config, StyleGAN2Generator
from medgen.nn.inference import PreparedNetwork, for_inference
from tests.tiny import nudge


def generator(**changes):
    torch.manual_seed(0)
    return nudge(StyleGAN2Generator(replace(StyleGAN2Config.tiny(), **changes))).eval()


@pytest.mark.parametrize("noise", ["fixed", "random", "none"])
@pytest.mark.parametrize(
    ("batch", "changes"),
    [
        (1, {}),
        (3, {"channels": 3, "image_size": (32, 24), "clamp": None}),
        (2, {"clamp": 0.5}),
        (2, {"image_size": (256, 256), "channel_base": 2048}),  # more than one piece
    ],
    ids=str,
)
def test_images_are_those_of_the_network(batch, changes, noise):
    model = generator(**changes)
    styles = torch.randn(batch, model.config.num_ws, model.config.w_dim)
    sizes = model.synthesis.noise_sizes()
    parts = {
        "fixed": model.synthesis.fixed_noise(),
        "random": [torch.randn(batch, 1, *size) for size in sizes],
        "none": [None] * len(sizes),
    }[noise]
    with torch.no_grad():
        expected = model.synthesis(styles, *parts)
        prepared = for_inference(model.synthesis)
        assert isinstance(prepared, PreparedNetwork)
        found = prepared(styles, *parts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_bfloat16_is_close():
    model = generator(image_size=(64, 64), channel_base=1024, channel_max=64)
    images = model.sample(4, "finding", seed=0, noise_mode="fixed")
    rough = model.sample(4, "finding", seed=0, noise_mode="fixed", precision="bf16")
    assert 0 < (rough - images).abs().mean() < 0.01
