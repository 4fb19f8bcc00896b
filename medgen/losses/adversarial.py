"""What discriminator and generator of a GAN minimise, as functions of the discriminator's logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from torch import Tensor
from torch.nn.functional import relu, softplus

AdversarialKind = Literal["hinge", "logistic", "least_squares", "exponential", "wasserstein"]


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Zero once real logits exceed 1 and fake ones fall below -1. Lim and Ye 2017, "Geometric GAN", eq. 11."""
    return (relu(1 - real).mean() + relu(1 + fake).mean()) / 2


def hinge_generator(fake: Tensor) -> Tensor:
    """The negated logits of fake images, in the shape of ``fake``. Lim and Ye 2017, "Geometric GAN", eq. 12."""
    return -fake


def logistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Binary cross-entropy of real and fake logits. Goodfellow et al. 2014, "Generative adversarial nets", eq. 1."""
    return (softplus(-real).mean() + softplus(fake).mean()) / 2


def logistic_generator(fake: Tensor) -> Tensor:
    """Cross-entropy of fake logits taken for real ones ("non-saturating"), in the shape of ``fake``."""
    return softplus(-fake)


def least_squares_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Squared distance of real logits to 1 and of fake ones to 0. Mao et al. 2017, "Least squares GAN", eq. 9."""
    return ((real - 1).square().mean() + fake.square().mean()) / 2


def least_squares_generator(fake: Tensor) -> Tensor:
    """Squared distance of fake logits to 1, halved, in the shape of ``fake``. Mao et al. 2017, eq. 9."""
    return (fake - 1).square() / 2


def exponential_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Exponential (boosting) loss of real and fake logits."""
    return ((-real).exp().mean() + fake.exp().mean()) / 2


def exponential_generator(fake: Tensor) -> Tensor:
    """Exponential loss of fake logits taken for real ones, in the shape of ``fake``."""
    return (-fake).exp()


def wasserstein_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Half of what fake logits exceed real ones by. Arjovsky et al. 2017, "Wasserstein GAN", eq. 2, negated."""
    return (fake.mean() - real.mean()) / 2


def wasserstein_generator(fake: Tensor) -> Tensor:
    """The negated logits of fake images, in the shape of ``fake``. Arjovsky et al. 2017, algorithm 1."""
    return -fake


class AdversarialLoss(NamedTuple):
    """The two sides of one game.

    Attributes:
        discriminator: Called as ``discriminator(real, fake)`` with logits of any shape; gives a scalar.
        generator: Called as ``generator(fake)``; gives one value per logit, to be averaged or summed.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


ADVERSARIAL: Mapping[AdversarialKind, AdversarialLoss] = {
    "hinge": AdversarialLoss(hinge_discriminator, hinge_generator),
    "logistic": AdversarialLoss(logistic_discriminator, logistic_generator),
    "least_squares": AdversarialLoss(least_squares_discriminator, least_squares_generator),
    "exponential": AdversarialLoss(exponential_discriminator, exponential_generator),
    "wasserstein": AdversarialLoss(wasserstein_discriminator, wasserstein_generator),
}
