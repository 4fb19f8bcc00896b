"""Adversarial training of the VQ autoencoder against the official VQGAN: losses, adaptive weights and gradients."""

import pytest

from tests.parity.conftest import Case, cases
from tests.parity.medfusion_gan import check_autoencoder_step, check_discriminator_step

pytestmark = pytest.mark.parametrize("case", cases("medfusion_vqgan"))


def test_step_of_the_autoencoder_equals_the_official_one(case: Case) -> None:
    check_autoencoder_step(case)


def test_step_of_the_discriminators_equals_the_official_one(case: Case) -> None:
    check_discriminator_step(case)
