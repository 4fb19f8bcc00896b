"""StyleGAN2 on a CPU or a GPU: the generator, and full cycles of training, beside the package stylegan2-torch.

    pip install stylegan2-torch
    python benchmarks/stylegan2.py [--batch 4] [--repeats 2] [--device cuda]

The peer has its resampling as a CUDA kernel only; here it runs on convolutions of torch, all else is its own. On a GPU,
where it needs more such kernels, it is left out.

Both have the widths of the published ``paper256``, random weights, float32, one channel (the peer knows no other), no
labels, no augmentation.

- The generator at 256 px, from styles to images, batch 1 and 8, without gradients.
- A cycle of training at 64 and 128 px: 16 batches of the generator's and the discriminator's loss, 4 of path length and
  1 of R1, with their backward passes and Adam steps. Each kind of step is timed alone, the least of several times, and
  the times are added up by how often each is made.

Shares are of the highest rate of a 3x3 convolution in the same run; operations are those of our networks as PyTorch
counts them (a multiply-add is two). ``bf16_speedup`` is of the cycle at 128 px under autocast; it is left out
on processors without bfloat16 instructions, which emulate them. On a GPU, convolutions in float32 are in TF32, as
PyTorch makes them unless told otherwise.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import SimpleNamespace

import torch
import torch.nn.functional as F
import torch.utils.cpp_extension
from peak import convolution_peak, seconds
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from medgen.families.stylegan2.config import StyleGAN2Config
from medgen.families.stylegan2.generator import StyleGAN2Generator
from medgen.families.stylegan2.modules import StyleGAN2Module, adam_settings
from medgen.nn.inference import for_inference


def resample(
    x: Tensor,
    kernel: Tensor,
    up_x: int,
    up_y: int,
    down_x: int,
    down_y: int,
    left: int,
    right: int,
    above: int,
    below: int,
) -> Tensor:
    """What the peer has as a CUDA kernel only, from convolutions of torch: zeros, filter, every n-th pixel."""
    images, _, height, width = x.shape
    if up_x * up_y > 1:
        x = F.pad(x.view(images, 1, height, 1, width, 1), [0, up_x - 1, 0, 0, 0, up_y - 1])
        x = x.view(images, 1, height * up_y, width * up_x)
    return F.conv2d(F.pad(x, [left, right, above, below]), kernel.flip(0, 1)[None, None], stride=(down_y, down_x))


# The peer compiles CUDA kernels when it is imported, also where there is no CUDA.
torch.utils.cpp_extension.load = lambda *args, **options: SimpleNamespace(upfirdn2d=resample)
from stylegan2_torch import Discriminator, Generator, d_loss, d_reg_loss, g_loss, g_reg_loss  # noqa: E402

CYCLE = {"generator": 16, "path_length": 4, "discriminator": 16, "r1": 1}
"""How often each kind of step is made in 16 batches."""


class Operations(TorchDispatchMode):
    """Counts the operations of everything inside; unlike `FlopCounterMode`, also without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def config(side: int) -> StyleGAN2Config:
    """The sizes of ``paper256`` at an image size."""
    return StyleGAN2Config(image_size=(side, side), channels=1)


def widths(side: int) -> dict[int, int]:
    """Widths by resolution, as the peer takes them."""
    sizes = config(side)
    return {4 << level: sizes.width(level) for level in range(sizes.num_upsamplings + 1)}


def has_peer() -> bool:
    """Whether the peer runs here."""
    return torch.get_default_device().type == "cpu"


def generator_times(batch: int, repeats: int) -> tuple[float, float | None, float]:
    """Seconds of our and of the peer's generator, and operations of ours."""
    torch.manual_seed(0)
    ours, peer = StyleGAN2Generator(config(256)).eval(), Generator(256, channels=widths(256)).eval()
    styles = torch.randn(batch, 512)
    expanded, noise = styles[:, None].repeat(1, config(256).num_ws, 1), ours.synthesis.fixed_noise()
    with torch.inference_mode():
        fast = for_inference(ours.synthesis)
        calls = [lambda: fast(expanded, *noise)]
        if has_peer():
            calls.append(lambda: peer([styles], input_type="w"))
        for call in calls:
            call()
        ours_s, *peer_s = (min(seconds(call, repeats)) for call in calls)
    with torch.no_grad(), Operations() as operations:
        ours.synthesis(expanded, *noise)
    return ours_s, peer_s[0] if peer_s else None, operations.total


