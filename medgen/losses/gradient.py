"""Gradient penalties of discriminators and generators."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Squared norm of the gradient of each image's logit, (B,).

    Args:
        logits: Logits of `images`, (B,).
        images: Real images (B, C, H, W) that require gradients.

    Source: Mescheder et al. 2018, "Which training methods for GANs do actually converge?", eq. 9.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3))


def path_lengths(images: Tensor, styles: Tensor, noise: Tensor) -> Tensor:
    """Norm of the gradient of each image, projected on a random direction, with respect to its styles, (B,).

    Args:
        images: Images generated from `styles`, (B, C, H, W).
        styles: Styles (B, layers, w_dim) that require gradients.
        noise: Random directions: standard normal, in the shape of the images.

    Source: Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN", eq. 4.
    """
    direction = noise / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * direction).sum(), styles, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()
