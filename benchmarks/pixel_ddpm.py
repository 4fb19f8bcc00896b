"""What the CPU time of medfusion-cxr buys with a pixel-space DDPM of diffusers: `python benchmarks/pixel_ddpm.py`.

Trains diffusers' UNet2DModel (8 M parameters, class-conditional) on the train split that medfusion-cxr was trained on,
with what its recipes use: bfloat16 autocast, shifted copies, warm-up and cosine, an average of the weights. Then it
draws as many images as val and test have, in float32 with 100 ancestral steps (deterministic ones leave grain in a
network of so little training, or diverge), and measures the Fréchet distance in EfficientNet-Lite0 features for both
models. CPU minutes are those of all threads of the process, so that a busy machine does not count against
either; the default is what `medgen fit` took for both stages, as the model card says. The last line is one JSON object.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel
from frechet import SPLIT, load_generator, real_images
from torch.nn.functional import mse_loss
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medgen.data import Augmentation, TableDataModule
from medgen.evaluation.run import evaluate
from medgen.images import save_images

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "medfusion-cxr"
BATCH = 16
SAMPLING_STEPS = 100
DRAWN_AT_ONCE = 43
LEARNING_RATE = 2e-4
WARMUP_BATCHES = 200


def pixel_unet() -> UNet2DModel:
    return UNet2DModel(
        sample_size=64,
        in_channels=1,
        out_channels=1,
        block_out_channels=(48, 96, 128, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
        num_class_embeds=2,
        norm_num_groups=16,
    )


def train(
    network: UNet2DModel, data: TableDataModule, scheduler: DDPMScheduler, cpu_minutes: float
) -> tuple[UNet2DModel, int]:
    """The averaged network and the number of images it has seen."""
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    loader, seen, epoch = data.train_dataloader(), 0, 0
    start = time.process_time()
    while True:
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            done = (time.process_time() - start) / (cpu_minutes * 60)
            if done >= 1:
                return average.module, seen
            rise = min(1, (seen / BATCH + 1) / WARMUP_BATCHES)
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * rise * 0.5 * (1 + math.cos(math.pi * done))
            x_0 = batch["image"] * 2 - 1
            noise, t = torch.randn_like(x_0), torch.randint(scheduler.config.num_train_timesteps, (len(x_0),))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = mse_loss(network(scheduler.add_noise(x_0, noise, t), t, batch["label"]).sample.float(), noise)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(network)
            seen += len(x_0)
        epoch += 1
        if epoch % 5 == 0:
            minutes = (time.process_time() - start) / 60
            print(f"{seen} images, {minutes:.1f} CPU minutes, loss {loss.item():.4f}", flush=True)


@torch.inference_mode()
def draw(network: UNet2DModel, scheduler: DDPMScheduler, labels: torch.Tensor) -> torch.Tensor:
    scheduler.set_timesteps(SAMPLING_STEPS)
    parts = []
    for seed, part in enumerate(labels.split(DRAWN_AT_ONCE)):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(len(part), 1, 64, 64, generator=generator)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t, part).sample, t, x, generator=generator).prev_sample
        parts.append(x)
    return torch.cat(parts).add(1).div(2).clamp(0, 1).clone()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu-minutes", type=float, default=90)
    parser.add_argument("--out", type=Path, help="folder for the peer's weights and images")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    generator = load_generator(CHECKPOINT)
    augment = Augmentation(translation=0.04)
    data, network = real_images(generator, batch_size=BATCH, augment=augment), pixel_unet()
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    labels = torch.cat([data.dataset(split).labels for split in ("val", "test")])
    average, seen = train(network, data, scheduler, arguments.cpu_minutes)
    if arguments.out:
        average.save_pretrained(arguments.out / "weights")
    images = draw(average.eval(), scheduler, labels)
    if arguments.out:
        save_images(images, arguments.out / "images")
    distance = "fd_efficientnet_lite0"
    peer = evaluate(images, data, ["frechet_distance"], n=len(labels), split=SPLIT)[distance]
    ours = evaluate(generator, data, ["frechet_distance"], n=len(labels), split=SPLIT)[distance]
    result = {
        "fd_pixel_ddpm": round(peer.value, 2),
        "fd_medfusion_cxr": round(ours.value, 2),
        "fd_ratio": round(ours.value / peer.value, 3),
        "n": len(labels),
        "peer_cpu_minutes": arguments.cpu_minutes,
        "peer_images_seen": seen,
        "peer_parameters": sum(p.numel() for p in network.parameters()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
