"""What a GPU draws is what the CPU draws. Training runs there with MEDGEN_TEST_ACCELERATOR=gpu in the other tests."""

import pytest
import torch

import medgen

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BUNDLED = ("medfusion-cxr", "vqvae2-cxr", "stylegan2-cxr", "spade-cardiac")


def differences(name, **options):
    """Of two images drawn on the GPU and on the CPU, the mean absolute one of each."""
    generator = medgen.load(name)
    label = generator.label_space.names[0]
    if name == "medfusion-cxr":
        options["steps"] = 10
    there = generator.to("cuda").sample(2, label, seed=0, **options)
    assert there.isfinite().all()
    here = generator.to("cpu").sample(2, label, seed=0, **(options | {"precision": "float32"}))
    return (there.cpu() - here).abs().flatten(1).mean(1)


@pytest.mark.parametrize("name", BUNDLED)
def test_images_are_those_of_the_cpu(name):
    found = differences(name)
    # A drawn code can be another one where two are as likely, and with it all that follow.
    assert (found.min() if name == "vqvae2-cxr" else found.max()) < 0.01


@pytest.mark.parametrize("name", ["medfusion-cxr", "stylegan2-cxr", "spade-cardiac"])
def test_images_in_bfloat16_are_like_them(name):
    assert differences(name, precision="bf16").max() < 0.05
