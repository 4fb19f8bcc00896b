"""Medfusion's VQ autoencoder against the official VQVAE."""

import pytest
import torch

from medgen.families.medfusion.convert import build_autoencoder, load_weights
from tests.parity.conftest import Case, cases

pytestmark = pytest.mark.parametrize("case", cases("medfusion_vqvae"))


@pytest.fixture
def autoencoder(case: Case):
    autoencoder = build_autoencoder(case.kwargs, "vq").eval()
    load_weights(autoencoder, case.weights)
    return autoencoder


@torch.no_grad()
def test_encoding_and_quantising_equal_the_official_ones(case: Case, autoencoder):
    z = autoencoder.encode(case.inputs["x"])
    case.check("encode", z)
    quantized = autoencoder.quantize(z)
    case.check("indices", quantized.indices)
    case.check("quantized", quantized.latent)
    case.check("emb_loss", quantized.loss)


@torch.no_grad()
def test_decoding_equals_the_official_one(case: Case, autoencoder):
    case.check("decode_of_encode", autoencoder.decode(case.outputs["encode"]))
    case.check("decode_of_z_in", autoencoder.decode(case.inputs["z_in"]))


@torch.no_grad()
def test_every_resolution_equals_the_official_one(case: Case, autoencoder):
    (full, *lower), quantized = autoencoder.decode_multiscale(autoencoder.encode(case.inputs["x"]))
    case.check("forward_out", full)
    case.check("forward_emb_loss", quantized.loss)
    assert len(lower) == sum(name.startswith("forward_vertical_") for name in case.outputs)
    for i, image in enumerate(lower):
        case.check(f"forward_vertical_{i}", image)
