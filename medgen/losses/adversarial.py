"""Adversarial losses as functions of the discriminator's logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from torch import Tensor
from torch.nn.functional import relu, softplus

AdversarialKind = Literal["hinge", "logistic", "least_squares", "exponential", "wasserstein"]


class AdversarialLoss(NamedTuple):
    """Losses of discriminator and generator.

    Attributes:
        of_real: Discriminator loss of each logit of a real image.
        of_fake: Discriminator loss of each logit of a generated image.
        generator: Generator loss of each logit of a generated image.
    """

    of_real: Callable[[Tensor], Tensor]
    of_fake: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Mean of the losses of real and fake logits of any shape, a scalar."""
        return (self.of_real(real).mean() + self.of_fake(fake).mean()) / 2


ADVERSARIAL: Mapping[AdversarialKind, AdversarialLoss] = {
    # Lim and Ye 2017, "Geometric GAN", eq. 11 and 12
    "hinge": AdversarialLoss(lambda real: relu(1 - real), lambda fake: relu(1 + fake), lambda fake: -fake),
    # Goodfellow et al. 2014, "Generative adversarial nets", eq. 1, with the non-saturating generator loss
    "logistic": AdversarialLoss(lambda real: softplus(-real), softplus, lambda fake: softplus(-fake)),
    # Mao et al. 2017, "Least squares generative adversarial networks", eq. 9
    "least_squares": AdversarialLoss(
        lambda real: (real - 1).square(), lambda fake: fake.square(), lambda fake: (fake - 1).square() / 2
    ),
    # the loss of boosting
    "exponential": AdversarialLoss(lambda real: (-real).exp(), lambda fake: fake.exp(), lambda fake: (-fake).exp()),
    # Arjovsky et al. 2017, "Wasserstein GAN", eq. 2 and algorithm 1
    "wasserstein": AdversarialLoss(lambda real: -real, lambda fake: fake, lambda fake: -fake),
}
logistic_discriminator, logistic_generator = ADVERSARIAL["logistic"].discriminator, ADVERSARIAL["logistic"].generator
