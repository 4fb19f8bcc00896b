"""Published settings, by the names of the authors' launcher.

Source: Karras et al. 2020, "Training generative adversarial networks with limited data", appendix C, and what its
launcher derives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of one training run, with images per step over all GPUs.

    Attributes:
        network: Fields of `StyleGAN2Config`.
        training: Arguments of `StyleGAN2Module`.
    """

    batch_size: int
    network: Mapping[str, Any]
    training: Mapping[str, Any]


def auto_gamma(image_size: tuple[int, int], batch_size: int) -> float:
    """Weight of R1 that goes with an image and batch size; `batch_size` counts all GPUs."""
    return 0.0002 * image_size[0] * image_size[1] / batch_size


def auto_ema_kimg(batch_size: int) -> float:
    """Thousands of images in which the average forgets half."""
    return batch_size * 10 / 32


def auto_batch_size(side: int, gpus: int) -> int:
    """Images per step, over all GPUs."""
    return max(min(gpus * min(4096 // side, 32), 64), gpus)


def auto(side: int, gpus: int = 1) -> Preset:
    """Settings for images of one size on so many GPUs."""
    batch = auto_batch_size(side, gpus)
    return Preset(
        batch_size=batch,
        network={"channel_base": 32768 if side >= 512 else 16384, "mapping_layers": 2},
        training={
            "lr": 0.002 if side >= 1024 else 0.0025,
            "gamma": auto_gamma((side, side), batch),
            "ema_kimg": auto_ema_kimg(batch),
            "ema_rampup": 0.05,
            "group": min(batch // gpus, 4),
        },
    )


def _paper(batch: int, channel_base: int, lr: float, gamma: float, ema_kimg: float, group: int) -> Preset:
    return Preset(
        batch_size=batch,
        network={"channel_base": channel_base, "mapping_layers": 8},
        training={"lr": lr, "gamma": gamma, "ema_kimg": ema_kimg, "ema_rampup": None, "group": group},
    )


PRESETS: Mapping[str, Preset] = {
    "paper256": _paper(64, 16384, 0.0025, 1.0, 20.0, 8),
    "paper512": _paper(64, 32768, 0.0025, 0.5, 20.0, 8),
    "paper1024": _paper(32, 32768, 0.002, 2.0, 10.0, 4),
    "stylegan2": _paper(32, 32768, 0.002, 10.0, 10.0, 4),
}
"""Settings of the papers; those that fit the data instead are in `auto`."""
