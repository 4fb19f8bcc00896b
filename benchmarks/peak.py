"""The rate of convolutions on this machine, which every other benchmark is measured against.

    python benchmarks/peak.py

Best of several 3x3 convolutions as PyTorch runs them (channels last, best of several calls), and as
`medgen.nn.inference` runs them, with their weights already in the kernel's layout. The former is what shares refer to.
"""

import json
import time
from collections.abc import Callable

import torch
from torch import nn

from medgen.nn.inference import PackedConvolution

SHAPES = ((8, 256, 32), (1, 256, 32), (8, 64, 128), (1, 64, 256), (8, 512, 16))
"""Batch, channels, and side of the image in pixels."""


def seconds(call: Callable[[], object], repeats: int) -> list[float]:
    """The times of `repeats` calls, with what they left running on a GPU."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times


@torch.inference_mode()
def convolution_peak(dtype: torch.dtype, *, packed: bool = False, repeats: int = 6) -> float:
    """The highest rate of a 3x3 convolution, in GFLOP/s; a multiply-add is two operations."""
    best = 0.0
    for batch, channels, side in SHAPES:
        x = torch.randn(batch, channels, side, side).to(dtype, memory_format=torch.channels_last)
        conv = nn.Conv2d(channels, channels, 3, padding=1).to(dtype).to(memory_format=torch.channels_last)
        run = PackedConvolution(conv, dtype) if packed else conv
        operations = 2 * batch * side**2 * channels**2 * 9
        best = max(best, operations / min(seconds(lambda run=run, x=x: run(x), repeats)) / 1e9)
    return best


def main() -> None:
    types = {"float32": torch.float32, "bf16": torch.bfloat16}
    result = {
        f"{name}_gflops{suffix}": round(convolution_peak(dtype, packed=packed), 1)
        for name, dtype in types.items()
        for suffix, packed in (("", False), ("_packed", True))
    }
    print(json.dumps({"benchmark": "peak", "threads": torch.get_num_threads(), **result}))


if __name__ == "__main__":
    main()
