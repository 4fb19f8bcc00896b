"""SPADE's generator without gradients on a CPU: equal up to rounding, with less computed twice.

Most of the work are scales and shifts, from the label map around each pixel. They are computed once for every different
neighbourhood and looked up for each pixel (see `medgen.families.spade.windows`), or by convolutions where too many
neighbourhoods differ. Statistics of batch normalisation and singular values are part of the weights. Scales,
shifts and activations are applied to a piece of the image at a time that stays in the processor's cache; doubling an
image in size is part of that.
"""

from __future__ import annotations

from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medgen.families.spade.networks import SLOPE, SPADEBlock, SPADESynthesis, check_inputs, resized
from medgen.families.spade.normalisation import ClassModulation, ModulatedNorm, SpatialModulation
from medgen.families.spade.windows import Windows, find_windows
from medgen.nn.inference import HasInferenceForm

_PIECE = 1 << 18
"""Numbers that are worked on at a time: 1 MB in float32."""


class FastSynthesis(nn.Module):
    """The inference form of `medgen.families.spade.networks.SPADESynthesis`, with copies of its weights."""

    def __init__(self, synthesis: SPADESynthesis) -> None:
        super().__init__()
        self.config = synthesis.config
        self.start = synthesis.start
        self.blocks = nn.ModuleList(FastBlock(cast("SPADEBlock", block)) for block in synthesis.blocks)
        self.to_image = synthesis.to_image

    def forward(self, semantic: Tensor, code: Tensor | None = None) -> Tensor:
        """Draw images (B, C, H, W) in [-1, 1] from a semantic map (B, K, H, W) and codes (B, code_dim) or None."""
        config = self.config
        check_inputs(config, semantic, code)
        height, width = config.base
        label_map = LabelMap(resized(semantic, config.base), config.kernel_size)
        # Codes come in float32 whatever the network is in.
        x: Tensor = self.start(label_map.semantic if code is None else code.to(semantic.dtype))
        x = x.view(len(x), config.base_width, height, width).contiguous(memory_format=torch.channels_last)
        for block, stage in zip(self.blocks, config.stages, strict=True):
            if stage.upsamples:
                height, width = 2 * height, 2 * width
                label_map = LabelMap(resized(semantic, (height, width)), config.kernel_size)
            x = block(x, label_map, upsamples=stage.upsamples)
        return cast("Tensor", self.to_image(F.leaky_relu_(x, SLOPE))).tanh_()


class LabelMap:
    """A semantic map (B, K, H, W) at one resolution, with cached neighbourhoods and classes for the modulations."""

    def __init__(self, semantic: Tensor, kernel_size: int) -> None:
        self.semantic = semantic
        self.kernel_size = kernel_size

    @cached_property
    def windows(self) -> Windows | None:
        """Distinct neighbourhoods, if they are few."""
        return find_windows(self.semantic, self.kernel_size)

    @cached_property
    def classes(self) -> Tensor:
        """Class of every pixel, (B, H, W)."""
        return self.semantic.argmax(1)


class FastBlock(nn.Module):
    """A residual block, with upsampling of its input."""

    def __init__(self, block: SPADEBlock) -> None:
        super().__init__()
        self.first_norm, self.second_norm = FastNorm(block.first_norm), FastNorm(block.second_norm)
        self.first, self.second = _plain(block.first), _plain(block.second)
        self.skip_norm = None if block.skip_norm is None else FastNorm(block.skip_norm)
        self.skip = None
        if block.skip is not None:  # of one pixel: a matrix product, which the norm before it can do on the way
            weight = _plain(block.skip).weight.detach()[:, :, 0, 0]
            self.skip = nn.Parameter(weight.T.contiguous(), requires_grad=False)

    def forward(self, x: Tensor, label_map: LabelMap, *, upsamples: bool) -> Tensor:
        """(B, in, h, w), channels last, to (B, out, H, W)."""
        if self.skip_norm is not None:
            skipped = self.skip_norm(x, label_map, upsamples=upsamples, weight=self.skip)
        else:
            skipped = F.interpolate(x, scale_factor=2.0) if upsamples else x
        x = self.first(self.first_norm(x, label_map, upsamples=upsamples, slope=SLOPE))
        x = self.second(self.second_norm(x, label_map, slope=SLOPE))
        return x.add_(skipped)


def _plain(conv: nn.Module) -> nn.Conv2d:
    """Build a plain convolution, with spectral normalisation applied to its weights."""
    return cast("nn.Conv2d", conv.inference_form() if isinstance(conv, HasInferenceForm) else conv)


