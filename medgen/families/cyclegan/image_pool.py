"""A memory of generated images, so that a discriminator does not forget what earlier generators did."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ImagePool(nn.Module):
    """Generated images of now and earlier, mixed.

    While the pool fills, images pass through and are remembered. Then each of them has an even chance of being swapped
    for one of the pool, which it replaces there. What is remembered is part of the state dict and the chances come from
    torch's global random state on the CPU, so that training resumes where it stopped. Each process has its own pool.

    Args:
        shape: Channels, height and width of the images.
        size: How many are remembered; 0 lets all pass.

    Raises:
        ValueError: If the size is negative.

    Source: Shrivastava et al. 2017, "Learning from simulated and unsupervised images through adversarial training",
    section 2.3; one image at a time, and of 50, as in Zhu et al. 2017, section 4.
    """

    images: Tensor
    filled: Tensor

    def __init__(self, shape: tuple[int, int, int], size: int = 50) -> None:
        super().__init__()
        if size < 0:
            raise ValueError(f"size is {size}; use at least 0")
        self.register_buffer("images", torch.zeros(size, *shape))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """As many images, (B, C, H, W) without gradients, of those given and those remembered.

        The random numbers it takes depend on the number of images alone.

        Raises:
            ValueError: If the images have another shape than the pool's.
        """
        size = len(self.images)
        if images.shape[1:] != self.images.shape[1:]:
            raise ValueError(
                f"images have shape {tuple(images.shape[1:])}; this pool was made for {tuple(self.images.shape[1:])}"
            )
        swapped = (torch.rand(len(images)) < 0.5).tolist()
        slots = torch.randint(max(size, 1), (len(images),)).tolist()
        if not size:
            return images.detach()
        filled = int(self.filled)
        chosen = []
        for image, swap, slot in zip(images, swapped, slots, strict=True):
            if filled < size:
                self.images[filled] = image
                filled += 1
                chosen.append(image)
            elif swap:
                chosen.append(self.images[slot].to(image.dtype, copy=True))
                self.images[slot] = image
            else:
                chosen.append(image)
        self.filled.fill_(filled)
        return torch.stack(chosen)
