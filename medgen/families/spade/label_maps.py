"""A variational autoencoder of label maps: new anatomies, and known ones as codes that can be moved and blended."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class LabelMapShape:
    """Sizes of a `LabelMapVAE`.

    Attributes:
        num_classes: Classes of the maps, the background among them.
        image_size: Height and width.
        width: Channels at full resolution; each of the lower ones has twice as many, at most `max_width`.
        max_width: Most channels.
        code_dim: Length of a code.
    """

    num_classes: int
    image_size: tuple[int, int]
    width: int = 16
    max_width: int = 128
    code_dim: int = 32

    def __post_init__(self) -> None:
        for name, least in (("num_classes", 2), ("width", 1), ("max_width", 1), ("code_dim", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} of the label maps is {getattr(self, name)}; use at least {least}")

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Heights and widths from full resolution on, each half of the one before, as long as 4 pixels are left."""
        sizes = [self.image_size]
        while all(side % 2 == 0 and side >= 8 for side in sizes[-1]):
            sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
        return tuple(sizes)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each of the sizes."""
        return tuple(min(self.width * 2**level, self.max_width) for level in range(len(self.sizes)))


class LabelMapVAE(nn.Module):
    """Encodes label maps as normal distributions of short codes, and codes as label maps.

    Args:
        shape: Sizes.

    Source: Kingma and Welling 2014, "Auto-encoding variational Bayes"; of cardiac label maps: Amirrajab et al. 2022,
    "Pathology synthesis of 3D-consistent cardiac MR images using 2D VAEs and GANs".
    """

    def __init__(self, shape: LabelMapShape) -> None:
        super().__init__()
        self.shape = shape
        widths, (height, width) = shape.widths, shape.sizes[-1]
        self.inner = (widths[-1], height, width)
        features = widths[-1] * height * width
        self.down = nn.Sequential(
            _layer(shape.num_classes, widths[0]),
            *(_layer(a, b, stride=2) for a, b in pairwise(widths)),
        )
        self.to_moments = nn.Linear(features, 2 * shape.code_dim)
        self.from_code = nn.Linear(shape.code_dim, features)
        steps: list[nn.Module] = []
        for a, b in pairwise(reversed(widths)):
            steps += [nn.Upsample(scale_factor=2.0), _layer(a, b)]
        self.up = nn.Sequential(*steps)
        self.out = nn.Conv2d(widths[0], shape.num_classes, 3, padding=1)

    def encode(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, code_dim) of the code of each label map (B, H, W)."""
        x = F.one_hot(masks, self.shape.num_classes).movedim(-1, 1).to(self.out.weight.dtype)
        mean, log_variance = self.to_moments(self.down(x).flatten(1)).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, codes: Tensor) -> Tensor:
        """Logits of the classes (B, K, H, W) of codes (B, code_dim)."""
        logits: Tensor = self.out(self.up(self.from_code(codes).unflatten(1, self.inner)))
        return logits

    def draw(self, codes: Tensor) -> Tensor:
        """The likeliest label maps (B, H, W), int64, of codes (B, code_dim)."""
        return self.decode(codes).argmax(1)


def _layer(channels: int, width: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), nn.GroupNorm(_groups(width), width), nn.SiLU()
    )


def _groups(width: int) -> int:
    """The most groups, up to 8, that divide the channels."""
    return next(groups for groups in (8, 4, 2, 1) if width % groups == 0)
