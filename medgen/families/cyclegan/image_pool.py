"""A memory of images of earlier generators, for training a discriminator."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ImagePool(nn.Module):
    """Mixes new generated images with earlier ones.

    While the pool fills, it stores and returns the new images. Then each new image is swapped, with probability 1/2,
    for a random one of the pool. The images are part of the state dict, and random numbers come from torch's global
    state on the CPU, so that training resumes exactly. Each process has its own pool.

    Args:
        shape: Channels, height and width of the images.
        size: Number of stored images; with 0 only new images are returned.

    Raises:
        ValueError: If the size is negative.

    Source: Shrivastava et al. 2017, "Learning from simulated and unsupervised images through adversarial training",
    section 2.3; with 50 images and one at a time as in Zhu et al. 2017, section 4.
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
        """Swap some of the images (B, C, H, W) for stored ones; results have no gradients.

        Raises:
            ValueError: If the images have another shape than the pool's.
        """
        size = len(self.images)
        if images.shape[1:] != self.images.shape[1:]:
            raise ValueError(
                f"images have shape {tuple(images.shape[1:])}; this pool was made for {tuple(self.images.shape[1:])}"
            )
        # The number of random draws depends only on the number of images.
        swapped = (torch.rand(len(images)) < 0.5).tolist()
        slots = torch.randint(max(size, 1), (len(images),)).tolist()
        if not size:
            return images.detach()
        filled = int(self.filled)
        chosen = []
        for image, swap, slot in zip(images, swapped, slots, strict=True):
            stored = None
            if filled < size:
                self.images[filled] = image
                filled += 1
            elif swap:
                stored = self.images[slot].to(image.dtype, copy=True)
                self.images[slot] = image
            chosen.append(image if stored is None else stored)
        self.filled.fill_(filled)
        return torch.stack(chosen)
