"""Medfusion's KL autoencoder against the official VAE."""

import pytest
import torch

from medgen.families.medfusion.convert import build_autoencoder, load_weights
from tests.parity.conftest import Case, cases

pytestmark = pytest.mark.parametrize("case", cases("medfusion_vae"))


@pytest.fixture
def autoencoder(case: Case):
    autoencoder = build_autoencoder(case.kwargs, "kl").eval()
    load_weights(autoencoder, case.weights)
    return autoencoder


@torch.no_grad()
def test_encoding_equals_the_official_one(case: Case, autoencoder):
    x = case.inputs["x"]
    case.check("inc", autoencoder.encoder.stem(x))
    features = autoencoder.encoder(x)
    case.check("encoder_last", features)
    case.check("moments", autoencoder.to_moments(features))
    case.check("z", autoencoder.encode(x, case.inputs["noise"]))


@torch.no_grad()
def test_decoding_equals_the_official_one(case: Case, autoencoder):
    case.check("decode_of_z", autoencoder.decode(case.outputs["z"]))
    case.check("decode_of_z_in", autoencoder.decode(case.inputs["z_in"]))


@torch.no_grad()
def test_every_resolution_equals_the_official_one(case: Case, autoencoder):
    z = autoencoder.encode(case.inputs["x"], case.inputs["noise"])
    full, *lower = autoencoder.decode_multiscale(z)
    case.check("forward_out", full)
    assert len(lower) == sum(name.startswith("forward_vertical_") for name in case.outputs)
    for i, image in enumerate(lower):
        case.check(f"forward_vertical_{i}", image)
