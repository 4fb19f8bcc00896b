"""Adaptive discriminator augmentation.

Each transform is applied to each image with a probability that training adapts. Geometric transforms are combined into
one resampling at twice the size, and changes of colour into one matrix; first and second gradients flow through both.

Source: Karras et al. 2020, "Training generative adversarial networks with limited data", appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medgen.nn.resampling import downsample_lines, filter_lines, sample_bilinear, upsample_lines

# Filters of Daubechies' least asymmetric wavelets with 6 and with 2 vanishing moments
_SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
_SYM2 = (-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025)

_BAND_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)
"""Share of each frequency band of the power of natural images."""

GEOMETRY = ("xflip", "rotate90", "xint", "scale", "rotate", "aniso", "xfrac")
COLOUR = ("brightness", "contrast", "lumaflip", "hue", "saturation")
CORRUPTION = ("imgfilter", "noise", "cutout")
TRANSFORMS = GEOMETRY + COLOUR + CORRUPTION
PIPES: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "blit": GEOMETRY[:3],
    "geom": GEOMETRY[3:],
    "color": COLOUR,
    "filter": ("imgfilter",),
    "noise": ("noise",),
    "cutout": ("cutout",),
    "bg": GEOMETRY,
    "bgc": GEOMETRY + COLOUR,
    "bgcf": GEOMETRY + COLOUR + ("imgfilter",),
    "bgcfn": GEOMETRY + COLOUR + ("imgfilter", "noise"),
    "bgcfnc": GEOMETRY + COLOUR + CORRUPTION,
}
"""Transforms of the published sets, by name."""

# Standard deviations, of factors in octaves; shifts and cutouts relative to the size of the image
_SHIFT, _OCTAVES, _BRIGHTNESS, _CONTRAST, _SATURATION, _NOISE, _CUTOUT = 0.125, 0.2, 0.2, 0.5, 1.0, 0.1, 0.5


class AugmentPipe(nn.Module):
    """Random transforms of images, each with probability `p` times its strength.

    Args:
        transforms: Strengths by the names of `TRANSFORMS`, or a name of `PIPES` for strength 1.

    Raises:
        ValueError: If a transform or set is unknown.
    """

    p: Tensor
    smooth: Tensor
    bands: Tensor

    def __init__(self, transforms: str | Mapping[str, float] = "bgc") -> None:
        super().__init__()
        if isinstance(transforms, str):
            if transforms not in PIPES:
                raise ValueError(f"augmentation {transforms!r} is unknown; use one of {', '.join(PIPES)}")
            transforms = dict.fromkeys(PIPES[transforms], 1.0)
        if unknown := sorted(set(transforms) - set(TRANSFORMS)):
            raise ValueError(f"transform {', '.join(unknown)} is unknown; there are {', '.join(TRANSFORMS)}")
        self.strength = {name: float(transforms.get(name, 0)) for name in TRANSFORMS}
        self.register_buffer("p", torch.ones(()))
        self.register_buffer("smooth", torch.tensor(_SYM6) / sum(_SYM6), persistent=False)
        self.register_buffer("bands", band_filters(), persistent=False)

    def forward(self, images: Tensor, *, percentile: float | None = None) -> Tensor:
        """Transform images (B, C, H, W), about [-1, 1], with torch's global random state.

        Args:
            images: Images of one or three channels; hue and saturation are skipped for one.
            percentile: Sets every random number to this percentile of its distribution, for tests.

        Raises:
            ValueError: If colours of another number of channels are to be changed, or images are too small to filter.
        """
        with torch.autocast(images.device.type, enabled=False):  # resampling in bfloat16 would shift pixels
            return self._transformed(images.float(), percentile)

    def _transformed(self, images: Tensor, percentile: float | None) -> Tensor:
        channels = images.shape[1]
        draws = _Draws(images, self.p, self.strength, percentile)
        if any(self.strength[name] for name in GEOMETRY):
            inverse = _geometry(draws)
            moved = (inverse != torch.eye(3, device=inverse.device)).flatten(1).any(1).nonzero()[:, 0]
            if len(moved):  # resampling other images would not change them
                images = images.index_copy(0, moved, self._moved(images[moved], inverse[moved]))
        if any(self.strength[name] for name in COLOUR):
            if channels not in (1, 3):
                raise ValueError(f"images have {channels} channels; {', '.join(COLOUR)} are for 1 or 3: leave them out")
            images = _recoloured(images, _colours(draws, grey=channels == 1))
        if self.strength["imgfilter"]:
            images = self._filtered(images, draws)
        if self.strength["noise"]:
            sigma = draws.gated("noise", draws.normal("noise", 3).abs() * _NOISE, 0.0)
            images = images + torch.randn_like(images) * sigma
        if self.strength["cutout"]:
            images = _cut_out(images, draws)
        return images

    def _moved(self, images: Tensor, inverse: Tensor) -> Tensor:
        """Resample images at the sources (B, 3, 3) of the pixels of the result, at twice the size to stay sharp."""
        # Reflected margins, as wide as the batch needs
        height, width = images.shape[2:]
        reach = len(self.smooth) // 4
        corners = torch.tensor([[-1.0, 1, 1, -1], [-1, -1, 1, 1]], device=inverse.device)
        half = torch.tensor([[(width - 1) / 2], [(height - 1) / 2]], device=inverse.device)
        seen = inverse[:, :2] @ torch.cat([corners * half, torch.ones_like(corners[:1])])  # (B, 2, 4)
        outermost = torch.cat([-seen, seen], dim=1).amax((0, 2)) + reach * 2 - half.repeat(2, 1)[:, 0]
        left, above, right, below = (
            min(max(math.ceil(side), 0), size - 1)
            for side, size in zip(outermost.tolist(), (width, height) * 2, strict=True)
        )
        images = F.pad(images, [left, right, above, below], mode="reflect")
        inverse = _shift_matrix(inverse.new_tensor([[(left - right) / 2, (above - below) / 2]])) @ inverse
        images = upsample_lines(images, self.smooth)
        # At twice the size, positions double, and pixel centres move by half a pixel.
        twice, half_pixel = inverse.new_tensor([[2.0, 2.0]]), inverse.new_tensor([[-0.5, -0.5]])
        inverse = _scale_matrix(twice) @ inverse @ _scale_matrix(1 / twice)
        inverse = _shift_matrix(half_pixel) @ inverse @ _shift_matrix(-half_pixel)
        size = [(height + reach * 2) * 2, (width + reach * 2) * 2]
        source = inverse.new_tensor([[2 / images.shape[3], 2 / images.shape[2]]])
        target = inverse.new_tensor([[size[1] / 2, size[0] / 2]])
        inverse = _scale_matrix(source) @ inverse @ _scale_matrix(target)
        grid = F.affine_grid(inverse[:, :2], [*images.shape[:2], *size], align_corners=False)
        return downsample_lines(sample_bilinear(images, grid), self.smooth, crop=2 * reach)

    def _filtered(self, images: Tensor, draws: _Draws) -> Tensor:
        """Amplify or weaken frequency bands at equal power."""
        height, width = images.shape[2:]
        if min(height, width) <= (reach := self.bands.shape[1] // 2):
            raise ValueError(f"images are {height} x {width}; imgfilter needs more than {reach} a side: leave it out")
        power = self.bands.new_tensor(_BAND_POWER)
        gains = torch.ones(len(images), len(_BAND_POWER), device=images.device)
        for band in range(len(_BAND_POWER)):
            gain = torch.ones_like(gains)
            gain[:, band] = draws.gated("imgfilter", draws.octaves("imgfilter", 1.0), 1.0)
            gains = gains * gain / (power * gain.square()).sum(1, keepdim=True).sqrt()
        return filter_lines(images, gains @ self.bands)


class _Draws:
    """Random numbers for a batch, or a percentile of their distributions."""

    def __init__(self, images: Tensor, p: Tensor, strength: Mapping[str, float], percentile: float | None) -> None:
        self.batch, self.size, self.device = len(images), images.shape[2:], images.device
        self.p, self.strength, self.percentile = p, strength, percentile

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), (B, *shape)."""
        drawn = torch.rand(self.batch, *shape, device=self.device)
        return drawn if self.percentile is None else torch.full_like(drawn, self.percentile)

    def normal(self, name: str, ones: int = 0, values: int = 0) -> Tensor:
        """Normal numbers, (B, values), or (B,) with `ones` further dimensions of size 1."""
        shape = (values,) if values else (1,) * ones
        drawn = torch.randn(self.batch, *shape, device=self.device)
        if self.percentile is None:
            return drawn
        # Noise has no sign: its percentile is that of the half-normal distribution.
        quantile = self.percentile if name == "noise" else 2 * self.percentile - 1
        return torch.full_like(drawn, float(torch.erfinv(torch.tensor(quantile))))

    def octaves(self, name: str, deviation: float, ones: int = 0) -> Tensor:
        """Log-normal factors, (B,) with `ones` further dimensions; `deviation` is in octaves."""
        return (self.normal(name, ones) * deviation).exp2()

    def gated(self, name: str, values: Tensor, neutral: float, probability: Tensor | None = None) -> Tensor:
        """Values (B, ...) for the images that the transform applies to, and a neutral one for the others."""
        if probability is None:
            probability = self.p * self.strength[name]
        drawn = torch.rand(self.batch, *[1] * (values.dim() - 1), device=self.device)
        if self.percentile is not None:
            return values
        return torch.where(drawn < probability, values, torch.full_like(values, neutral))


