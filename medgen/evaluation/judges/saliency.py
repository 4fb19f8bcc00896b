"""Grad-CAM saliency of classifiers, averaged over a class, and images with parts hidden."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from medgen.evaluation.judges.classifier import ClassifierModule, LabelledImages
from medgen.evaluation.sets import known_and_positive

Box = tuple[float, float, float, float]

_LEAST_SIDE = 4
"""Smallest side of feature maps that still localise, for small images."""


def grad_cam(classifier: ClassifierModule, images: Tensor, k: int) -> Tensor:
    """Maps (B, H, W) in [0, 1] of the evidence for class or finding `k` in images (B, C, H, W) in [0, 1].

    Each map is divided by its largest value; a map without positive evidence is 0.

    Raises:
        ValueError: If the network has no feature maps.

    Source: Selvaraju et al. 2017, "Grad-CAM: visual explanations from deep networks via gradient-based localization",
    eq. 1 and 2.
    """
    classifier.eval()
    kept: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept.append(output)

    side = min(classifier.recipe.size or images.shape[-2:])
    handle = _last_maps(classifier.network, side).register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = classifier(images.detach().requires_grad_())
            (maps,) = kept[-1:]
            if maps.dim() != 4:
                raise ValueError(
                    f"{classifier.recipe.network} has no feature maps; Grad-CAM needs a convolutional network"
                )
            (gradient,) = torch.autograd.grad(logits[:, k].sum(), maps)
    finally:
        handle.remove()
    cam = F.relu((gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True))
    cam = F.interpolate(cam.detach(), size=images.shape[-2:], mode="bilinear")[:, 0]
    return cam / cam.amax((1, 2), keepdim=True).clamp(min=1e-12)


def _last_maps(network: torch.nn.Module, side: int) -> torch.nn.Module:
    """Last module of a timm network whose feature maps are at least `_LEAST_SIDE` wide for images of this side."""
    levels = cast("Sequence[Mapping[str, Any]]", network.feature_info)
    fine = [level for level in levels if side / level["reduction"] >= _LEAST_SIDE]
    return network.get_submodule(str((fine or levels[:1])[-1]["module"]))


def mean_saliency(classifier: ClassifierModule, data: LabelledImages, k: int, *, batch_size: int = 32) -> Tensor:
    """Grad-CAM (H, W) averaged over the images that show class or finding `k`.

    Raises:
        ValueError: If no image shows it.
    """
    _, positive = known_and_positive(data.labels[data.rows], k)
    rows = positive.nonzero()[:, 0].tolist()
    if not rows:
        raise ValueError(f"no image shows {classifier.label_space.names[k]}")
    total = torch.zeros(())
    for start in range(0, len(rows), batch_size):
        images, _ = data.read(rows[start : start + batch_size])
        total = total + grad_cam(classifier, images.to(classifier.device), k).sum(0).cpu()
    return total / len(rows)


def border_share(saliency: Tensor, *, fraction: float = 0.15) -> float:
    """Share of the saliency (H, W) in the outer `fraction` on each side, the place of markers and letters."""
    height, width = saliency.shape
    return float(saliency[borders(height, width, fraction=fraction)].sum() / saliency.sum().clamp(min=1e-12))


def borders(height: int, width: int, *, fraction: float = 0.15) -> Tensor:
    """Pixels in the outer `fraction` on each side, (H, W) bool."""
    top, left = round(fraction * height), round(fraction * width)
    covered = torch.ones(height, width, dtype=torch.bool)
    covered[top : height - top, left : width - left] = False
    return covered


def without_borders(images: Tensor, *, fraction: float = 0.15) -> Tensor:
    """Set the outer `fraction` on each side of images (B, C, H, W) to the mean grey of the rest.

    Source: "The beauty or the beast: which aspect of synthetic medical images deserves our focus?" cut burned-in
    letters away and measured utility again.
    """
    return _covered(images, borders(*images.shape[-2:], fraction=fraction))


def without_boxes(images: Tensor, boxes: Sequence[Box]) -> Tensor:
    """Set boxes of images (B, C, H, W) to the mean grey of the rest.

    Boxes are left, top, right and bottom, as shares of width and height.

    Raises:
        ValueError: If a box is empty or outside the image, or nothing is left.
    """
    height, width = images.shape[-2:]
    covered = torch.zeros(height, width, dtype=torch.bool)
    for left, top, right, bottom in checked_boxes(boxes):
        rows = slice(math.floor(top * height), math.ceil(bottom * height))
        covered[rows, math.floor(left * width) : math.ceil(right * width)] = True
    return _covered(images, covered)


def checked_boxes(boxes: Sequence[Box]) -> Sequence[Box]:
    """Return the boxes, or refuse those that are empty or outside the image; see `without_boxes`."""
    for box in boxes:
        left, top, right, bottom = box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(
                f"box {tuple(box)} is not left < right, top < bottom within [0, 1]; give shares of width and height"
            )
    return boxes


def _covered(images: Tensor, covered: Tensor) -> Tensor:
    if bool(covered.all()):
        raise ValueError("nothing is left of the images; hide less of them")
    grey = images[..., ~covered].mean(-1)[..., None, None]
    return torch.where(covered, grey, images)


def saliency_picture(image: Tensor, saliency: Tensor) -> Tensor:
    """Saliency (H, W) as a red overlay on the grey image (C, H, W): (3, H, W) in [0, 1]."""
    grey = image.mean(0, keepdim=True).expand(3, -1, -1)
    heat = (saliency / saliency.max().clamp(min=1e-12))[None]
    red = torch.tensor([1.0, 0.15, 0.1])[:, None, None]
    return grey * (1 - 0.6 * heat) + 0.6 * heat * red
