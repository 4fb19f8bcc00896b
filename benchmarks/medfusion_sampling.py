"""How much of the machine's convolution rate a Medfusion sample of the published size achieves.

    python benchmarks/medfusion_sampling.py [--checkpoint checkpoints/medfusion-cxr] [--n 258]

256 px, 8 latent channels, a UNet of 194M parameters, random weights. `Generator.sample` runs with 4 steps and the
decoder alone, the best of several runs each, as the peak is; from the two follows a whole sample of 150 steps. Weights
are prepared before the clock starts (`prepare_s`, once per process). Operations are those of all convolutions and
linear layers of the networks as published (a multiply-add is two), also where fewer of them give the same result.

The peer is a step of the same network as plain PyTorch runs it: NCHW, autocast for bf16. The samples of a trained
checkpoint in float32 and in bf16 are compared with real validation and test images (MEDGEN_DATA), too.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from frechet import frechet_distances, load_generator
from peak import convolution_peak, seconds
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medgen.families.medfusion.generator import MedfusionConfig, MedfusionGenerator
from medgen.generator import Precision

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "medfusion-cxr"
STEPS = 150
TIMED_STEPS = 4
TYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}
CASES: tuple[tuple[Precision, int], ...] = (("float32", 1), ("float32", 8), ("bf16", 1), ("bf16", 8))


def published_generator() -> MedfusionGenerator:
    """A generator of the published size whose zero-initialised convolutions have random weights too."""
    torch.manual_seed(0)
    generator = MedfusionGenerator(MedfusionConfig())
    for module in generator.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    return generator.eval()


def gflop(call: Callable[[], object]) -> float:
    """Operations of the convolutions and matrix products of a call, in 1e9."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def autocast(precision: Precision) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")


def measure(generator: MedfusionGenerator, precision: Precision, batch: int, repeats: int) -> dict[str, float]:
    """Seconds of a UNet step with all that goes with it, of decoding a batch, and of a plain UNet step."""
    latent = torch.randn(batch, *generator.config.latent_shape)
    t = torch.full((batch,), 500)

    def sample() -> object:
        return generator.sample(batch, seed=0, batch_size=batch, steps=TIMED_STEPS, precision=precision)

    start = time.perf_counter()
    sample()
    first = time.perf_counter() - start
    whole = min(seconds(sample, repeats))
    with torch.inference_mode(), autocast(precision):
        decode = min(seconds(lambda: generator.decode(latent), repeats))
        plain = min(seconds(lambda: generator.unet(latent, t), repeats))
    return {"step": (whole - decode) / TIMED_STEPS, "decode": decode, "plain_step": plain, "prepare": first - whole}


def speed(repeats: int) -> dict[str, float]:
    """Rates and shares of all cases."""
    generator = published_generator()
    latent, t = torch.randn(1, *generator.config.latent_shape), torch.zeros(1, dtype=torch.int64)
    with torch.inference_mode():
        unet = gflop(lambda: generator.unet(latent, t))
        decoder = gflop(lambda: generator.autoencoder.decoder(latent))
    result = {"unet_gflop": unet, "decoder_gflop": decoder}
    for precision, dtype in TYPES.items():
        peaks = [convolution_peak(dtype)]
        packed = convolution_peak(dtype, packed=True)
        rates = {}
        for case, batch in CASES:
            if case == precision:
                s = measure(generator, precision, batch, repeats)
                name = f"{precision}_b{batch}"
                rates[f"b{batch}"] = batch * (STEPS * unet + decoder) / (STEPS * s["step"] + s["decode"])
                result |= {
                    f"sample_s_{name}": STEPS * s["step"] + s["decode"],
                    f"sample_gflops_{name}": rates[f"b{batch}"],
                    f"unet_gflops_{name}": batch * unet / s["step"],
                    f"decoder_gflops_{name}": batch * decoder / s["decode"],
                    f"plain_unet_gflops_{name}": batch * unet / s["plain_step"],
                    f"prepare_s_{name}": s["prepare"],
                }
        peaks.append(convolution_peak(dtype))  # on a busy machine the rate changes while one measures
        prefix = "" if precision == "float32" else f"{precision}_"
        result |= {f"{precision}_peak_gflops": max(peaks), f"{precision}_packed_peak_gflops": packed}
        result |= {f"{prefix}peak_share_{batch}": rate / max(peaks) for batch, rate in rates.items()}
    return result


def quality(checkpoint: Path, n: int) -> dict[str, float]:
    """Fréchet distances of samples in float32 and in bf16."""
    generator = load_generator(checkpoint)
    found = frechet_distances(generator, n, {precision: {"precision": precision} for precision in TYPES})
    fd = {name: run.distance for name, run in found.items()}
    return {
        "n": n,
        "fd_float32": fd["float32"],
        "fd_bf16": fd["bf16"],
        "bf16_fd_ratio": fd["bf16"] / fd["float32"],
        "bf16_time_ratio": found["bf16"].seconds / found["float32"].seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="checkpoint whose bf16 samples to judge")
    parser.add_argument("--n", type=int, default=258, help="number of its samples")
    parser.add_argument("--repeats", type=int, default=3, help="runs per timing; the best counts")
    args = parser.parse_args()
    result = speed(args.repeats) | quality(args.checkpoint, args.n)
    rounded = {name: round(value, 3) for name, value in result.items()}
    print(
        json.dumps(
            {
                "benchmark": "medfusion_sampling",
                "threads": torch.get_num_threads(),
                "steps": STEPS,
                "timed_steps": TIMED_STEPS,
                "operations": "nominal, of the network as published",
                **rounded,
            }
        )
    )


if __name__ == "__main__":
    main()
