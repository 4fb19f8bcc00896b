"""The networks of StyleGAN2: mapping, synthesis and discriminator, for images of any size base x 2^n.

Source: Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN"; with labels as in Karras et al.
2020, "Training generative adversarial networks with limited data".
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from medgen.families.stylegan2.config import StyleGAN2Config
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


class Mapping(nn.Module):
    """Maps a random vector and a label to a style vector of the width of all layers; a length of 0 leaves either out.

    `rate` is the learning rate of the layers by that of the others.
    """

    def __init__(self, z_dim: int, label_dim: int, width: int, layers: int, rate: float = 0.01) -> None:
        super().__init__()
        self.embed = EqualisedLinear(label_dim, width) if label_dim else None
        first = z_dim + (width if label_dim else 0)
        self.layers = nn.Sequential(
            *(EqualisedLinear(width if i else first, width, rate=rate, active=True) for i in range(layers))
        )

    def forward(self, z: Tensor | None, label: Tensor | None) -> Tensor:
        """Map (B, z_dim) and (B, label_dim) to (B, width)."""
        parts = [] if z is None else [_unit(z.float())]
        if self.embed is not None and label is not None:
            parts.append(_unit(self.embed(label.float())))
        styles: Tensor = self.layers(torch.cat(parts, dim=1))
        return styles


def _unit(x: Tensor) -> Tensor:
    """Scale vectors to a mean square of 1."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class StyledConv(nn.Module):
    """A convolution modulated by a style, with noise and a leaky ReLU; it may double its input in size."""

    kernel: Tensor
    fixed_noise: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        size: tuple[int, int],
        *,
        upsamples: bool,
        clamp: float | None,
    ) -> None:
        super().__init__()
        self.style = EqualisedLinear(w_dim, in_channels, bias_start=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.upsamples, self.clamp = upsamples, clamp
        self.register_buffer("fixed_noise", torch.randn(size))
        self.register_buffer("kernel", separable_filter(), persistent=False)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """(B, in, H, W) with styles (B, w_dim) and noise (B or 1, 1, H', W') or None to (B, out, H', W')."""
        weight = self.weight * (1 / math.sqrt(self.weight[0].numel()))
        styles = self.style(w)
        out = modulated(x, weight, styles, self.kernel, resampling="up" if self.upsamples else "none")
        scale = (demodulation(weight, styles) * GAIN).to(out.dtype)[:, :, None, None]
        out = torch.addcmul((self.bias * GAIN).to(out.dtype)[:, None, None], out, scale)
        if noise is not None:
            out = out + (noise * (self.noise_strength * GAIN)).to(out.dtype)
        return activate(out, self.clamp)


class ToImage(nn.Module):
    """A modulated 1 x 1 convolution: the share of a resolution in the image."""

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
    """Maps style vectors, one for each layer, to an image, as a sum over resolutions."""

    kernel: Tensor

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        levels = range(config.num_upsamplings + 1)
        sizes, widths = [config.size(level) for level in levels], [config.width(level) for level in levels]
        w_dim, clamp = config.w_dim, config.clamp
        self.start = nn.Parameter(torch.randn(widths[0], *sizes[0]))
        self.first = nn.ModuleList(  # to twice the size
            StyledConv(widths[i - 1], widths[i], w_dim, sizes[i], upsamples=True, clamp=clamp) for i in levels[1:]
        )
        self.second = nn.ModuleList(
            StyledConv(widths[i], widths[i], w_dim, sizes[i], upsamples=False, clamp=clamp) for i in levels
        )
        self.to_image = nn.ModuleList(ToImage(widths[i], config.channels, w_dim, clamp) for i in levels)
        self.register_buffer("kernel", separable_filter(), persistent=False)

    def inference_form(self) -> nn.Module:
        """Build the form without gradients, which reads memory less often."""
        from medgen.families.stylegan2.inference import FastSynthesis  # which is made of these networks

        return FastSynthesis(self)

    def forward(self, styles: Tensor, *noise: Tensor | None) -> Tensor:
        """Draw images (B, C, H, W), about [-1, 1], from styles (B, num_ws, w_dim), coarse to fine.

        Args:
            styles: A style vector for every layer; the last one of a resolution is also the first of the next.
            *noise: For each of the convolutions, (B or 1, 1, h, w) or None.
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
        """Noise that is stored with the weights, equal for all images."""
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
    """A residual block that halves height and width."""

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
    """Predicts the logit of an image being real; with labels, of being real and of that label (projection).

    `group` is the number of images per group of minibatch deviation; `mapping_layers` read the label.
    """

    def __init__(self, config: StyleGAN2Config, *, group: int = 4, mapping_layers: int = 8) -> None:
        super().__init__()
        finest, coarsest, clamp = config.num_upsamplings, config.width(0), config.clamp
        self.from_image = EqualisedConv(config.channels, config.width(finest), 1, clamp=clamp)
        self.blocks = nn.ModuleList(  # coarse to fine, so that a number means the same at every image size
            DiscriminatorBlock(config.width(i), config.width(i - 1), clamp) for i in range(1, finest + 1)
        )
        self.deviation = MinibatchDeviation(group)
        self.last = EqualisedConv(coarsest + 1, coarsest, 3, clamp=clamp)
        self.dense = EqualisedLinear(coarsest * math.prod(config.size(0)), coarsest, active=True)
        self.out = EqualisedLinear(coarsest, coarsest if config.label_dim else 1)
        self.label = Mapping(0, config.label_dim, coarsest, mapping_layers) if config.label_dim else None

    def forward(self, images: Tensor, label: Tensor | None = None) -> Tensor:
        """Logits (B,) of images (B, C, H, W) in [-1, 1] and label vectors (B, label_dim)."""
        x = self.from_image(images).contiguous(memory_format=training_layout(images.device))  # as in synthesis
        for block in reversed(self.blocks):
            x = block(x)
        with torch.autocast(images.device.type, enabled=False):
            x = self.last(self.deviation(x.float()))
            out: Tensor = self.out(self.dense(x.flatten(1)))
            if self.label is not None:
                out = (out * self.label(None, label)).sum(1, keepdim=True) / math.sqrt(out.shape[1])
            return out[:, 0]
