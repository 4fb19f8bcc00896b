"""Projection of real images: the styles from which a generator draws them most closely."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from tqdm import tqdm

from medgen.families.stylegan2.generator import StyledGenerator
from medgen.images import check_images
from medgen.labels import Label
from medgen.losses.perceptual import FeaturePerceptualLoss
from medgen.losses.ssim import ssim
from medgen.nn.modes import evaluating
from medgen.noise import NoiseSource, whole_number

Distance = Callable[[Tensor, Tensor], Tensor]
"""Maps two batches of images (B, C, H, W) in [-1, 1] to one distance per image, (B,)."""

_SPREAD_DRAWS = 256
"""Number of styles whose mean distance from the average one is the unit of noise."""
_RISE, _FALL, _NOISY = 0.05, 0.25, 0.75
"""Shares of the steps in which the learning rate rises, in which it falls, and in which there is noise."""


@dataclass(frozen=True)
class Projection:
    """Styles of real images, (B, num_ws, w_dim), their reconstructions, and errors of each image, (B,).

    Attributes:
        reconstructions: Images drawn from the styles, (B, C, H, W) in [0, 1].
        psnr: Peak signal-to-noise ratio in dB; infinite for an exact copy.
        ssim: Structural similarity; 1 for an exact copy.
    """

    styles: Tensor
    reconstructions: Tensor
    mse: Tensor
    psnr: Tensor
    ssim: Tensor


def project(
    generator: StyledGenerator,
    images: Tensor,
    label: Label = None,
    *,
    steps: int = 1000,
    lr: float = 0.1,
    perceptual: str | Distance = "efficientnet_lite1",
    perceptual_weight: float = 1.0,
    pixel_weight: float = 1.0,
    noise: float = 0.05,
    seed: int = 0,
    batch_size: int = 8,
    progress: bool = False,
) -> Projection:
    """Find styles from which the generator draws given images, one style for every layer.

    Gradient descent on the distance to the image starts at the average style of the label; fading noise on the styles
    leads past poor local minima. The noise of the layers is that stored with the weights and is not fitted, other than
    in the paper: it would hold what the generator cannot draw. Weights, modes and gradients of the generator stay as
    they are.

    Args:
        generator: The generator.
        images: Real images, (B, C, H, W) in [0, 1], of the generator's size.
        label: Their labels, see `Generator.sample`; they set where the search begins.
        steps: Steps of Adam.
        lr: Its largest learning rate.
        perceptual: Network of `FeaturePerceptualLoss`, or a distance function. The default one is installed with the
            extras ``train`` and ``eval`` and works offline.
        perceptual_weight: Weight of this distance; 0 leaves it out, and its network is not loaded.
        pixel_weight: Weight of the mean square error of images in [-1, 1].
        noise: Standard deviation of the noise on styles at the start, by their mean distance from the average.
        seed: Seed of this noise.
        batch_size: Images projected together; changes memory and speed, not the result.
        progress: Whether to show a progress bar.

    Returns:
        Styles, reconstructions and their errors, on the CPU.

    Raises:
        ValueError: If images are not of the generator's size or range, or an argument is out of range.
        ImportError: If the weights of the default network are not installed.

    Source: Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN", appendix D, whose schedules
    these are; one style for every layer: Abdal et al. 2019, "Image2StyleGAN", section 3.
    """
    _check(generator, images, steps, lr, perceptual_weight, pixel_weight, noise, batch_size)
    device = generator.device
    with (
        torch.inference_mode(False),  # gradients are needed whatever the caller does
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        evaluating(generator),
        tqdm(total=steps * math.ceil(len(images) / batch_size), unit="step", disable=not progress) as bar,
    ):
        images = images.detach().clone().to(device, torch.float32)
        distances: list[tuple[float, Distance]] = [(pixel_weight, _pixel_distance)]
        if perceptual_weight > 0:
            found = FeaturePerceptualLoss(perceptual).to(device) if isinstance(perceptual, str) else perceptual
            distances.append((perceptual_weight, found))
        starts = generator.styles(len(images), label, truncation_psi=0.0)
        scale = noise * _spread(generator, label, starts)[:, None, None]
        parts = []
        for first in range(0, len(images), batch_size):
            part = slice(first, first + batch_size)
            source = NoiseSource(seed, range(len(images))[part], device)
            parts.append(_search(generator, images[part], starts[part], scale[part], distances, steps, lr, source, bar))
    styles, images = torch.cat(parts), images.cpu()
    copies = torch.cat([generator.synthesize(part).cpu() for part in styles.split(batch_size)])
    mse = (copies - images).square().mean((1, 2, 3))
    return Projection(styles.cpu(), copies, mse, psnr=-10 * mse.log10(), ssim=ssim(copies, images))


def _check(
    generator: StyledGenerator,
    images: Tensor,
    steps: int,
    lr: float,
    perceptual_weight: float,
    pixel_weight: float,
    noise: float,
    batch_size: int,
) -> None:
    check_images(images, channels=generator.config.channels, size=generator.config.image_size)
    if not len(images):
        raise ValueError("there are no images; give at least one")
    for name, count in (("steps", steps), ("batch_size", batch_size)):
        if whole_number(name, count) < 1:
            raise ValueError(f"{name} is {count}; use at least 1")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr is {lr}; use a number above 0, such as 0.1")
    weights = {"perceptual_weight": perceptual_weight, "pixel_weight": pixel_weight, "noise": noise}
    for name, value in weights.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; use 0 or more")
    if perceptual_weight == pixel_weight == 0:
        raise ValueError("perceptual_weight and pixel_weight are 0; one of them must say how near an image is")


def _pixel_distance(prediction: Tensor, target: Tensor) -> Tensor:
    return mse_loss(prediction, target, reduction="none").mean((1, 2, 3))


def _spread(generator: StyledGenerator, label: Label, means: Tensor) -> Tensor:
    """Root mean square distance of styles from the average, for the label of each image, (B,)."""
    condition = generator.label_space.resolve(label, len(means))
    if condition is None:
        kinds: list[Tensor | None] = [None]
        which = torch.zeros(len(means), dtype=torch.int64)
    else:
        distinct, which = condition.unique(dim=0, return_inverse=True)
        kinds = [kind.expand(_SPREAD_DRAWS, *kind.shape) for kind in distinct]
    found = []
    for number, kind in enumerate(kinds):
        draws = generator.styles(_SPREAD_DRAWS, kind)[:, 0]
        mean = means[which.tolist().index(number), 0]
        found.append((draws - mean).square().sum(1).mean().sqrt())
    return torch.stack(found)[which.to(means.device)]


def _search(
    generator: StyledGenerator,
    images: Tensor,
    start: Tensor,
    scale: Tensor,
    distances: list[tuple[float, Distance]],
    steps: int,
    lr: float,
    source: NoiseSource,
    bar: tqdm[None],
) -> Tensor:
    """Optimise the styles (B, num_ws, w_dim) of a batch; losses are summed, so that images are independent."""
    styles = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([styles], lr=lr)
    target = images * 2 - 1
    for step in range(steps):
        time = (step + 0.5) / steps  # of each step its middle, so that even a single one moves
        optimizer.param_groups[0]["lr"] = lr * _pace(time)
        strength = max(0.0, 1 - time / _NOISY) ** 2
        found = generator.draw(styles + strength * scale * source.normal(*styles.shape[1:]))
        loss = sum((weight * distance(found, target).sum() for weight, distance in distances), torch.zeros(()))
        (styles.grad,) = torch.autograd.grad(loss, [styles])  # the weights' own gradients stay as they are
        optimizer.step()
        bar.update()
    return styles.detach()


def _pace(time: float) -> float:
    """Learning rate by its largest, at a time from 0 to 1: a linear rise and a cosine fall."""
    left = min(1.0, (1 - time) / _FALL)
    return min(1.0, time / _RISE) * (0.5 - 0.5 * math.cos(math.pi * left))
