"""Medfusion's UNets against the official `unet2.py` and `unet.py`."""

import pytest
import torch

from medgen.families.medfusion.convert import build_unet, load_weights
from tests.parity.conftest import Case, cases

pytestmark = pytest.mark.parametrize("case", cases("medfusion_unet"))


@pytest.fixture
def unet(case: Case):
    unet = build_unet(case.kwargs, "concatenated" if "unet2" in case.official_class else "additive").eval()
    load_weights(unet, case.weights)
    return unet


@torch.no_grad()
def test_embeddings_equal_the_official_ones(case: Case, unet):
    case.check("time_embedding", unet.embed_time(case.inputs["t"]))
    if unet.embed_label is not None:
        case.check("cond_embedding", unet.embed_label(case.inputs["condition"]))


@torch.no_grad()
def test_conditional_estimate_equals_the_official_one_at_every_resolution(case: Case, unet):
    label = None if unet.embed_label is None else case.inputs["condition"]
    full, *lower = unet.multiscale(case.inputs["x"], case.inputs["t"], label)
    case.check("y_cond", full)
    assert len(lower) == sum(name.startswith("y_cond_vertical_") for name in case.outputs)
    for i, estimate in enumerate(lower):
        case.check(f"y_cond_vertical_{i}", estimate)


@torch.no_grad()
def test_unconditional_estimate_equals_the_official_one(case: Case, unet):
    case.check("y_uncond", unet(case.inputs["x"], case.inputs["t"]))


@torch.no_grad()
def test_conditional_and_unconditional_images_can_share_a_batch(case: Case, unet):
    if unet.embed_label is None:
        pytest.skip("this network has no label")
    label = case.inputs["condition"].clone()
    label[0] = -1
    estimate = unet(case.inputs["x"], case.inputs["t"], label)
    torch.testing.assert_close(estimate[0], case.outputs["y_uncond"][0], rtol=0, atol=case.bound("y_uncond"))
    torch.testing.assert_close(estimate[1:], case.outputs["y_cond"][1:], rtol=0, atol=case.bound("y_cond"))


@torch.no_grad()
def test_self_conditioned_estimate_equals_the_official_one(case: Case, unet):
    if "self_cond" not in case.inputs:
        pytest.skip("this network is not self-conditioned")
    label = None if unet.embed_label is None else case.inputs["condition"]
    estimate = unet(case.inputs["x"], case.inputs["t"], label, case.inputs["self_cond"])
    case.check("y_cond_self_cond_given", estimate)
