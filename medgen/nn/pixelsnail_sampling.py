"""Incremental sampling from a PixelSNAIL; equal to the network up to rounding.

Activations at a pixel depend on earlier codes only and never change, so each is computed once:

- A causal convolution sees rows above and pixels to the left. The part of the rows above is computed once per row, as
  an ordinary convolution; each pixel adds its left neighbours, a tenth of the weights.
- No causal convolution sees its own pixel, so the convolutions of all residual blocks are independent of one another
  at a pixel and run as one batched product.
- Attention caches the keys and values of earlier pixels.
- The first layer's convolutions of one-hot codes are sums of rows of their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from medgen.nn.inference import for_inference
from medgen.nn.pixelsnail import HEADS, GatedResidualBlock, NormedConvolution, PixelBlock, PixelSNAIL


class _CausalLayers:
    """L causal convolutions of equal shape, one per residual block, at the row that is being drawn."""

    def __init__(self, layers: Sequence[NormedConvolution], batch: int, width: int) -> None:
        weights = torch.stack([layer.weight for layer in layers])  # (L, out, in, height, width)
        height, self.left = weights.shape[-2] - 1, weights.shape[-1] // 2
        self.width = width
        self.above = [
            _convolution(layer, weight[:, :, :-1], self.left) for layer, weight in zip(layers, weights, strict=True)
        ]
        # Weights of the left neighbours as matrices, (L, left * in, out)
        self.beside = weights[:, :, :, -1, : self.left].permute(0, 3, 2, 1).flatten(1, 2).contiguous()
        channels = weights.shape[2]
        like = weights.new_zeros
        self.rows = like(len(layers), batch, height, width, channels)  # rows above, the nearest last
        self.row = like(len(layers), batch, self.left + width, channels)
        self.sums = like(len(layers), batch, width, weights.shape[1])

    def begin_row(self) -> None:
        """Compute the contributions of the rows above."""
        for layer, convolution in enumerate(self.above):
            rows = self.rows[layer].permute(0, 3, 1, 2)  # channels last in memory
            self.sums[layer] = convolution(rows)[:, :, 0].transpose(1, 2)

    def at(self, column: int) -> Tensor:
        """Outputs of all layers at a pixel, (L, B, out)."""
        neighbours = self.row[:, :, column : column + self.left].flatten(2)
        return torch.baddbmm(self.sums[:, :, column], neighbours, self.beside)

    def put(self, column: int, values: Tensor) -> None:
        """Store the inputs of all layers at a pixel, (L, B, in), for later pixels."""
        self.row[:, :, self.left + column] = values

    def end_row(self) -> None:
        """Append the finished row to the rows above."""
        self.rows = torch.cat([self.rows[:, :, 1:], self.row[:, :, None, self.left :]], dim=2)


def _convolution(layer: NormedConvolution, weight: Tensor, left: int) -> Callable[..., Tensor]:
    """The part of a layer that sees the rows above, as an ordinary convolution."""
    out_channels, in_channels, height, width = weight.shape
    # On the meta device, since initial weights would be drawn from the global random stream
    plain = nn.Conv2d(in_channels, out_channels, (height, width), padding=(0, left), device="meta")
    plain.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
    assert layer.bias is not None
    plain.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return for_inference(plain.eval())


@dataclass
class _Linear:
    """A pointwise convolution as a matrix, (in, out)."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, layer: NormedConvolution) -> _Linear:
        return cls(layer.weight[:, :, 0, 0].T.contiguous(), layer.bias)

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)


class _Pointwise:
    """A residual block of pointwise convolutions."""

    def __init__(self, block: GatedResidualBlock) -> None:
        self.first, self.second = _Linear.of(block.first), _Linear.of(block.second)
        self.auxiliary = _Linear.of(block.auxiliary) if block.auxiliary is not None else None

    def __call__(self, x: Tensor, auxiliary: Tensor | None = None) -> Tensor:
        out = self.first(F.elu(x))
        if self.auxiliary is not None and auxiliary is not None:
            out = out + self.auxiliary(F.elu(auxiliary))
        return x + F.glu(self.second(F.elu(out)), dim=1)