class FastNorm(nn.Module):
    """A norm, its modulation and, if there is one, the activation after it."""

    def __init__(self, layer: ModulatedNorm) -> None:
        super().__init__()
        self.norm: nn.Module = layer.norm
        scale, shift = None, None
        if isinstance(layer.norm, nn.BatchNorm2d):  # which does the same to every image
            mean, variance = cast("Tensor", layer.norm.running_mean), cast("Tensor", layer.norm.running_var)
            scale = (variance + layer.norm.eps).rsqrt()
            shift = -mean * scale
            self.norm = nn.Identity()
        modulation = layer.modulation
        self.rows: nn.Module = (
            ClassRows(modulation, scale, shift)
            if isinstance(modulation, ClassModulation)
            else SpatialRows(modulation, scale, shift)
        )

    def forward(
        self,
        x: Tensor,
        label_map: LabelMap,
        *,
        upsamples: bool = False,
        slope: float = 1.0,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Normalise, modulate, activate and multiply features (B, C, h, w), channels last.

        Args:
            x: The features.
            label_map: Label map at the resolution of the result.
            upsamples: Whether that is twice the resolution of `x`.
            slope: Slope of the leaky ReLU; 1 for none.
            weight: Matrix (C, D) of a 1 x 1 convolution at the end, whose output (B, D, H, W) is returned; None for
                none.
        """
        rows, numbers = self.rows(label_map)
        pixels = self.norm(x).permute(0, 2, 3, 1).contiguous()
        step = 2 if upsamples else 1
        batch, channels, height, width = len(x), x.shape[1], x.shape[2] * step, x.shape[3] * step
        pixels = pixels.flatten(0, 1)
        out: Tensor = pixels.new_empty(batch * height, width, channels if weight is None else weight.shape[1])
        count = max(1, _PIECE // (width * channels * step)) * step  # lines of the image at a time
        for start in range(0, batch * height, count):
            end = min(start + count, batch * height)
            here = slice(start * width, end * width)
            found = rows[here] if numbers is None else rows.index_select(0, numbers.flatten()[here])
            shape = ((end - start) // step, step, width // step, step, channels)
            scale, shift = (part.view(shape) for part in found.view(-1, 2, channels).unbind(1))
            piece = out[start:end] if weight is None else out.new_empty(end - start, width, channels)
            source = pixels[start // step : end // step, None, :, None]
            torch.addcmul(shift, source, scale, out=piece.view(shape))
            if slope != 1:
                F.leaky_relu_(piece, slope)
            if weight is not None:
                torch.mm(piece.flatten(0, 1), weight, out=out[start:end].flatten(0, 1))
        return out.view(batch, height, width, -1).permute(0, 3, 1, 2)


class SpatialRows(nn.Module):
    """Scales and shifts of SPADE, with those (C,) of the norm before folded in; None for 1 and 0."""

    def __init__(self, modulation: SpatialModulation, scale: Tensor | None, shift: Tensor | None) -> None:
        super().__init__()
        gamma, beta = modulation.gamma, modulation.beta
        weight = _folded(gamma.weight.detach(), beta.weight.detach(), scale, shift)
        bias = _folded(1 + _bias(gamma), _bias(beta), scale, shift)
        self.shared = modulation.shared
        self.both = nn.Conv2d(
            weight.shape[1], len(weight), weight.shape[2], padding=weight.shape[2] // 2, device="meta"
        )
        self.both.weight, self.both.bias = _frozen(weight), _frozen(bias)
        # The same for single patches; of the second convolution what each pixel of a patch adds to its output.
        self.shared_parts = _linear(self.shared.weight.detach().flatten(1), _bias(self.shared))
        parts = weight.permute(2, 3, 0, 1).flatten(0, 1)  # (k x k, 2 C, hidden)
        biases = parts.new_zeros(parts.shape[:2])
        biases[len(parts) // 2] = bias
        self.both_parts = _linear(parts.flatten(0, 1), biases.flatten())

    def forward(self, label_map: LabelMap) -> tuple[Tensor, Tensor | None]:
        """Compute rows of scales and shifts (R, 2 C), and the row of each pixel (B, H, W); None if each has its own."""
        if (windows := label_map.windows) is None:
            both = self.both(F.relu_(self.shared(label_map.semantic)))
            return both.permute(0, 2, 3, 1).contiguous().flatten(0, 2), None
        hidden = F.relu_(self.shared_parts(windows.patches))
        parts = F.pad(self.both_parts(hidden), (0, 0, 1, 0))  # what is outside adds nothing
        size = windows.around.shape[1]
        places = windows.around * size + torch.arange(size, device=parts.device)
        return F.embedding_bag(places, parts.view(len(parts) * size, -1), mode="sum"), windows.numbers


class ClassRows(nn.Module):
    """Scales and shifts of CLADE, with those (C,) of the norm before folded in; None for 1 and 0."""

    def __init__(self, modulation: ClassModulation, scale: Tensor | None, shift: Tensor | None) -> None:
        super().__init__()
        rows = _folded(modulation.gamma.detach().T, modulation.beta.detach().T, scale, shift)
        self.rows = _frozen(rows.T.contiguous())

    def forward(self, label_map: LabelMap) -> tuple[Tensor, Tensor]:
        """Return rows of scales and shifts (K, 2 C), and the row of each pixel (B, H, W)."""
        return self.rows, label_map.classes


def _folded(gamma: Tensor, beta: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """Fold a scale and a shift (C,) into the scales and shifts (C, ...) after them, joined as (2 C, ...)."""
    if scale is None or shift is None:
        return torch.cat([gamma, beta])
    scale, shift = (values.view(-1, *[1] * (gamma.dim() - 1)) for values in (scale, shift))
    return torch.cat([gamma * scale, beta + gamma * shift])


def _bias(conv: nn.Conv2d) -> Tensor:
    return cast("Tensor", conv.bias).detach()


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = _frozen(weight.contiguous()), _frozen(bias)
    return layer


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)
