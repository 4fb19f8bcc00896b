"""A variational autoencoder of label maps, to draw new anatomies and to move and blend known ones."""

from __future__ import annotations

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class LabelMapVAE(nn.Module):
    """Encodes label maps as normal distributions of short codes, and codes as label maps.

    Layers have `width` channels at full resolution and twice as many at each lower one, down to 4 pixels, at most
    `max_width`.

    Source: Kingma and Welling 2014, "Auto-encoding variational Bayes"; of cardiac label maps: Amirrajab et al. 2022,
    "Pathology synthesis of 3D-consistent cardiac MR images using 2D VAEs and GANs".
    """

    def __init__(
        self, num_classes: int, image_size: tuple[int, int], code_dim: int, width: int = 16, max_width: int = 128
    ) -> None:
        super().__init__()
        for name, value, least in (("num_classes", num_classes, 2), ("code_dim", code_dim, 1), ("width", width, 1)):
            if value < least:
                raise ValueError(f"{name} of the label maps is {value}; use at least {least}")
        self.num_classes = num_classes
        size, widths = image_size, [min(width, max_width)]
        while all(side % 2 == 0 and side >= 8 for side in size):
            size = (size[0] // 2, size[1] // 2)
            widths.append(min(widths[-1] * 2, max_width))
        self.inner = (widths[-1], *size)
        features = math.prod(self.inner)
        self.down = nn.Sequential(
            _layer(num_classes, widths[0]),
            *(_layer(a, b, stride=2) for a, b in pairwise(widths)),
        )
        self.to_moments = nn.Linear(features, 2 * code_dim)
        self.from_code = nn.Linear(code_dim, features)
        steps: list[nn.Module] = []
        for a, b in pairwise(reversed(widths)):
            steps += [nn.Upsample(scale_factor=2.0), _layer(a, b)]
        self.up = nn.Sequential(*steps)
        self.out = nn.Conv2d(widths[0], num_classes, 3, padding=1)

    def encode(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Encode label maps (B, H, W) as mean and log-variance (B, code_dim) of their codes."""
        x = F.one_hot(masks, self.num_classes).movedim(-1, 1).to(self.out.weight.dtype)
        mean, log_variance = self.to_moments(self.down(x).flatten(1)).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (B, code_dim) to logits of the classes (B, K, H, W)."""
        logits: Tensor = self.out(self.up(self.from_code(codes).unflatten(1, self.inner)))
        return logits

    def draw(self, codes: Tensor) -> Tensor:
        """Decode codes (B, code_dim) to the most likely label maps (B, H, W), int64."""
        return self.decode(codes).argmax(1)


def _layer(channels: int, width: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), nn.GroupNorm(_groups(width), width), nn.SiLU()
    )


def _groups(width: int) -> int:
    """Largest number of groups, up to 8, that divides the channels."""
    return next(groups for groups in (8, 4, 2, 1) if width % groups == 0)