def _geometry(draws: _Draws) -> Tensor:
    """Transforms (B, 3, 3) from pixels of the result to their source, in pixels from the centre."""
    height, width = draws.size
    sides = torch.tensor([width, height], device=draws.device)
    strength = draws.strength
    # Probability of rotations before and after stretching such that either or both happen with p.
    probability = 1 - (1 - draws.p * strength["rotate"]).clamp(0, 1).sqrt()

    def rotation() -> Tensor:
        return _turn_matrix(draws.gated("rotate", (draws.uniform() * 2 - 1) * math.pi, 0.0, probability))

    # Each transform acts on the result of the previous ones, so that its inverse is multiplied from the right.
    inverse = torch.eye(3, device=draws.device).expand(draws.batch, 3, 3)
    if strength["xflip"]:
        mirrored = draws.gated("xflip", (draws.uniform() * 2).floor(), 0.0)
        inverse = inverse @ _scale_matrix(torch.stack([1 - 2 * mirrored, torch.ones_like(mirrored)], 1))
    if strength["rotate90"]:
        inverse = inverse @ _turn_matrix(draws.gated("rotate90", (draws.uniform() * 4).floor(), 0.0) * (math.pi / 2))
    if strength["xint"]:
        shift = draws.gated("xint", (draws.uniform(2) * 2 - 1) * _SHIFT, 0.0)
        inverse = inverse @ _shift_matrix(-(shift * sides).round())
    if strength["scale"]:
        factor = draws.gated("scale", draws.octaves("scale", _OCTAVES), 1.0)
        inverse = inverse @ _scale_matrix(1 / torch.stack([factor, factor], 1))
    if strength["rotate"]:
        inverse = inverse @ rotation()
    if strength["aniso"]:
        factor = draws.gated("aniso", draws.octaves("aniso", _OCTAVES), 1.0)
        inverse = inverse @ _scale_matrix(torch.stack([1 / factor, factor], 1))
    if strength["rotate"] and draws.percentile is None:
        inverse = inverse @ rotation()
    if strength["xfrac"]:
        shift = draws.gated("xfrac", draws.normal("xfrac", values=2) * _SHIFT, 0.0)
        inverse = inverse @ _shift_matrix(-shift * sides)
    return inverse


