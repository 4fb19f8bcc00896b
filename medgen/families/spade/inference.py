"""SPADE's generator without gradients on a CPU: the same numbers up to rounding, with little computed twice.

Most of what the network computes are scales and shifts, from the label map around each pixel. They are computed once
for every different neighbourhood and looked up for each pixel (see `medgen.families.spade.windows`); where too many are
different, by convolutions. Statistics of batch normalisation and singular values are part of the weights. Scales,
shifts and activations are applied to a piece of the image at a time that stays in the processor's cache; doubling an
image in size is part of that.
"""

from __future__ import annotations

from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medgen.families.spade.networks import SLOPE, SPADEBlock, SPADESynthesis, resized
from medgen.families.spade.normalisation import ClassModulation, ModulatedNorm, SpatialModulation
from medgen.families.spade.windows import Windows, find_windows
from medgen.nn.inference import HasInferenceForm

_PIECE = 1 << 18
"""Numbers that are worked on at a time: 1 MB in float32."""


class FastSynthesis(nn.Module):
    """See `medgen.families.spade.networks.SPADESynthesis`, whose weights it has copies of.

    Args:
        synthesis: The network.
    """

    def __init__(self, synthesis: SPADESynthesis) -> None:
        super().__init__()
        self.shape = synthesis.shape
        self.start = synthesis.start
        self.blocks = nn.ModuleList(FastBlock(cast("SPADEBlock", block)) for block in synthesis.blocks)
        self.to_image = synthesis.to_image

    def forward(self, semantic: Tensor, code: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of a semantic map (B, K, H, W) and codes (B, style_dim) or None."""
        shape = self.shape
        shape.check_inputs(semantic, code)
        height, width = shape.base
        label_map = LabelMap(resized(semantic, shape.base), shape.kernel_size)
        # Codes come in float32 whatever the network is in.
        x: Tensor = self.start(label_map.semantic if code is None else code.to(semantic.dtype))
        x = x.view(len(x), shape.base_width, height, width).contiguous(memory_format=torch.channels_last)
        for block, stage in zip(self.blocks, shape.stages, strict=True):
            if stage.doubles:
                height, width = 2 * height, 2 * width
                label_map = LabelMap(resized(semantic, (height, width)), shape.kernel_size)
            x = block(x, label_map, doubles=stage.doubles)
        return cast("Tensor", self.to_image(F.leaky_relu_(x, SLOPE))).tanh_()


class LabelMap:
    """A semantic map at one resolution, with what modulations need of it, found when it is needed.

    Args:
        semantic: (B, K, H, W).
        kernel_size: Of SPADE's convolutions.
    """

    def __init__(self, semantic: Tensor, kernel_size: int) -> None:
        self.semantic = semantic
        self.kernel_size = kernel_size

    @cached_property
    def windows(self) -> Windows | None:
        """Its different neighbourhoods, if they are few."""
        return find_windows(self.semantic, self.kernel_size)

    @cached_property
    def classes(self) -> Tensor:
        """The class of every pixel, (B, H, W)."""
        return self.semantic.argmax(1)


class FastBlock(nn.Module):
    """A residual block that doubles its input in size on the way, if it is to.

    Args:
        block: The block.
    """

    def __init__(self, block: SPADEBlock) -> None:
        super().__init__()
        self.first_norm, self.second_norm = FastNorm(block.first_norm), FastNorm(block.second_norm)
        self.first, self.second = _plain(block.first), _plain(block.second)
        self.skip_norm = None if block.skip_norm is None else FastNorm(block.skip_norm)
        self.skip = None
        if block.skip is not None:  # of one pixel: a matrix product, which the norm before it can do on the way
            weight = _plain(block.skip).weight.detach()[:, :, 0, 0]
            self.skip = nn.Parameter(weight.T.contiguous(), requires_grad=False)

    def forward(self, x: Tensor, label_map: LabelMap, *, doubles: bool) -> Tensor:
        """(B, in, h, w), channels last, to (B, out, H, W)."""
        if self.skip_norm is not None:
            skipped = self.skip_norm(x, label_map, doubles=doubles, weight=self.skip)
        else:
            skipped = F.interpolate(x, scale_factor=2.0) if doubles else x
        x = self.first(self.first_norm(x, label_map, doubles=doubles, slope=SLOPE))
        x = self.second(self.second_norm(x, label_map, slope=SLOPE))
        return x.add_(skipped)


def _plain(conv: nn.Module) -> nn.Conv2d:
    """The convolution with its weights divided by their singular value, if they are to be."""
    return cast("nn.Conv2d", conv.inference_form() if isinstance(conv, HasInferenceForm) else conv)


class FastNorm(nn.Module):
    """A norm, its modulation and, if there is one, the activation after it.

    Args:
        layer: The norm and its modulation.
    """

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
        doubles: bool = False,
        slope: float = 1.0,
        weight: Tensor | None = None,
    ) -> Tensor:
        """(B, C, h, w) normalised, modulated, activated and multiplied.

        Args:
            x: Features, channels last.
            label_map: At the resolution of the result.
            doubles: Whether that is twice the one of `x`.
            slope: Of the leaky ReLU; 1 for none.
            weight: A matrix (C, D) that each pixel is multiplied with at last; None for none.

        Returns:
            (B, C, H, W), or (B, D, H, W) with a matrix; channels last.
        """
        rows, numbers = self.rows(label_map)
        pixels = self.norm(x).permute(0, 2, 3, 1).contiguous()
        step = 2 if doubles else 1
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
    """Scales and shifts of SPADE.

    Args:
        modulation: The modulation.
        scale: What features are multiplied with before, (C,); None for 1.
        shift: What is added to them then, (C,); None for 0.
    """

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
        """Rows of scales and shifts (R, 2 C), and the row of each pixel (B, H, W); None if each has its own."""
        if (windows := label_map.windows) is None:
            both = self.both(F.relu_(self.shared(label_map.semantic)))
            return both.permute(0, 2, 3, 1).contiguous().flatten(0, 2), None
        hidden = F.relu_(self.shared_parts(windows.patches))
        parts = F.pad(self.both_parts(hidden), (0, 0, 1, 0))  # what is outside adds nothing
        size = windows.around.shape[1]
        places = windows.around * size + torch.arange(size, device=parts.device)
        return F.embedding_bag(places, parts.view(len(parts) * size, -1), mode="sum"), windows.numbers


class ClassRows(nn.Module):
    """Scales and shifts of CLADE.

    Args:
        modulation: The modulation.
        scale: What features are multiplied with before, (C,); None for 1.
        shift: What is added to them then, (C,); None for 0.
    """

    def __init__(self, modulation: ClassModulation, scale: Tensor | None, shift: Tensor | None) -> None:
        super().__init__()
        rows = _folded(modulation.gamma.detach().T, modulation.beta.detach().T, scale, shift)
        self.rows = _frozen(rows.T.contiguous())

    def forward(self, label_map: LabelMap) -> tuple[Tensor, Tensor]:
        """Rows of scales and shifts (K, 2 C), and the row of each pixel (B, H, W)."""
        return self.rows, label_map.classes


def _folded(gamma: Tensor, beta: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """Scales and shifts (2 C, ...) that do what others (C, ...) do to features with a scale and a shift (C,) before."""
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
