"""Drawing the codes of 256 px images of the published VQ-VAE2, against computing all rows above for every code.

    python benchmarks/pixelsnail_sampling.py [--batches 1 16] [--points 4]

Top map 32 x 32, bottom map 64 x 64, priors of 85 and 90 M parameters, random weights, float32. Ours is timed over both
whole maps, from weights as they are loaded. The peer is what the published loop does: for every code a pass of the same
network over all rows up to its own, with the map of conditions computed once. That would take hours, so a pass is timed
at several numbers of rows and the times, joined by straight lines, are summed over all codes; what drawing a code costs
is left out in its favour.

Two floors, from figures of the same run. Batch 1: the weights that each code needs come from memory for each code,
those for the rows above once per row; their bytes, at the rate at which a large array is copied (read and written).
Batch 16: the operations of one pass over both maps (a multiply-add is two), which give the logits of all codes once, at
the highest rate of a 3x3 convolution.
"""

import argparse
import json
import multiprocessing
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from peak import convolution_peak, seconds
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from medgen.families.vqvae2.generator import VQVAE2Config
from medgen.nn.pixelsnail import NormedConvolution, PixelSNAIL
from medgen.nn.pixelsnail_sampling import IncrementalPixelSNAIL, draw_codes

LEVELS = ("top", "bottom")
PEER = "a pass over all rows above for each code, timed at the stated numbers of rows and summed over the map"


class Naive:
    """Passes over the first rows of a map, as the published loop makes one for every code.

    Args:
        prior: The network.
        condition: The coarser map, where it has one.
        batch: Number of maps.
    """

    def __init__(self, prior: PixelSNAIL, condition: Tensor | None, batch: int) -> None:
        self.prior = prior
        self.condition = condition
        self.codes = torch.randint(prior.num_codes, (batch, *prior.size))
        moved = prior.condition_map(condition)
        prior.condition_map = lambda condition: moved  # type: ignore[method-assign]

    def __call__(self, rows: int) -> Tensor:
        """Logits of the last of the rows."""
        return self.prior(self.codes[:, :rows], self.condition)[:, :, -1]


def prior_and_condition(level: str, batch: int) -> tuple[PixelSNAIL, Tensor | None]:
    """A prior of the published size, and the coarser map it is conditioned on."""
    torch.manual_seed(0)
    config = VQVAE2Config()
    codes = config.autoencoder.num_codes
    if level == "top":
        return PixelSNAIL(config.top, size=config.top_size, num_codes=codes).eval(), None
    known = torch.randint(codes, (batch, *config.top_size))
    return PixelSNAIL(config.bottom, size=config.bottom_size, num_codes=codes, condition_codes=codes).eval(), known


@torch.inference_mode()
def ours_seconds(level: str, batch: int) -> float:
    """Seconds of drawing whole maps."""
    prior, condition = prior_and_condition(level, batch)
    uniform = torch.rand(batch, *prior.size)
    return seconds(lambda: draw_codes(prior, uniform, condition=condition), 1)[0]


@torch.inference_mode()
def naive_seconds(level: str, batch: int, points: int) -> dict[str, float]:
    """Seconds of drawing whole maps with a pass for every code, and those of single passes."""
    prior, condition = prior_and_condition(level, batch)
    height, width = prior.size
    run = Naive(prior, condition, batch)
    rows = [1, *(round(height * (i + 1) / points) for i in range(points))]
    run(1)
    times = [min(seconds(partial(run, n), 2 if batch == 1 else 1)) for n in rows]
    passes = {f"naive_pass_s_{level}_b{batch}_rows{n}": value for n, value in zip(rows, times, strict=True)}
    return {f"naive_s_{level}_b{batch}": width * sum_between(rows, times), **passes}


def sum_between(places: Sequence[int], values: Sequence[float]) -> float:
    """The sum over all whole numbers from the first place to the last, of straight lines between values."""
    steps = zip(pairwise(places), pairwise(values), strict=True)
    inner = sum((b - a) * (first + last) / 2 for (a, b), (first, last) in steps)
    return inner + (values[0] + values[-1]) / 2


