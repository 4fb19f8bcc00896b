"""A generator and data small enough to know every answer: images are flat, and their grey level is the whole story."""

import socket
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from medgen.data import TableDataModule
from medgen.evaluation.judges.features import FeatureNetwork
from medgen.generator import Generator, GeneratorConfig


@dataclass(frozen=True, kw_only=True)
class DotConfig(GeneratorConfig):
    image_size: tuple[int, int] = (8, 8)
    label_kind: str = "single"
    label_names: tuple[str, ...] = ("dark", "bright")


class DotGenerator(Generator, family="dot"):
    """Class 0 has the grey level 0.375, class 1 has 0.625, as in the data, and noise of the same size."""

    config_class = DotConfig

    def __init__(self, config=None):
        super().__init__(config or DotConfig())
        self.scale = nn.Parameter(torch.tensor(0.2))
        self.drop = nn.Dropout(0.5)

    def _sample(self, label, noise, *, steps=1):
        level = torch.zeros(len(noise)) if label is None else (label.float() - 0.5) / 2
        grain = self.scale * noise.normal(self.config.channels, *self.config.image_size)
        return (self.drop(torch.ones(1)) * level[:, None, None, None] + grain).clamp(-1, 1)


class Means(nn.Module):
    """Four numbers per image: the grey level of each quarter."""

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2).flatten(1)


@pytest.fixture
def generator():
    return DotGenerator()


@pytest.fixture
def network():
    return FeatureNetwork("quarters", Means(), size=(8, 8), dim=4)


@pytest.fixture
def datamodule(tmp_path):
    """60 training, 20 validation and 20 test images of 8x8 pixels; 30 % are bright, 70 % dark."""
    random = np.random.default_rng(0)
    root = tmp_path / "real"
    root.mkdir()
    lines = ["image,label,split"]
    for split, count in (("train", 60), ("val", 20), ("test", 20)):
        for i in range(count):
            bright = i % 10 < 3
            pixels = (160 if bright else 96) + 25 * random.standard_normal((8, 8))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"{split}{i}.png")
            lines.append(f"{split}{i}.png,{'bright' if bright else 'dark'},{split}")
    (root / "table.csv").write_text("\n".join(lines))
    return TableDataModule(
        csv=str(root / "table.csv"),
        label_column="label",
        label_names=["dark", "bright"],
        split_column="split",
        image_size=8,
        cache_folder=str(tmp_path / "cache"),
        batch_size=10,
    )


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