def _colours(draws: _Draws, *, grey: bool) -> Tensor:
    """Transforms (B, 4, 4) of colours in homogeneous coordinates."""
    eye = torch.eye(4, device=draws.device)
    luma = torch.tensor([1.0, 1, 1, 0], device=draws.device) / math.sqrt(3)
    along = torch.outer(luma, luma)
    colours = eye.expand(draws.batch, 4, 4)
    if draws.strength["brightness"]:
        more = draws.gated("brightness", draws.normal("brightness") * _BRIGHTNESS, 0.0)
        matrix = eye.repeat(draws.batch, 1, 1)
        matrix[:, :3, 3] = more[:, None]
        colours = matrix @ colours
    if draws.strength["contrast"]:
        factor = draws.gated("contrast", draws.octaves("contrast", _CONTRAST), 1.0)
        colours = torch.diag_embed(torch.stack([factor, factor, factor, torch.ones_like(factor)], 1)) @ colours
    if draws.strength["lumaflip"]:
        flipped = draws.gated("lumaflip", (draws.uniform(1, 1) * 2).floor(), 0.0)
        colours = (eye - 2 * along * flipped) @ colours
    if draws.strength["hue"] and not grey:
        angle = draws.gated("hue", (draws.uniform() * 2 - 1) * math.pi, 0.0)
        colours = _hue_matrix(angle) @ colours
    if draws.strength["saturation"] and not grey:
        factor = draws.gated("saturation", draws.octaves("saturation", _SATURATION, ones=2), 1.0)
        colours = (along + (eye - along) * factor) @ colours
    return colours


