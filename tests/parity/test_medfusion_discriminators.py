"""Medfusion's patch discriminators against those of the official VAEGAN and VQGAN."""

import pytest
import torch
from torch.nn.functional import interpolate

from medgen.families.medfusion.convert import build_autoencoder, build_discriminators, load_weights
from tests.parity.conftest import Case, cases

pytestmark = pytest.mark.parametrize("case", [*cases("medfusion_vaegan"), *cases("medfusion_vqgan")])


def kind(case: Case) -> str:
    return "kl" if "VAEGAN" in case.official_class else "vq"


def part(case: Case, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): w for name, w in case.weights.items() if name.startswith(prefix)}


@torch.no_grad()
def test_logits_equal_the_official_ones(case: Case):
    discriminators = build_discriminators(case.kwargs, kind(case)).eval()
    for i, discriminator in enumerate(discriminators):
        load_weights(discriminator, part(case, f"discriminator.{i}."))
        x = case.inputs["x"]
        size = [side // 2**i for side in x.shape[2:]]
        case.check(f"disc{i}_on_x", discriminator(interpolate(x, size=size, mode="area")))
    assert not part(case, f"discriminator.{len(discriminators)}.")


def test_weights_of_the_autoencoder_inside_load(case: Case):
    load_weights(build_autoencoder(case.kwargs, kind(case)), part(case, "vqvae."))
