"""Reconstruction and adversarial losses of autoencoders with outputs at several scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from medgen.losses.adversarial import ADVERSARIAL, AdversarialKind
from medgen.losses.ssim import ssim

PixelLoss = Literal["l1", "mse"]
Reduction = Literal["sum", "mean"]
Downscaling = Literal["nearest-exact", "area"]

_PIXEL: Mapping[PixelLoss, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda x, y: (x - y).abs(),
    "mse": lambda x, y: (x - y).square(),
}


class Loss(NamedTuple):
    """A scalar to minimise, and detached scalars to log."""

    total: Tensor
    terms: dict[str, Tensor]


class AutoencoderLoss(nn.Module):
    """Pixel, perceptual, structural and adversarial loss of the outputs at all scales.

    The two published reductions differ in more than a factor:

    * ``sum`` (KL autoencoder) sums over channels and pixels, averages over the batch, and adds the scales. Perceptual
      and structural loss are one number per image, added to every channel and pixel.
    * ``mean`` (VQ autoencoder) averages over everything, and over the scales with weights 1, 1/2, 1/4 ...

    Args:
        pixel: Absolute or squared difference.
        perceptual: Distance of images in [-1, 1], one value per image, such as `FeaturePerceptualLoss`, or None.
        perceptual_weight: Weight of the perceptual distance.
        ssim_weight: Weight of one minus the structural similarity.
        adversarial: Kind of adversarial loss.
        adversarial_weight: Weight of the decoder's adversarial loss, times `adaptive_weight`.
        reduction: See above.
        downscaling: Resizing of the target to lower scales for the reconstruction: ``nearest-exact`` as published for
            training without discriminators, ``area`` as published with them. Discriminators always see the area mean.

    Raises:
        ValueError: If an option is unknown.

    Source: Mueller-Franzes et al. 2023, "A multimodal comparison of latent denoising diffusion probabilistic models and
    generative adversarial networks for medical image synthesis"; Esser et al. 2021, "Taming transformers", for the
    adversarial part.
    """

    def __init__(
        self,
        *,
        pixel: PixelLoss = "l1",
        perceptual: nn.Module | None = None,
        perceptual_weight: float = 1.0,
        ssim_weight: float = 1.0,
        adversarial: AdversarialKind = "hinge",
        adversarial_weight: float = 1.0,
        reduction: Reduction = "sum",
        downscaling: Downscaling = "nearest-exact",
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("pixel", pixel, PixelLoss),
            ("adversarial", adversarial, AdversarialKind),
            ("reduction", reduction, Reduction),
            ("downscaling", downscaling, Downscaling),
        ):
            if value not in get_args(choices):
                raise ValueError(f"{name} is {value!r}; use one of {', '.join(map(repr, get_args(choices)))}")
        self.pixel: PixelLoss = pixel
        self.perceptual, self.perceptual_weight, self.ssim_weight = perceptual, perceptual_weight, ssim_weight
        self.adversarial: AdversarialKind = adversarial
        self.adversarial_weight = adversarial_weight
        self.reduction: Reduction = reduction
        self.downscaling: Downscaling = downscaling

    def forward(
        self,
        outputs: Sequence[Tensor],
        target: Tensor,
        discriminators: Sequence[nn.Module] | nn.ModuleList = (),
        last_layers: Sequence[Tensor] = (),
    ) -> Loss:
        """Loss of the autoencoder, without that of its latent.

        Args:
            outputs: Reconstructions in [-1, 1], (B, C, ...), full resolution first.
            target: Images, (B, C, ...) in [-1, 1], at full resolution.
            discriminators: One for each output, or none.
            last_layers: Weight of the last layer of each output, for `adaptive_weight`; needed with discriminators.

        Returns:
            The total; terms ``pixel``, ``perceptual`` and ``ssim`` (mean similarity) at full resolution,
            ``reconstruction`` over all scales and, with discriminators, ``adversarial_<scale>`` and
            ``adaptive_weight_<scale>``.
        """
        outputs = [output.float() for output in outputs]
        targets = _pyramid(target, outputs, self.downscaling)
        reconstructions: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        for output, image in zip(outputs, targets, strict=True):
            reconstruction, parts = self._similarity(output, image)
            reconstructions.append(reconstruction)
            terms = terms or parts
        total = self._over_scales(reconstructions)
        terms["reconstruction"] = total.detach()
        if not len(discriminators):
            return Loss(total, terms)

        adversarial = []
        for scale, discriminator in enumerate(discriminators):
            logits = ADVERSARIAL[self.adversarial].generator(discriminator(outputs[scale]).float())
            loss = logits.sum() if self.reduction == "sum" else logits.mean()
            weight = adaptive_weight(reconstructions[scale], loss, last_layers[scale])
            adversarial.append(self.adversarial_weight * weight * loss)
            terms |= {f"adversarial_{scale}": adversarial[-1].detach(), f"adaptive_weight_{scale}": weight}
        return Loss(total + self._over_scales(adversarial), terms)

    def discriminator_loss(
        self, outputs: Sequence[Tensor], target: Tensor, discriminators: Sequence[nn.Module] | nn.ModuleList
    ) -> Loss:
        """Loss of the discriminators, one for each output; arguments are those of `forward`.

        Returns:
            The total; terms ``discriminator_<scale>``, and the mean logits ``logits_real`` and ``logits_fake`` of the
            full-resolution discriminator.
        """
        losses: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        targets = _pyramid(target, outputs, "area")
        for discriminator, output, image in zip(discriminators, outputs, targets, strict=True):
            real, fake = discriminator(image).float(), discriminator(output.detach()).float()
            loss = ADVERSARIAL[self.adversarial].discriminator(real, fake)
            terms = terms or {"logits_real": real.detach().mean(), "logits_fake": fake.detach().mean()}
            terms[f"discriminator_{len(losses)}"] = loss.detach()
            losses.append(loss)
        return Loss(self._over_scales(losses), terms)

    def _similarity(self, output: Tensor, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction loss of one scale, a scalar, and its parts."""
        pixel = _PIXEL[self.pixel](output, image)
        similarity = ssim(((output + 1) / 2).clamp(0, 1), (image + 1) / 2, nonnegative=True)
        per_image = self.ssim_weight * (1 - similarity)
        parts = {"pixel": pixel.detach().mean(), "ssim": similarity.detach().mean()}
        if self.perceptual is not None:
            perceptual = self.perceptual(output, image)
            per_image = per_image + self.perceptual_weight * perceptual
            parts["perceptual"] = perceptual.detach().mean()
        loss = pixel + per_image.reshape(-1, *[1] * (pixel.dim() - 1))
        return (loss.sum() / len(loss) if self.reduction == "sum" else loss.mean()), parts

    def _over_scales(self, losses: Sequence[Tensor]) -> Tensor:
        if self.reduction == "sum":
            return torch.stack(list(losses)).sum()
        weights = [0.5**scale for scale in range(len(losses))]
        return torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).sum() / sum(weights)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Ratio of the gradient norms of both scalar losses at the last layer's weight: from 0 to 10,000, detached.

    Source: Esser et al. 2021, "Taming transformers for high-resolution image synthesis", eq. 7.
    """
    (of_reconstruction,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (of_adversarial,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    weight: Tensor = of_reconstruction.norm() / (of_adversarial.norm() + 1e-4)
    return weight.clamp(0, 1e4).detach()


def _pyramid(target: Tensor, outputs: Sequence[Tensor], downscaling: Downscaling) -> list[Tensor]:
    """Target at the size of every output."""
    return [
        target if target.shape[2:] == output.shape[2:] else interpolate(target, size=output.shape[2:], mode=downscaling)
        for output in outputs
    ]