def step_of(
    network: nn.Module, other: nn.Module, interval: int | None, loss: Callable[[], Tensor], *, fused: bool = False
) -> Callable[[], None]:
    """One training step of a network, the other one being left alone; ours fuses Adam, the peer leaves it to torch."""
    optimizer = torch.optim.Adam(network.parameters(), fused=fused, **adam_settings(0.0025, interval))

    def step() -> None:
        for module, trained in ((network, True), (other, False)):
            module.requires_grad_(requires_grad=trained)
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_steps(side: int, batch: int) -> dict[str, Callable[[], None]]:
    """Our four kinds of steps."""
    torch.manual_seed(0)
    module = StyleGAN2Module(config(side), gamma=1.0, augment="none", style_mixing=0.0)
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    real = torch.rand(batch, 1, side, side) * 2 - 1
    g, d = module.generator, module.discriminator
    return {
        "generator": step_of(g, d, 4, lambda: module.generator_loss(real, None), fused=True),
        "path_length": step_of(g, d, 4, lambda: 4 * module.path_length_loss(batch, None), fused=True),
        "discriminator": step_of(d, g, 16, lambda: module.discriminator_loss(real, None), fused=True),
        "r1": step_of(d, g, 16, lambda: 16 * module.r1_loss(real, None), fused=True),
    }


def peer_steps(side: int, batch: int) -> dict[str, Callable[[], None]]:
    """The same of the peer, by its own losses."""
    torch.manual_seed(0)
    g, d = Generator(side, channels=widths(side)), Discriminator(side, channels=widths(side))
    real = torch.rand(batch, 1, side, side) * 2 - 1

    def generator_loss() -> Tensor:
        return g_loss(d(g([torch.randn(batch, 512)])))

    def path_length_loss() -> Tensor:
        images, styles = g([torch.randn(max(1, batch // 2), 512)], return_latents=True)
        return 4 * 2 * g_reg_loss(images, styles, 0)[0]

    def discriminator_loss() -> Tensor:
        with torch.no_grad():
            fake = g([torch.randn(batch, 512)])
        return d_loss(d(real), d(fake))

    def r1_loss() -> Tensor:
        images = real.clone().requires_grad_()
        return 16 * 0.5 * d_reg_loss(d(images), images)

    return {
        "generator": step_of(g, d, 4, generator_loss),
        "path_length": step_of(g, d, 4, path_length_loss),
        "discriminator": step_of(d, g, 16, discriminator_loss),
        "r1": step_of(d, g, 16, r1_loss),
    }


def cycle_seconds(steps: Mapping[str, Callable[[], None]], repeats: int, dtype: torch.dtype | None = None) -> float:
    """Seconds of a whole cycle."""
    with torch.autocast(torch.get_default_device().type, dtype) if dtype else nullcontext():
        return sum(CYCLE[name] * min(seconds(step, repeats)) for name, step in steps.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4, help="images per batch of training")
    parser.add_argument("--repeats", type=int, default=2, help="how often everything is timed")
    parser.add_argument("--device", default="cpu", help="where everything runs")
    arguments = parser.parse_args()
    torch.set_default_device(arguments.device)
    result: dict[str, float] = {}

    def note(**numbers: float) -> None:
        result.update(numbers)
        print(", ".join(f"{name} {number:.3g}" for name, number in numbers.items()), flush=True)

    peak = convolution_peak(torch.float32)
    note(peak_gflops=peak)
    for batch in (1, 8):
        ours, peer, operations = generator_times(batch, arguments.repeats + 1)
        rate = operations / ours / 1e9
        note(**{f"g_images_per_s_b{batch}": batch / ours, f"g_gflops_b{batch}": rate})
        note(**{f"peak_share_g_b{batch}": rate / peak})
        if peer is not None:
            note(**{f"g_peer_images_per_s_b{batch}": batch / peer, f"ratio_g_b{batch}": peer / ours})
    for side in (64, 128):
        steps = our_steps(side, arguments.batch)
        total = 0
        for name, step in steps.items():
            with Operations() as operations_of:
                step()
            total += CYCLE[name] * operations_of.total
        ours = cycle_seconds(steps, arguments.repeats)
        note(**{f"cycle_s_{side}": ours, f"peak_share_cycle_{side}": total / ours / 1e9 / peak})
        if has_peer():
            peer = cycle_seconds(peer_steps(side, arguments.batch), arguments.repeats)
            note(**{f"peer_cycle_s_{side}": peer, f"ratio_cycle_{side}": peer / ours})
    note(peak_share_cycle=min(result["peak_share_cycle_64"], result["peak_share_cycle_128"]))
    if arguments.device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        note(bf16_speedup=ours / cycle_seconds(our_steps(128, arguments.batch), arguments.repeats, torch.bfloat16))
    else:
        print("bf16_speedup is left out: this processor has no bfloat16 instructions", flush=True)
    rounded = {name: round(number, 3) for name, number in result.items()}
    print(
        json.dumps(
            {
                "benchmark": "stylegan2",
                "device": arguments.device,
                "threads": torch.get_num_threads(),
                "batch": arguments.batch,
                **rounded,
            }
        )
    )


if __name__ == "__main__":
    main()