class _BlockEnd:
    """The end of a `PixelBlock`: attention over earlier pixels, or a pointwise layer with the position."""

    def __init__(self, block: PixelBlock, batch: int, pixels: int) -> None:
        self.attends = block.has_attention
        if not self.attends:
            self.place = _Linear.of(block.place)
            return
        self.key_block, self.query_block = _Pointwise(block.key_block), _Pointwise(block.query_block)
        self.merge = _Pointwise(block.merge)
        attention = block.attention
        layers = (attention.query, attention.key, attention.value)
        self.query, self.key, self.value = map(_Linear.of, layers)
        channels = attention.query.weight.shape[0]
        self.keys, self.values = attention.query.weight.new_zeros(2, batch, HEADS, pixels, channels // HEADS)

    def __call__(self, before: Tensor, out: Tensor, place: Tensor, pixel: int) -> Tensor:
        """Map the block's input and the output of its residual blocks, both (B, C), to (B, C)."""
        if not self.attends:
            return self.place(torch.cat([out, place], dim=1))
        key = self.key_block(torch.cat([before, out, place], dim=1))
        self.keys[:, :, pixel] = self.key(key).unflatten(1, (HEADS, -1))
        self.values[:, :, pixel] = self.value(key).unflatten(1, (HEADS, -1))
        query = self.query(self.query_block(torch.cat([out, place], dim=1))).unflatten(1, (HEADS, 1, -1))
        if pixel == 0:
            found = torch.zeros_like(query)
        else:
            found = F.scaled_dot_product_attention(query, self.keys[:, :, :pixel], self.values[:, :, :pixel])
        return self.merge(out, found.flatten(1))


class IncrementalPixelSNAIL:
    """A PixelSNAIL evaluated pixel by pixel in reading order: call `logits`, then `put`, for every pixel.

    Args:
        prior: Network in evaluation mode.
        batch: Number of maps drawn together.
        condition: Coarser map, (B, H / 2, W / 2), if the prior has one.
        label: Conditions, (B,) or (B, K), or None.
    """

    def __init__(
        self, prior: PixelSNAIL, batch: int, condition: Tensor | None = None, label: Tensor | None = None
    ) -> None:
        height, width = prior.size
        self.width = width
        self.prior = prior
        weight = prior.to_logits.weight_v
        prior.check(torch.zeros(batch, height, width, dtype=torch.int64, device=weight.device), condition)
        ends = [cast("PixelBlock", block) for block in prior.blocks]
        blocks = [cast("GatedResidualBlock", block) for end in ends for block in end.residual]
        self.first = _CausalLayers([block.first for block in blocks], batch, width)
        self.second = _CausalLayers([block.second for block in blocks], batch, width)
        self.ends = [_BlockEnd(block, batch, height * width) for block in ends]
        self.last = [_Pointwise(cast("GatedResidualBlock", block)) for block in prior.last]
        self.to_logits = _Linear.of(prior.to_logits)
        self.places = prior.place(weight)[0].flatten(1).T.contiguous()  # (H W, 2)
        self.condition = _condition_terms(prior, blocks, condition)
        self.label = _label_terms(prior, blocks, label)
        self.stem = _Stem(prior, batch)
        self.batch = batch
        self.pixel = 0

    def logits(self) -> Tensor:
        """Logits of the next code, (B, num_codes)."""
        row, column = divmod(self.pixel, self.width)
        if column == 0:
            self._begin_row(row)
        hidden = F.elu(self.first.at(column))  # (L, B, hidden)
        gates = F.glu(self.second.at(column), dim=2)  # (L, B, C)
        self.second.put(column, hidden)
        place = self.places[self.pixel].expand(self.batch, -1)
        x = self.stem.at(row, column)
        inputs, layer = [], 0
        for end in self.ends:
            before = x
            for _ in range(self.prior.config.residual_blocks):
                inputs.append(x)
                x = x + gates[layer]
                layer += 1
            x = end(before, x, place, self.pixel)
        self.first.put(column, F.elu(torch.stack(inputs)))
        for block in self.last:
            x = block(x)
        return self.to_logits(F.elu(x))

    def put(self, codes: Tensor) -> None:
        """Store the next codes, (B,). Call `logits` first even if its result is not needed."""
        row, column = divmod(self.pixel, self.width)
        self.stem.put(row, column, codes)
        if column == self.width - 1:
            self.first.end_row()
            self.second.end_row()
        self.pixel += 1

    def _begin_row(self, row: int) -> None:
        self.first.begin_row()
        self.second.begin_row()
        if self.condition is not None:
            self.second.sums += self.condition(row)
        if self.label is not None:
            self.second.sums += self.label


class _Stem:
    """The first layer: each earlier code adds one row of a weight table."""

    def __init__(self, prior: PixelSNAIL, batch: int) -> None:
        kernel, (height, width) = prior.config.kernel_size, prior.size
        self.half, self.width, self.codes = kernel // 2, width, prior.num_codes
        # Taps over the rows above, then over the pixels to the left; each has one vector per code, and zeros for
        # pixels outside the map.
        above, left = prior.above.weight, prior.left.weight
        self.taps = [(y - self.half, x - self.half) for y in range(self.half) for x in range(kernel)]
        self.taps += [(y - self.half, x - self.half) for y in range(self.half + 1) for x in range(self.half)]
        table = torch.cat([above.flatten(2), left.flatten(2)], dim=2).permute(2, 1, 0)  # (taps, codes, C)
        self.table = F.pad(table, (0, 0, 0, 1)).flatten(0, 1).contiguous()
        self.offsets = (torch.arange(len(self.taps), device=table.device) * (self.codes + 1))[:, None]
        assert prior.above.bias is not None
        assert prior.left.bias is not None
        self.above_bias, self.left_bias = prior.above.bias.detach(), prior.left.bias.detach()
        shape = (batch, self.half + height, self.half + width + self.half)
        self.map = torch.full(shape, self.codes, device=table.device)  # the code of pixels outside the map

    def at(self, row: int, column: int) -> Tensor:
        """Output (B, C) at a pixel; a bias is added only if there are pixels above, or to the left."""
        above = self.half * (2 * self.half + 1)
        total = self.above_bias.new_zeros(len(self.map), len(self.above_bias))
        if row:
            total += self._sum(row, column, slice(0, above)) + self.above_bias
        if column:
            total += self._sum(row, column, slice(above, None)) + self.left_bias
        return total

    def _sum(self, row: int, column: int, taps: slice) -> Tensor:
        codes = torch.stack([self.map[:, self.half + row + y, self.half + column + x] for y, x in self.taps[taps]])
        return F.embedding(codes + self.offsets[taps], self.table).sum(0)

    def put(self, row: int, column: int, codes: Tensor) -> None:
        """Store the codes (B,) of a pixel."""
        self.map[:, self.half + row, self.half + column] = codes


def _condition_terms(
    prior: PixelSNAIL, blocks: Sequence[GatedResidualBlock], condition: Tensor | None
) -> Callable[[int], Tensor] | None:
    """A function of the row: what the coarser map adds before the gates of all blocks, (L, B, W, 2 C)."""
    features = prior.condition_map(condition)
    if features is None:
        return None
    weights = torch.stack([block.condition.weight[:, :, 0, 0].T for block in blocks if block.condition is not None])
    rows = features.permute(2, 0, 3, 1).contiguous()  # (H, B, W, channels)

    def terms(row: int) -> Tensor:
        flat = rows[row].flatten(0, 1).expand(len(weights), -1, -1)
        return cast("Tensor", torch.bmm(flat, weights).unflatten(1, rows.shape[1:3]))

    return terms


def _label_terms(prior: PixelSNAIL, blocks: Sequence[GatedResidualBlock], label: Tensor | None) -> Tensor | None:
    """Terms of the label before the gates of all blocks, (L, B, 1, 2 C)."""
    vector = prior.label_vector(label)
    if vector is None:
        return None
    return torch.stack([block.label(vector) for block in blocks if block.label is not None])[:, :, None]


@dataclass(frozen=True)
class Choice:
    """Rule for drawing a code from logits.

    Attributes:
        temperature: Divisor of the logits; below 1 favours likely codes.
        top_k: Number of likeliest codes to draw from; None for all.
        top_p: Draw from the likeliest codes whose joint probability reaches this; None for all codes.
        level: Prefix of the option names in error messages.

    Raises:
        ValueError: If an option is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    level: str = ""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"{self.level}temperature is {self.temperature}; use a number above 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"{self.level}top_k is {self.top_k}; use at least 1, or None for all codes")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(
                f"{self.level}top_p is {self.top_p}; use a probability above 0 and up to 1, or None for all codes"
            )

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Invert the cumulative distribution of logits (B, num_codes) at numbers (B,) in [0, 1); codes (B,)."""
        logits = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[1]:
            least = logits.topk(self.top_k, dim=1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            ranked, order = logits.softmax(1).sort(dim=1, descending=True)
            beyond = ranked.cumsum(1) - ranked >= self.top_p  # the first is never beyond
            logits = logits.masked_fill(beyond.gather(1, order.argsort(1)), -torch.inf)
        cumulative = logits.softmax(1).double().cumsum(1)
        passed = cumulative / cumulative[:, -1:] <= uniform[:, None].double()
        return passed.sum(1)


@torch.inference_mode()
def draw_codes(
    prior: PixelSNAIL,
    uniform: Tensor,
    *,
    condition: Tensor | None = None,
    label: Tensor | None = None,
    choice: Choice | None = None,
    given: Tensor | None = None,
    progress: bool = False,
) -> Tensor:
    """Draw maps of codes (B, H, W) in reading order by inverting cumulative probabilities.

    Args:
        prior: Network in evaluation mode.
        uniform: Uniform numbers in [0, 1), (B, H, W).
        condition: Coarser map, (B, H / 2, W / 2), if the prior has one.
        label: Conditions, (B,) or (B, K), or None.
        choice: Drawing rule; None draws by the probabilities as they are.
        given: Codes of the first rows, (B, h, W), which are kept.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If codes do not fit the prior.
    """
    height, width = prior.size
    choice = choice or Choice()
    if uniform.shape[1:] != (height, width):
        raise ValueError(f"uniform has shape {tuple(uniform.shape)}; this prior draws (B, {height}, {width})")
    if given is not None:
        prior.check(given, condition)
        if len(given) != len(uniform):
            raise ValueError(f"there are given codes of {len(given)} maps, but {len(uniform)} are drawn")
    machine = IncrementalPixelSNAIL(prior, len(uniform), condition, label)
    codes = torch.zeros(uniform.shape, dtype=torch.int64, device=uniform.device)
    for row in tqdm(range(height), desc="rows", leave=False, disable=not progress):
        for column in range(width):
            logits = machine.logits()
            if given is not None and row < given.shape[1]:
                codes[:, row, column] = given[:, row, column]
            else:
                codes[:, row, column] = choice(logits, uniform[:, row, column])
            machine.put(codes[:, row, column])
    return codes
