"""Reconstruction loss, divergence and total of the official VAE and VQVAE, without a perceptual network."""

import pytest
import torch
from torch import Tensor

from medgen.families.medfusion.convert import build_autoencoder, load_weights
from medgen.losses.autoencoder import AutoencoderLoss
from medgen.losses.divergence import kl_divergence
from medgen.losses.ssim import ssim
from tests.parity.conftest import Case, cases
from tests.parity.medfusion_pipeline import pixel_loss


def outputs_of(case: Case) -> list[Tensor]:
    """The official outputs at every resolution, full first."""
    lower = sorted(name for name in case.outputs if name.startswith("forward_vertical_"))
    return [case.outputs["forward_out"], *(case.outputs[name] for name in lower)]


def reconstruction_loss(case: Case, reduction: str) -> Tensor:
    loss = AutoencoderLoss(pixel=pixel_loss(case.kwargs), reduction=reduction)
    return loss(outputs_of(case), case.inputs["x"]).total


@pytest.mark.parametrize("case", cases("medfusion_vae"))
def test_loss_of_the_kl_autoencoder_equals_the_official_one(case: Case) -> None:
    autoencoder = build_autoencoder(case.kwargs, "kl").eval()
    load_weights(autoencoder, case.weights)
    with torch.no_grad():
        divergence = kl_divergence(*autoencoder.encode_moments(case.inputs["x"])).mean()
    reconstruction = reconstruction_loss(case, "sum")
    case.check("forward_kl", divergence)
    case.check("rec_loss_no_perceiver", reconstruction)
    case.check("total_loss_no_perceiver", reconstruction + case.kwargs.get("embedding_loss_weight", 1e-6) * divergence)


@pytest.mark.parametrize("case", cases("medfusion_vae"))
def test_structural_loss_of_every_image_equals_the_official_one(case: Case) -> None:
    prediction, target = ((case.outputs["forward_out"] + 1) / 2).clamp(0, 1), (case.inputs["x"] + 1) / 2
    loss = 1 - ssim(prediction, target, nonnegative=True)
    case.check("ssim_loss_per_sample", loss.reshape(case.outputs["ssim_loss_per_sample"].shape))


@pytest.mark.parametrize("case", cases("medfusion_vqvae"))
def test_loss_of_the_vq_autoencoder_equals_the_official_one(case: Case) -> None:
    reconstruction = reconstruction_loss(case, "mean")
    case.check("rec_loss_no_perceiver", reconstruction)
    total = reconstruction + case.kwargs.get("embedding_loss_weight", 1) * case.outputs["forward_emb_loss"]
    case.check("total_loss_no_perceiver", total)