def _recoloured(images: Tensor, colours: Tensor) -> Tensor:
    """Transform the colours of images (B, 1 or 3, H, W); grey ones get the mean of three equal channels."""
    rows = colours[:, :3]
    if images.shape[1] == 1:
        row = rows.mean(1)
        return images * row[:, :3].sum(1).view(-1, 1, 1, 1) + row[:, 3].view(-1, 1, 1, 1)
    return (rows[:, :, :3] @ images.flatten(2) + rows[:, :, 3:]).view_as(images)


def _cut_out(images: Tensor, draws: _Draws) -> Tensor:
    """Set a rectangle of half the image size to 0."""
    side = draws.gated("cutout", torch.full((draws.batch, 2, 1, 1, 1), _CUTOUT, device=images.device), 0.0)
    middle = draws.uniform(2, 1, 1, 1)
    height, width = draws.size
    across = (torch.arange(width, device=images.device) + 0.5) / width
    down = (torch.arange(height, device=images.device)[:, None] + 0.5) / height
    outside = ((across - middle[:, 0]).abs() >= side[:, 0] / 2) | ((down - middle[:, 1]).abs() >= side[:, 1] / 2)
    return images * outside


def band_filters() -> Tensor:
    """Four band-pass filters, an octave each, with sum 1, (4, taps)."""
    low = torch.tensor(_SYM2, dtype=torch.float64)
    high = low * torch.tensor([1.0, -1.0] * (len(_SYM2) // 2), dtype=torch.float64)
    # A filter together with its mirror image shifts nothing.
    low, high = (_convolved(line[None], line.flip(0))[0] / 2 for line in (low, high))
    count = len(_BAND_POWER)
    bands = torch.eye(count, 1, dtype=torch.float64)
    for i in range(1, count):
        spread = torch.stack([bands, torch.zeros_like(bands)], dim=2).flatten(1)[:, :-1]
        bands = _convolved(spread, low)
        margin = (bands.shape[1] - len(high)) // 2
        bands[i, margin : bands.shape[1] - margin] += high
    return bands.float()


def _convolved(lines: Tensor, taps: Tensor) -> Tensor:
    return F.conv1d(lines[:, None], taps.flip(0).view(1, 1, -1), padding=len(taps) - 1)[:, 0]


def _shift_matrix(by: Tensor) -> Tensor:
    """Matrices (B, 3, 3) of shifts (B, 2)."""
    matrix = torch.eye(3, device=by.device).repeat(len(by), 1, 1)
    matrix[:, :2, 2] = by
    return matrix


def _scale_matrix(factors: Tensor) -> Tensor:
    """Matrices (B, 3, 3) of factors (B, 2)."""
    return torch.diag_embed(torch.cat([factors, torch.ones_like(factors[:, :1])], 1))


def _turn_matrix(angles: Tensor) -> Tensor:
    """Matrices (B, 3, 3) of angles (B,)."""
    sin, cos, none, one = angles.sin(), angles.cos(), torch.zeros_like(angles), torch.ones_like(angles)
    return torch.stack([cos, -sin, none, sin, cos, none, none, none, one], 1).view(-1, 3, 3)


def _hue_matrix(angles: Tensor) -> Tensor:
    """Rotations (B, 4, 4) about the grey axis by angles (B,); Rodrigues' formula."""
    axis = 1 / math.sqrt(3)
    cross = torch.zeros(4, 4, device=angles.device)
    cross[:3, :3] = torch.tensor([[0.0, -axis, axis], [axis, 0.0, -axis], [-axis, axis, 0.0]])
    sin, cos = angles.sin().view(-1, 1, 1), angles.cos().view(-1, 1, 1)
    return torch.eye(4, device=angles.device) + sin * cross + (1 - cos) * (cross @ cross)