def weight_bytes(prior: PixelSNAIL) -> float:
    """Bytes of weights that drawing one map needs, each code's and each row's anew."""
    height, width = prior.size
    per_code = per_row = 0
    for name, layer in prior.named_modules():
        if not isinstance(layer, NormedConvolution) or name.startswith(("condition", "above", "left")):
            continue  # the first layer's are looked up, the coarser map is read once
        out_channels, in_channels, kernel_height, kernel_width = layer.weight_v.shape
        if kernel_height > 1:
            per_code += out_channels * in_channels * (kernel_width // 2)
            per_row += out_channels * in_channels * (kernel_height - 1) * kernel_width
        elif not name.endswith(".condition"):
            per_code += out_channels * in_channels
        else:
            per_row += out_channels * in_channels
    return 4.0 * height * (width * per_code + per_row)


def copy_rate() -> float:
    """Bytes read and written per second when a large array is copied."""
    source = torch.ones(2**28)
    target = torch.empty_like(source)
    return 2 * 4 * len(source) / min(seconds(lambda: target.copy_(source), 5))


@torch.inference_mode()
def operations() -> float:
    """Operations of one pass over both maps."""
    total = 0
    for level in LEVELS:
        prior, condition = prior_and_condition(level, 1)
        with FlopCounterMode(display=False) as counter:
            prior(torch.zeros(1, *prior.size, dtype=torch.int64), condition)
        total += counter.get_total_flops()
    return float(total)


def peak_memory(kind: str, batch: int) -> float:
    """Megabytes that drawing the bottom map takes beside its network, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_watched, (kind, batch))


@torch.inference_mode()
def _watched(kind: str, batch: int) -> float:
    prior, condition = prior_and_condition("bottom", batch)
    height, width = prior.size
    before = _high_water()
    if kind == "naive":
        Naive(prior, condition, batch)(height)
    else:
        machine = IncrementalPixelSNAIL(prior, batch, condition)
        for _ in range(2 * width):  # all it keeps of a map has its place from the start
            machine.logits()
            machine.put(torch.zeros(batch, dtype=torch.int64))
    return (_high_water() - before) / 1e3


def _high_water() -> int:
    """The most memory this process ever had, in kB; what `resource` says includes that of the one that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="images drawn together")
    parser.add_argument("--points", type=int, default=4, help="numbers of rows at which the peer's pass is timed")
    args = parser.parse_args()
    copies, peaks = [copy_rate()], [convolution_peak(torch.float32)]
    result = {
        "gflop_per_image": operations() / 1e9,
        "weights_gb_per_image": sum(weight_bytes(prior_and_condition(level, 1)[0]) for level in LEVELS) / 1e9,
    }
    for batch in args.batches:
        ours = naive = 0.0
        for level in LEVELS:
            found = result[f"ours_s_{level}_b{batch}"] = ours_seconds(level, batch)
            peer = naive_seconds(level, batch, args.points)
            print(f"batch {batch}, {level}: ours {found:.1f} s, {json.dumps(peer)}", flush=True)
            result |= peer
            ours, naive = ours + found, naive + peer[f"naive_s_{level}_b{batch}"]
        result |= {
            f"ours_s_b{batch}": ours,
            f"ours_memory_mb_b{batch}": peak_memory("ours", batch),
            f"naive_memory_mb_b{batch}": peak_memory("naive", batch),
            f"ratio_b{batch}": naive / ours,
        }
    # On a busy machine rates change while one measures: shares are of the higher ones.
    copies.append(copy_rate())
    peaks.append(convolution_peak(torch.float32))
    result |= {"copy_gb_per_s": max(copies) / 1e9, "peak_gflops": max(peaks)}
    for batch in args.batches:
        ours = result[f"ours_s_b{batch}"]
        result |= {
            f"bandwidth_share_b{batch}": result["weights_gb_per_image"] / result["copy_gb_per_s"] / ours,
            f"peak_share_b{batch}": batch * result["gflop_per_image"] / result["peak_gflops"] / ours,
        }
    rounded = {name: round(value, 3) for name, value in result.items()}
    about = {"benchmark": "pixelsnail_sampling", "threads": torch.get_num_threads(), "peer": PEER}
    print(json.dumps(about | rounded))


if __name__ == "__main__":
    main()
