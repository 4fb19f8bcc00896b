"""VQ-VAE2's autoencoder against the official VQVAE: outputs, codes, and codebooks that move in training."""

import pytest
import torch
from torch.nn import functional as F

from medgen.foreign.convert import load_official
from medgen.nn.vqvae2 import Codes
from tests.parity.conftest import Case, cases

pytestmark = pytest.mark.parametrize("case", cases("vqvae2_stage1"))


@pytest.fixture
def network(case: Case):
    return load_official("vqvae2", case.weights, case.kwargs)


@torch.no_grad()
def test_images_are_encoded_and_decoded_as_by_the_official_network(case: Case, network) -> None:
    quantized = network.encode(case.inputs["x"])
    case.check("id_t", quantized.codes.top)
    case.check("id_b", quantized.codes.bottom)
    case.check("quant_t", quantized.top.latent)
    case.check("quant_b", quantized.bottom.latent)
    case.check("diff", quantized.loss[None])
    case.check("decode", network.decode(quantized.top.latent, quantized.bottom.latent))
    case.check("decode_code_of_ids", network.decode_codes(quantized.codes))
    case.check("decode_code_in", network.decode_codes(Codes(case.inputs["code_t"], case.inputs["code_b"])))


def test_training_moves_codebooks_and_has_the_gradients_of_the_official_one(case: Case, network) -> None:
    network.train()
    names = {
        "enc_b.blocks.0.weight": network.encode_bottom[0].weight,
        "quantize_conv_t.weight": network.to_top.weight,
        "upsample_t.weight": network.upsample_top.weight,
    }
    for i, images in enumerate(case.inputs["train_x"]):
        network.zero_grad()
        copies, quantized = network(images)
        reconstruction = F.mse_loss(copies, images)
        loss = reconstruction + 0.25 * quantized.loss
        loss.backward()
        case.check(f"train{i}/recon_loss", reconstruction)
        case.check(f"train{i}/latent_loss", quantized.loss)
        case.check(f"train{i}/loss", loss)
        case.check(f"train{i}/out", copies)
        for level, codes in (("t", network.top_codes), ("b", network.bottom_codes)):
            case.check(f"train{i}/quantize_{level}.embed", codes.codebook.T)
            case.check(f"train{i}/quantize_{level}.cluster_size", codes.counts)
            case.check(f"train{i}/quantize_{level}.embed_avg", codes.sums.T)
        for name, parameter in names.items():
            if f"train{i}/grad/{name}" in case.outputs:
                case.check(f"train{i}/grad/{name}", parameter.grad, relative=1e-4)
