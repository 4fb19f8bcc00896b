"""The networks of StyleGAN2: mapping, synthesis and discriminator, for images of any size base x 2^n.

Source: Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN"; with labels as in Karras et al.
2020, "Training generative adversarial networks with limited data".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from medgen.nn.equalised import (
    GAIN,
    EqualisedConv,
    EqualisedLinear,
    MinibatchDeviation,
    activate,
    demodulation,
    modulated,
)
from medgen.nn.layout import training_layout
from medgen.nn.resampling import separable_filter, upsample


@dataclass(frozen=True, kw_only=True)
class StyleGAN2Shape:
    """Sizes of all networks; the defaults are those of the published ``paper256``.

    Attributes:
        image_size: Height and width, both `base` times the same power of two.
        base: Height and width at which synthesis starts.
        channels: Channels of the images.
        z_dim: Length of the random vector.
        w_dim: Length of the style vector.
        num_labels: Length of the label vector; 0 for none.
        mapping_layers: Layers of the mapping network.
        channel_base: Width times image size, of each resolution.
        channel_max: Largest width.
        clamp: Largest absolute value of activations; None for any.
    """

    image_size: tuple[int, int] = (256, 256)
    base: tuple[int, int] = (4, 4)
    channels: int = 3
    z_dim: int = 512
    w_dim: int = 512
    num_labels: int = 0
    mapping_layers: int = 8
    channel_base: int = 16384
    channel_max: int = 512
    clamp: float | None = 256.0

    @property
    def doublings(self) -> int:
        """How often the base is doubled.

        Raises:
            ValueError: If the image size is not the base times a power of two.
        """
        times = self.image_size[0] // self.base[0]
        found = max(times, 1).bit_length() - 1
        if self.image_size != (self.base[0] << found, self.base[1] << found):
            raise ValueError(
                f"image_size is {self.image_size}; both sides must be those of base, {self.base}, times the same power "
                "of two"
            )
        return found

    def width(self, level: int) -> int:
        """Channels after so many doublings of the base."""
        return min(self.channel_base // (4 << level), self.channel_max)

    @property
    def num_styles(self) -> int:
        """Layers that take a style vector: two for every resolution."""
        return 2 * (self.doublings + 1)


class Mapping(nn.Module):
    """From a random vector and a label to a style vector.

    Args:
        z_dim: Length of the random vector; 0 for none, as in the discriminator.
        label_dim: Length of the label vector; 0 for none.
        width: Length of the output and of all layers.
        layers: Number of layers.
    """

    def __init__(self, z_dim: int, label_dim: int, width: int, layers: int, rate: float = 0.01) -> None:
        super().__init__()
        self.embed = EqualisedLinear(label_dim, width) if label_dim else None
        first = z_dim + (width if label_dim else 0)
        self.layers = nn.Sequential(
            *(EqualisedLinear(width if i else first, width, rate=rate, active=True) for i in range(layers))
        )

    def forward(self, z: Tensor | None, label: Tensor | None) -> Tensor:
        """(B, width) of (B, z_dim) and (B, label_dim)."""
        parts = [] if z is None else [_unit(z.float())]
        if self.embed is not None and label is not None:
            parts.append(_unit(self.embed(label.float())))
        styles: Tensor = self.layers(torch.cat(parts, dim=1))
        return styles


def _unit(x: Tensor) -> Tensor:
    """Vectors whose numbers have a mean square of 1."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class StyledConv(nn.Module):
    """A convolution modulated by a style, with noise and a leaky ReLU.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        w_dim: Length of the style vector.
        size: Height and width of the output.
        doubles: Whether it has twice the size of the input.
        clamp: Largest absolute value of the output.
    """

    kernel: Tensor
    fixed_noise: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        size: tuple[int, int],
        *,
        doubles: bool,
        clamp: float | None,
    ) -> None:
        super().__init__()
        self.style = EqualisedLinear(w_dim, in_channels, bias_start=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.doubles, self.clamp = doubles, clamp
        self.register_buffer("fixed_noise", torch.randn(size))
        self.register_buffer("kernel", separable_filter(), persistent=False)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """(B, in, H, W) with styles (B, w_dim) and noise (B or 1, 1, H', W') or None to (B, out, H', W')."""
        weight = self.weight * (1 / math.sqrt(self.weight[0].numel()))
        styles = self.style(w)
        out = modulated(x, weight, styles, self.kernel, resampling="up" if self.doubles else "none")
        scale = (demodulation(weight, styles) * GAIN).to(out.dtype)[:, :, None, None]
        out = torch.addcmul((self.bias * GAIN).to(out.dtype)[:, None, None], out, scale)
        if noise is not None:
            out = out + (noise * (self.noise_strength * GAIN)).to(out.dtype)
        return activate(out, self.clamp)


class ToImage(nn.Module):
    """What a resolution adds to the image."""

    kernel: Tensor

    def __init__(self, in_channels: int, channels: int, w_dim: int, clamp: float | None) -> None:
        super().__init__()
        self.style = EqualisedLinear(w_dim, in_channels, bias_start=1.0)
        self.weight = nn.Parameter(torch.randn(channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.clamp = clamp
        self.register_buffer("kernel", separable_filter(), persistent=False)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(B, in, H, W) to (B, channels, H, W) float32."""
        styles = self.style(w) / math.sqrt(self.weight.shape[1])
        out = modulated(x, self.weight, styles, self.kernel).float() + self.bias[:, None, None]
        return out if self.clamp is None else out.clamp(-self.clamp, self.clamp)


class Synthesis(nn.Module):
    """From style vectors, one for each layer, to an image, which each resolution adds to."""

    kernel: Tensor

    def __init__(self, shape: StyleGAN2Shape) -> None:
        super().__init__()
        self.shape = shape
        levels = range(shape.doublings + 1)
        sizes = [(shape.base[0] << level, shape.base[1] << level) for level in levels]
        widths = [shape.width(level) for level in levels]
        self.start = nn.Parameter(torch.randn(widths[0], *shape.base))
        self.first = nn.ModuleList(  # to twice the size
            StyledConv(widths[i - 1], widths[i], shape.w_dim, sizes[i], doubles=True, clamp=shape.clamp)
            for i in levels[1:]
        )
        self.second = nn.ModuleList(
            StyledConv(widths[i], widths[i], shape.w_dim, sizes[i], doubles=False, clamp=shape.clamp) for i in levels
        )
        self.to_image = nn.ModuleList(ToImage(widths[i], shape.channels, shape.w_dim, shape.clamp) for i in levels)
        self.register_buffer("kernel", separable_filter(), persistent=False)

    def inference_form(self) -> nn.Module:
        """The same without gradients, with memory read less often."""
        from medgen.families.stylegan2.inference import FastSynthesis  # which is made of these networks

        return FastSynthesis(self)

    def forward(self, styles: Tensor, *noise: Tensor | None) -> Tensor:
        """Images (B, C, H, W), about [-1, 1], of styles (B, num_styles, w_dim) and the noise of each convolution.

        Args:
            styles: A style vector for every layer; a resolution's last one is the next one's first, too.
            *noise: For each of the convolutions, coarse to fine, (B or 1, 1, h, w) or None.
        """
        # Convolutions and everything around them keep this layout, in which they run faster; weights have their own.
        layout = training_layout(styles.device)
        x = self.start.expand(len(styles), -1, -1, -1).contiguous(memory_format=layout)
        x = self.second[0](x, styles[:, 0], noise[0])
        image: Tensor = self.to_image[0](x, styles[:, 1])
        for i in range(1, len(self.second)):
            x = self.first[i - 1](x, styles[:, 2 * i - 1], noise[2 * i - 1])
            x = self.second[i](x, styles[:, 2 * i], noise[2 * i])
            image = upsample(image, self.kernel) + self.to_image[i](x, styles[:, 2 * i + 1])
        return image

    def fixed_noise(self) -> list[Tensor | None]:
        """The noise that comes with the weights, the same for all images."""
        return [layer.fixed_noise[None, None] for layer in self._convolutions()]

    def silence(self) -> None:
        """Set the strength of all noise to 0."""
        for layer in self._convolutions():
            nn.init.zeros_(layer.noise_strength)

    def noise_sizes(self) -> list[tuple[int, int]]:
        """Height and width of the noise of each convolution."""
        return [(layer.fixed_noise.shape[0], layer.fixed_noise.shape[1]) for layer in self._convolutions()]

    def _convolutions(self) -> list[StyledConv]:
        pairs = zip(self.first, self.second[1:], strict=True)
        return cast("list[StyledConv]", [self.second[0], *(layer for pair in pairs for layer in pair)])


class DiscriminatorBlock(nn.Module):
    """To half the size, with a skip connection."""

    def __init__(self, in_channels: int, out_channels: int, clamp: float | None) -> None:
        super().__init__()
        self.first = EqualisedConv(in_channels, in_channels, 3, clamp=clamp)
        self.second = EqualisedConv(in_channels, out_channels, 3, halve=True, clamp=clamp)
        self.skip = EqualisedConv(in_channels, out_channels, 1, halve=True, bias=False, active=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / 2, W / 2)."""
        gain = math.sqrt(0.5)
        out: Tensor = self.skip(x, gain=gain) + self.second(self.first(x), gain=gain)
        return out


class Discriminator(nn.Module):
    """Whether images are real, as a logit; with labels, whether they are real ones of that label (projection).

    Args:
        shape: Sizes.
        group: Images per group of minibatch deviation.
        mapping_layers: Layers that read the label.
    """

    def __init__(self, shape: StyleGAN2Shape, *, group: int = 4, mapping_layers: int = 8) -> None:
        super().__init__()
        self.shape = shape
        finest = shape.doublings
        coarsest = shape.width(0)
        self.from_image = EqualisedConv(shape.channels, shape.width(finest), 1, clamp=shape.clamp)
        self.blocks = nn.ModuleList(  # coarse to fine, so that a number means the same at every image size
            DiscriminatorBlock(shape.width(i), shape.width(i - 1), shape.clamp) for i in range(1, finest + 1)
        )
        self.deviation = MinibatchDeviation(group)
        self.last = EqualisedConv(coarsest + 1, coarsest, 3, clamp=shape.clamp)
        self.dense = EqualisedLinear(coarsest * math.prod(shape.base), coarsest, active=True)
        self.out = EqualisedLinear(coarsest, coarsest if shape.num_labels else 1)
        self.label = Mapping(0, shape.num_labels, coarsest, mapping_layers) if shape.num_labels else None

    def forward(self, images: Tensor, label: Tensor | None = None) -> Tensor:
        """Logits (B,) of images (B, C, H, W) in [-1, 1] and label vectors (B, num_labels)."""
        x = self.from_image(images).contiguous(memory_format=training_layout(images.device))  # as in synthesis
        for block in reversed(self.blocks):
            x = block(x)
        with torch.autocast(images.device.type, enabled=False):
            x = self.last(self.deviation(x.float()))
            out: Tensor = self.out(self.dense(x.flatten(1)))
            if self.label is not None:
                out = (out * self.label(None, label)).sum(1, keepdim=True) / math.sqrt(out.shape[1])
            return out[:, 0]
