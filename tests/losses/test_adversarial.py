import math

import pytest
import torch

from medgen.losses.adversarial import ADVERSARIAL

ANSWERS = {  # of real logits 2 and 0 against fake logits -3 and 1
    "hinge": ((0 + 1) / 2 + (0 + 2) / 2) / 2,
    "logistic": ((math.log1p(math.exp(-2)) + math.log(2)) / 2 + (math.log1p(math.exp(-3)) + math.log1p(math.e)) / 2)
    / 2,
    "least_squares": ((1 + 1) / 2 + (9 + 1) / 2) / 2,
    "wasserstein": ((-3 + 1) / 2 - (2 + 0) / 2) / 2,
    "exponential": ((math.exp(-2) + 1) / 2 + (math.exp(-3) + math.e) / 2) / 2,
}


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_discriminator_loss_equals_the_formula(kind: str) -> None:
    loss = ADVERSARIAL[kind].discriminator(torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0]))
    assert loss.item() == pytest.approx(ANSWERS[kind], rel=1e-6)


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_discriminator_is_rewarded_for_telling_real_from_fake(kind: str) -> None:
    real, fake = torch.full((4, 1, 3, 3), 1.0), torch.full((4, 1, 3, 3), -0.5)
    discriminator = ADVERSARIAL[kind].discriminator
    assert discriminator(real, fake) < discriminator(fake, real)


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_generator_is_rewarded_for_logits_that_look_real(kind: str) -> None:
    logits = torch.tensor([-1.0, 0.0, 0.9], requires_grad=True)
    loss = ADVERSARIAL[kind].generator(logits)
    assert loss.shape == logits.shape
    loss.sum().backward()
    assert logits.grad is not None
    assert (logits.grad < 0).all()


def test_hinge_stops_pushing_logits_that_are_clear_enough() -> None:
    real, fake = torch.tensor([1.5], requires_grad=True), torch.tensor([-1.5], requires_grad=True)
    ADVERSARIAL["hinge"].discriminator(real, fake).backward()
    assert real.grad == 0
    assert fake.grad == 0
