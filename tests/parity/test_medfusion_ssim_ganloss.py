import pytest

from medgen.losses.adversarial import ADVERSARIAL
from medgen.losses.ssim import ssim
from tests.parity.conftest import Case, cases

OFFICIAL_NAMES = {"hinge_d": "hinge", "vanilla_d": "logistic", "exp_d": "exponential"}


@pytest.mark.parametrize("case", cases("medfusion_ssim_ganloss"))
def test_structural_similarity_equals_the_official_one(case: Case) -> None:
    x, y = case.inputs["x"], case.inputs["y"]
    case.check("ssim_per_sample_nonneg", ssim(x, y, nonnegative=True))
    case.check("ssim_mean", ssim(x, y).mean())


@pytest.mark.parametrize("case", cases("medfusion_ssim_ganloss"))
def test_similarity_of_an_image_to_its_negative_equals_the_official_one(case: Case) -> None:
    x = case.inputs["x"]
    case.check("ssim_neg_example", ssim(x, 1 - x))
    case.check("ssim_neg_example_nonneg", ssim(x, 1 - x, nonnegative=True))


@pytest.mark.parametrize("case", cases("medfusion_ssim_ganloss"))
def test_discriminator_losses_equal_the_official_ones(case: Case) -> None:
    real, fake = case.inputs["logits_real"], case.inputs["logits_fake"]
    for official, kind in OFFICIAL_NAMES.items():
        case.check(official, ADVERSARIAL[kind].discriminator(real, fake))
