"""Penalties on gradients of networks: how fast a discriminator's logits and a generator's images change."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Squared length of the gradient of each image's logit, (B,).

    Args:
        logits: A discriminator's, (B,), of `images`.
        images: Real images (B, C, H, W) that require gradients.

    Source: Mescheder et al. 2018, "Which training methods for GANs do actually converge?", eq. 9.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3))


def path_lengths(images: Tensor, styles: Tensor, noise: Tensor) -> Tensor:
    """How far each image moves in a random direction when its styles move, (B,).

    Args:
        images: A generator's, (B, C, H, W), of `styles`.
        styles: (B, layers, w_dim) that require gradients.
        noise: The directions: standard normal, in the shape of the images.

    Source: Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN", eq. 4.
    """
    direction = noise / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * direction).sum(), styles, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()
