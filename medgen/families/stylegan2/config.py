"""Configs of the families whose images are made from styles, and that of StyleGAN2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from medgen.generator import GeneratorConfig
from medgen.nn.label_vector import label_vector_length


@dataclass(frozen=True, kw_only=True)
class StyledConfig(GeneratorConfig):
    """Fields of every family with a mapping network and styles.

    Attributes:
        image_size: Height and width.
        channels: Channels of the images.
        needs_label: Whether the model was trained with labels only, as the published ones; it refuses to draw without.
        z_dim: Length of the random vector.
        w_dim: Length of a style vector.
        mapping_layers: Layers of the mapping network.
        channel_max: Largest width.
        clamp: Largest absolute value of activations, which keeps half precision in range; None for any.
    """

    image_size: tuple[int, int] = (256, 256)
    channels: int = 3
    needs_label: bool = False
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    channel_base: int
    channel_max: int = 512
    clamp: float | None = 256.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("z_dim", "w_dim", "mapping_layers", "channel_base", "channel_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use at least 1")
        if self.clamp is not None and not self.clamp > 0:
            raise ValueError(f"clamp is {self.clamp}; use a number above 0, or None for no limit")

    @property
    def label_dim(self) -> int:
        """Length of the label vector, see `label_vector`; 0 without labels."""
        return label_vector_length(self.label_space)

    @property
    def num_ws(self) -> int:
        """Number of style vectors of an image: one for each layer."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class StyleGAN2Config(StyledConfig):
    """Sizes of the networks; the defaults are those of the published ``paper256``.

    Attributes:
        image_size: Height and width, both `base` times the same power of two.
        base: Height and width at which synthesis starts; None for the smallest from 4 on that the image size is a power
            of two of.
        mapping_layers: Layers of the mapping network; 2 in the published ``auto``.
        channel_base: Width times image size, of each resolution; 32768 in the published ``paper512``.

    Source: Karras et al. 2020, "Training generative adversarial networks with limited data".
    """

    base: tuple[int, int] | None = None
    channel_base: int = 16384

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base is not None and (len(self.base) != 2 or min(self.base) < 1):
            raise ValueError(f"base is {self.base}; expected (height, width) in pixels, or None for the smallest")
        height, width = self.size(self.num_upsamplings)
        if self.image_size != (height, width):
            raise ValueError(
                f"image_size is {self.image_size}; both sides must be those of base, {self.base}, times the same power "
                "of two"
            )

    @property
    def num_upsamplings(self) -> int:
        """Number of times that the base is doubled in size."""
        return max(self.image_size[0] // self.size(0)[0], 1).bit_length() - 1

    def size(self, level: int) -> tuple[int, int]:
        """Height and width after so many upsamplings of the base."""
        height, width = smallest_base(self.image_size) if self.base is None else self.base
        return height << level, width << level

    def width(self, level: int) -> int:
        """Channels after so many upsamplings of the base."""
        return min(self.channel_base // (4 << level), self.channel_max)

    @property
    def num_ws(self) -> int:
        """Number of style vectors of an image: two for each resolution."""
        return 2 * (self.num_upsamplings + 1)

    @classmethod
    def tiny(cls) -> Self:
        """16 px, 8 to 16 channels."""
        return cls(
            image_size=(16, 16),
            channels=1,
            label_kind="single",
            label_names=("no finding", "finding"),
            z_dim=16,
            w_dim=16,
            mapping_layers=2,
            channel_base=128,
            channel_max=16,
        )


# Training checkpoints of medgen 0.1 hold it under this name.
torch.serialization.add_safe_globals([(StyleGAN2Config, "medgen.families.stylegan2.generator.StyleGAN2Config")])


def smallest_base(image_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which synthesis of such images starts, none below 4.

    Raises:
        ValueError: If both sides of it were 8 or more, as for 250 x 250, where resolutions would be missing.
    """
    height, width = image_size
    while height % 2 == width % 2 == 0 and min(height, width) >= 8:
        height, width = height // 2, width // 2
    if not 4 <= min(height, width) < 8:
        raise ValueError(
            f"image_size is {image_size}; halved as often as can be it is {(height, width)}. Use sides of which one is "
            "4 to 7 times a power of two, and the other divisible by as many, such as 224, 256 or 320; or state base"
        )
    return height, width
