"""SPADE's generator on a CPU, beside the residual blocks of MONAI's SPADENet.

    pip install monai
    python benchmarks/spade.py [--size 256] [--width 64] [--repeats 3]

One channel, four classes, no styles, batch normalisation, random weights, float32, no gradients; batch 1 and 4.

- ``heart``: label maps of a disc in a ring, beside another disc; most pixels have the same around them as others.
- ``noise``: label maps in which hardly two pixels have, so that nothing can be looked up.

The peer is the same network made of MONAI's blocks (``ratio``: its time over ours, of ``heart``). SPADENet itself has
another layout: its last block is at half the resolution, and gives the image's channels; its rate is noted, too.

Shares are of the highest rate of a 3x3 convolution in the same run; operations are those of the networks as they are
written (a multiply-add is two). Ours looks up much of what it would have to compute, so that a share can exceed 1.
"""

import argparse
import json
from collections.abc import Callable

import torch
import torch.nn.functional as F
from monai.networks.nets import SPADENet
from monai.networks.nets.spade_network import SPADENetResBlock
from peak import convolution_peak, seconds
from torch import Tensor, nn

from medgen.families.spade.config import SPADEConfig
from medgen.families.spade.networks import SPADESynthesis, semantic_map
from medgen.nn.inference import for_inference

CLASSES = 4


class Peer(nn.Module):
    """The layout of our generator, of the peer's blocks."""

    def __init__(self, config: SPADEConfig) -> None:
        super().__init__()
        self.config = config
        self.start = nn.Conv2d(CLASSES, config.base_width, 3, padding=1)
        self.blocks = nn.ModuleList(
            SPADENetResBlock(
                2, stage.in_channels, stage.out_channels, CLASSES, config.hidden, norm=("BATCH", {"affine": False})
            )
            for stage in config.stages
        )
        self.to_image = nn.Conv2d(config.stages[-1].out_channels, config.channels, 3, padding=1)

    def forward(self, semantic: Tensor) -> Tensor:
        x = self.start(F.interpolate(semantic, size=self.config.base))
        for block, stage in zip(self.blocks, self.config.stages, strict=True):
            if stage.upsamples:
                x = F.interpolate(x, scale_factor=2.0)
            x = block(x, semantic)
        return self.to_image(F.leaky_relu(x, 0.2)).tanh()


def hearts(batch: int, size: int) -> Tensor:
    """Label maps with a disc in a ring, beside another disc, at another place in each."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    masks = torch.zeros(batch, size, size, dtype=torch.int64)
    for i, mask in enumerate(masks):
        distance = (rows - 0.07 * i).square() + (columns - 0.05 * i).square()
        mask[(rows + 0.1).square() + (columns + 0.35).square() < 0.1] = 1
        mask[distance < 0.12] = 2
        mask[distance < 0.06] = 3
    return masks


def noise(batch: int, size: int) -> Tensor:
    """Label maps of a class by chance in every pixel."""
    return torch.randint(CLASSES, (batch, size, size), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def operations(network: nn.Module, *inputs: Tensor) -> int:
    """Operations of a network's convolutions and linear layers."""
    total = 0

    def count(layer: nn.Module, _: object, out: Tensor) -> None:
        nonlocal total
        total += 2 * out.numel() * layer.weight[0].numel()

    hooks = [
        layer.register_forward_hook(count) for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    network(*inputs)
    for hook in hooks:
        hook.remove()
    return total


@torch.inference_mode()
def fastest(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of several calls, after one that is not timed."""
    call()
    return min(seconds(call, repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="height and width of the images")
    parser.add_argument("--width", type=int, default=64, help="channels at full resolution")
    parser.add_argument("--repeats", type=int, default=3, help="how often everything is timed")
    arguments = parser.parse_args()
    size, width, repeats = arguments.size, arguments.width, arguments.repeats
    result: dict[str, float] = {}

    def note(**numbers: float) -> None:
        result.update(numbers)
        print(", ".join(f"{name} {number:.3g}" for name, number in numbers.items()), flush=True)

    torch.manual_seed(0)
    config = SPADEConfig(
        image_size=(size, size), channels=1, mask_names=tuple(map(str, range(CLASSES))), width=width, style="none"
    )
    ours, peer = SPADESynthesis(config).eval(), Peer(config).eval()
    whole = SPADENet(
        2, 1, 1, CLASSES, [size, size], [2 * width, 4 * width, 8 * width, 16 * width, 16 * width], is_vae=False
    ).eval()
    peak = convolution_peak(torch.float32)
    note(peak_gflops=peak)
    for batch in (1, 4):
        semantic = semantic_map(hearts(batch, size), CLASSES)
        work = operations(ours, semantic) / 1e9
        for name, masks in (("heart", hearts), ("noise", noise)):
            drawn = semantic_map(masks(batch, size), CLASSES)
            with torch.inference_mode():
                fast = for_inference(ours)
            time = fastest(lambda fast=fast, drawn=drawn: fast(drawn), repeats)
            note(
                **{
                    f"{name}_images_per_s_b{batch}": batch / time,
                    f"{name}_gflops_b{batch}": work / time,
                    f"{name}_peak_share_b{batch}": work / time / peak,
                }
            )
        peer_time = fastest(lambda semantic=semantic: peer(semantic), repeats)
        note(
            **{
                f"peer_images_per_s_b{batch}": batch / peer_time,
                f"ratio_b{batch}": peer_time * result[f"heart_images_per_s_b{batch}"] / batch,
                f"ratio_noise_b{batch}": peer_time * result[f"noise_images_per_s_b{batch}"] / batch,
            }
        )
        whole_time = fastest(lambda semantic=semantic: whole(semantic), repeats)
        note(
            **{
                f"spadenet_images_per_s_b{batch}": batch / whole_time,
                f"spadenet_gflops_b{batch}": operations(whole, semantic) / whole_time / 1e9,
            }
        )
    for name in ("ratio", "ratio_noise", "heart_peak_share", "noise_peak_share"):
        note(**{name.removeprefix("heart_"): min(result[f"{name}_b1"], result[f"{name}_b4"])})
    rounded = {name: round(number, 3) for name, number in result.items()}
    print(
        json.dumps({"benchmark": "spade", "threads": torch.get_num_threads(), "size": size, "width": width, **rounded})
    )


if __name__ == "__main__":
    main()
