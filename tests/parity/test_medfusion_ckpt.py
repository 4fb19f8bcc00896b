"""Networks out of genuine Medfusion checkpoints against what the official pipeline made of them."""

import pytest
import torch

from medgen.families.medfusion.convert import build_autoencoder, build_unet, load_weights
from medgen.foreign.lightning_files import read_lightning
from tests.parity.conftest import Case, cases

pytestmark = pytest.mark.parametrize("case", cases("medfusion_ckpt"))


def weights(case: Case, suffix: str, prefix: str = "") -> dict[str, torch.Tensor]:
    state = read_lightning(case.path.with_name(f"{case.path.stem}_{suffix}.ckpt")).state_dict
    return {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}


@torch.no_grad()
def test_noise_estimator_equals_the_official_one(case: Case):
    unet = build_unet(case.meta["constructor"]["noise_estimator_kwargs"]).eval()
    load_weights(unet, weights(case, "diffusion", "noise_estimator."))
    case.check("unet_pred", unet(case.inputs["x_T"], case.inputs["t"], case.inputs["condition"]))


@torch.no_grad()
@pytest.mark.parametrize(("suffix", "prefix"), [("vae", ""), ("diffusion", "latent_embedder.")])
def test_autoencoder_equals_the_official_one_in_both_files(case: Case, suffix: str, prefix: str):
    autoencoder = build_autoencoder(case.meta["constructor"]["vae_kwargs"]).eval()
    load_weights(autoencoder, weights(case, suffix, prefix))
    z = autoencoder.encode(case.inputs["image"], case.inputs["vae_noise"])
    case.check("vae_z", z)
    case.check("vae_rec", autoencoder.decode(z))
