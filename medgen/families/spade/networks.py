"""The synthesis network of SPADE, and the semantic maps that it reads.

Source: Park et al. 2019, "Semantic image synthesis with spatially-adaptive normalization", section 3 and
appendix A.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medgen.families.spade.config import SPADEConfig
from medgen.families.spade.normalisation import ClassModulation, ModulatedNorm, SpatialModulation, norm_layer
from medgen.nn.spectral import SpectralConv2d

SLOPE = 0.2
"""Of the leaky ReLU, for negative numbers."""


class SPADEBlock(nn.Module):
    """A residual block whose norms are modulated by the label map; other output channels need a skip convolution.

    Source: Park et al. 2019, section 3, "SPADE generator".
    """

    def __init__(self, in_channels: int, out_channels: int, config: SPADEConfig, *, spectral: bool = True) -> None:
        super().__init__()
        inner = min(in_channels, out_channels)
        self.first_norm, self.second_norm = _modulated_norm(in_channels, config), _modulated_norm(inner, config)
        convolution = SpectralConv2d if spectral else nn.Conv2d
        self.first = convolution(in_channels, inner, 3, padding=1)
        self.second = convolution(inner, out_channels, 3, padding=1)
        self.skip_norm = _modulated_norm(in_channels, config) if in_channels != out_channels else None
        self.skip = convolution(in_channels, out_channels, 1, bias=False) if in_channels != out_channels else None

    def forward(self, x: Tensor, semantic: Tensor) -> Tensor:
        """(B, in, H, W) and a semantic map (B, K, any, any) to (B, out, H, W)."""
        semantic = resized(semantic, x.shape[2:])
        skipped = x if self.skip is None or self.skip_norm is None else self.skip(self.skip_norm(x, semantic))
        x = self.first(F.leaky_relu(self.first_norm(x, semantic), SLOPE))
        x = self.second(F.leaky_relu(self.second_norm(x, semantic), SLOPE))
        return skipped + x


def _modulated_norm(channels: int, config: SPADEConfig) -> ModulatedNorm:
    classes = config.semantic_channels
    modulation = (
        ClassModulation(channels, classes)
        if config.modulation == "clade"
        else SpatialModulation(channels, classes, hidden=config.hidden, kernel_size=config.kernel_size)
    )
    return ModulatedNorm(norm_layer(config.norm, channels, affine=False), modulation)


class SPADESynthesis(nn.Module):
    """Maps a semantic map, and a style code where there is one, to an image."""

    def __init__(self, config: SPADEConfig, *, spectral: bool = True) -> None:
        super().__init__()
        self.config = config
        height, width = config.base
        self.start: nn.Module = (
            nn.Linear(config.code_dim, config.base_width * height * width)
            if config.code_dim
            else nn.Conv2d(config.semantic_channels, config.base_width, 3, padding=1)
        )
        self.blocks = nn.ModuleList(
            SPADEBlock(stage.in_channels, stage.out_channels, config, spectral=spectral) for stage in config.stages
        )
        self.to_image = nn.Conv2d(config.stages[-1].out_channels, config.channels, 3, padding=1)

    def inference_form(self) -> nn.Module:
        """Build the form without gradients, which computes repeated parts of label maps once."""
        from medgen.families.spade.inference import FastSynthesis  # which is made of these networks

        return FastSynthesis(self)

    def forward(self, semantic: Tensor, code: Tensor | None = None) -> Tensor:
        """Draw images (B, C, H, W) in [-1, 1] from `semantic_map` (B, semantic_channels, H, W) and codes (B, code_dim).

        Raises:
            ValueError: If the map is of another size, or the code of another length, than the network's.
        """
        config = self.config
        check_inputs(config, semantic, code)
        x = self.start(resized(semantic, config.base) if code is None else code)
        x = x.view(len(x), config.base_width, *config.base)
        for block, stage in zip(self.blocks, config.stages, strict=True):
            if stage.upsamples:
                x = F.interpolate(x, scale_factor=2.0)
            x = block(x, semantic)
        return cast("Tensor", self.to_image(F.leaky_relu(x, SLOPE))).tanh()


def check_inputs(config: SPADEConfig, semantic: Tensor, code: Tensor | None) -> None:
    """Refuse maps and codes of other sizes, see `SPADESynthesis.forward`."""
    if tuple(semantic.shape[1:]) != (config.semantic_channels, *config.image_size):
        expected = ", ".join(map(str, (config.semantic_channels, *config.image_size)))
        raise ValueError(f"semantic has shape {tuple(semantic.shape)}; expected (B, {expected}), see semantic_map")
    wanted = (len(semantic), config.code_dim) if config.code_dim else None
    found = None if code is None else tuple(code.shape)
    if found != wanted:
        raise ValueError(
            f"code has shape {found}; with style {config.style!r} give "
            + ("none" if wanted is None else f"one of shape {wanted}")
        )


def resized(semantic: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a semantic map by nearest neighbours."""
    if tuple(semantic.shape[2:]) == tuple(size):
        return semantic
    return F.interpolate(semantic, size=tuple(size))


def semantic_map(masks: Tensor, num_classes: int, *, dont_care: bool = False, edges: Tensor | None = None) -> Tensor:
    """One-hot encode label maps, the input of generator and discriminators.

    Args:
        masks: Class numbers, (B, H, W) int64.
        num_classes: Number of classes.
        dont_care: Whether unlabelled pixels, of number `num_classes`, get a channel of their own.
        edges: Borders between instances, (B, 1, H, W), see `instance_edges`; they become the last channel.

    Returns:
        (B, num_classes + dont_care + (1 with edges), H, W) float32, 0 or 1.

    Raises:
        ValueError: If masks are of another shape or type, or hold other numbers.
    """
    if masks.dim() != 3 or masks.is_floating_point() or masks.is_complex() or masks.dtype == torch.bool:
        raise ValueError(
            f"masks have shape {tuple(masks.shape)} and type {masks.dtype}; give class numbers (B, H, W), torch.int64"
        )
    classes = num_classes + dont_care
    low, high = (int(value) for value in masks.aminmax()) if masks.numel() else (0, 0)
    if low < 0 or high >= classes:
        raise ValueError(f"masks hold {low} to {high}; there are the classes 0 to {classes - 1}")
    found = torch.zeros(len(masks), classes, *masks.shape[1:], device=masks.device)
    found.scatter_(1, masks[:, None].long(), 1.0)
    return found if edges is None else torch.cat([found, edges.to(found.dtype)], dim=1)


def instance_edges(instances: Tensor) -> Tensor:
    """Mark pixels with a neighbour of another instance (B, H, W) above, below, left or right: (B, 1, H, W), 0 or 1."""
    edges = torch.zeros_like(instances, dtype=torch.bool)
    across, down = instances[:, :, 1:] != instances[:, :, :-1], instances[:, 1:] != instances[:, :-1]
    edges[:, :, 1:] |= across
    edges[:, :, :-1] |= across
    edges[:, 1:] |= down
    edges[:, :-1] |= down
    return edges[:, None].float()
