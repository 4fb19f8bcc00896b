"""What synthetic images with label maps are good for: segmentation networks trained on them, judged on patients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor, nn

from medgen.data.augmentation import Augmentation
from medgen.evaluation.comparisons import Outcome, compare_ways, folds_without_one
from medgen.evaluation.intervals import Interval, bootstrap
from medgen.evaluation.sets import ImageSet
from medgen.evaluation.short_training import Batches, fit_quietly, one_cycle
from medgen.evaluation.utility import CLASSICAL


@dataclass(frozen=True, kw_only=True)
class SegmentedImages:
    """Images with label maps, of which some rows are meant.

    Attributes:
        images: The images, (n, C, H, W) in [0, 1] when sliced.
        masks: Class of each pixel, (n, H, W) int64 when sliced; 0 is the background.
        rows: Which of them, (m,) int64.
        groups: Who each image is of, (n,) int64.
    """

    images: ImageSet | Tensor
    masks: ImageSet | Tensor
    rows: Tensor
    groups: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, positions: Tensor) -> SegmentedImages:
        """Some of the rows, given by their positions among them."""
        return replace(self, rows=self.rows[positions])

    def read(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images and label maps at positions among the rows."""
        rows = self.rows[list(positions)].tolist()
        return tuple(torch.cat([part[row : row + 1] for row in rows]) for part in (self.images, self.masks))  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class SegmenterRecipe:
    """How a segmentation network is trained.

    Attributes:
        width: Channels at full resolution; each of the lower ones has twice as many.
        levels: Resolutions; both sides of the images are divisible by ``2 ** (levels - 1)``.
        steps: Optimiser steps, whatever the number of images.
        batch_size: Images per step.
        lr: Peak learning rate of AdamW.
        weight_decay: Its weight decay.
        augment: How training images are varied.
    """

    width: int = 16
    levels: int = 4
    steps: int = 300
    batch_size: int = 16
    lr: float = 3e-3
    weight_decay: float = 0.01
    augment: Augmentation = field(default_factory=Augmentation)


class SegmentationUNet(nn.Module):
    """A U-Net with instance norm, from images (B, C, H, W) to logits (B, K, H, W).

    Args:
        channels: Channels of the images.
        classes: Number of classes K, the background among them.
        width: Channels at full resolution.
        levels: Resolutions.

    Source: Ronneberger et al. 2015, "U-Net: convolutional networks for biomedical image segmentation"; instance norm as
    in Isensee et al. 2021, "nnU-Net".
    """

    def __init__(self, channels: int, classes: int, *, width: int = 16, levels: int = 4) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(_convolutions(a, b) for a, b in zip([channels, *widths], widths, strict=False))
        self.up = nn.ModuleList(_convolutions(3 * w, w) for w in reversed(widths[:-1]))
        self.out = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W)."""
        x, kept = images, []
        for level, convolutions in enumerate(self.down):
            x = convolutions(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        kept.pop()
        for convolutions in self.up:
            x = convolutions(torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), kept.pop()], 1))
        logits: Tensor = self.out(x)
        return logits


def _convolutions(channels: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for part in (channels, width):
        layers += [
            nn.Conv2d(part, width, kernel_size=3, padding=1, bias=False),
            nn.InstanceNorm2d(width, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        ]
    return nn.Sequential(*layers)


class SegmenterModule(LightningModule):
    """A `SegmentationUNet` that learns by cross-entropy and soft Dice in equal parts.

    Args:
        recipe: Network and training.
        channels: Channels of the images.
        classes: Number of classes, the background among them.

    Source: Isensee et al. 2021, "nnU-Net: a self-configuring method for deep learning-based biomedical image
    segmentation", online methods.
    """

    def __init__(self, recipe: SegmenterRecipe, channels: int, classes: int) -> None:
        super().__init__()
        self.recipe = recipe
        network = SegmentationUNet(channels, classes, width=recipe.width, levels=recipe.levels)
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W) of images (B, C, H, W) in [0, 1]."""
        images = ((images - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch of images and masks."""
        images, masks = batch
        logits = self(images)
        truth = F.one_hot(masks.long(), logits.shape[1]).movedim(-1, 1)
        probabilities = logits.softmax(1)
        overlap = 2 * (probabilities * truth).sum((0, 2, 3)) / (probabilities + truth).sum((0, 2, 3)).clamp(min=1)
        loss: Tensor = F.cross_entropy(logits, masks.long()) + 1 - overlap[1:].mean()
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW with one cycle."""
        return one_cycle(self, lr=self.recipe.lr, weight_decay=self.recipe.weight_decay, steps=self.recipe.steps)

    @torch.inference_mode()
    def masks(self, images: Tensor) -> Tensor:
        """The likeliest class of each pixel, (B, H, W), of images (B, C, H, W)."""
        self.eval()
        found: Tensor = self(images.to(self.device)).argmax(1).cpu()
        return found


def train_segmenter(
    train: Sequence[SegmentedImages], recipe: SegmenterRecipe, classes: int, *, seed: int = 0
) -> SegmenterModule:
    """A segmentation network trained on several sets mixed.

    Raises:
        ValueError: If images have a size that the network cannot halve often enough.
    """
    images, _ = train[0].read([0])
    factor = 2 ** (recipe.levels - 1)
    if any(side % factor for side in images.shape[-2:]):
        raise ValueError(
            f"images are {images.shape[-2]}x{images.shape[-1]} pixels; {recipe.levels} levels need sides divisible "
            f"by {factor}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = SegmenterModule(recipe, images.shape[1], classes)
        batches = Batches(train, recipe.augment, steps=recipe.steps, batch_size=recipe.batch_size, seed=seed)
        fit_quietly(module, batches, recipe.steps)
    return module.eval()


def dice(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Dice of each image and class but the background, (B, K - 1); NaN where neither mask has the class.

    Args:
        predicted: (B, H, W) class numbers.
        truth: The same.
        classes: Number of classes K.

    Source: Dice 1945, "Measures of the amount of ecologic association between species".
    """
    a, b = (F.one_hot(masks.long(), classes).flatten(1, 2).double() for masks in (predicted, truth))
    found: Tensor = 2 * (a * b).sum(1) / (a + b).sum(1)  # 0 / 0 is NaN
    return found[:, 1:]


@dataclass(frozen=True, kw_only=True)
class SegmentationSetup:
    """What all comparisons of segmentation share.

    Attributes:
        train: Real training images.
        test: Real test images.
        synthetic: Generated images with the masks they were asked for.
        recipe: How networks are trained.
        class_names: Names of the classes, the background first.
        folds: Parts of the real training patients; each repetition leaves one out.
        seeds: Repetitions of each fold.
    """

    train: SegmentedImages
    test: SegmentedImages
    synthetic: SegmentedImages
    class_names: Sequence[str]
    recipe: SegmenterRecipe = field(default_factory=SegmenterRecipe)
    folds: int = 6
    seeds: int = 1


def segmentation_utility(setup: SegmentationSetup, ratios: Sequence[float] = (0.5, 1.0)) -> list[Outcome]:
    """Dice on real test patients after training on real images, with classical augmentation, with synthetic images.

    Synthetic images come from all training patients, so those of the fold that a repetition leaves out may have shaped
    them; for the strict comparison give a generator that was trained on the same patients only.

    Raises:
        ValueError: If sizes do not fit the network, or there are fewer patients than folds.

    Source: Al Khalil et al. 2023, "On the usability of synthetic data for improving the robustness of deep
    learning-based segmentation of cardiac magnetic resonance images".
    """
    classes = len(setup.class_names)

    def answers(train: Sequence[SegmentedImages], seed: int, recipe: SegmenterRecipe = setup.recipe) -> Tensor:
        module = train_segmenter(train, recipe, classes, seed=seed)
        parts = [setup.test.read([position]) for position in range(len(setup.test))]
        return torch.cat([dice(module.masks(images), masks, classes) for images, masks in parts])

    def mixed(real: SegmentedImages, seed: int, *, ratio: float) -> Tensor:
        order = torch.randperm(len(setup.synthetic), generator=torch.Generator().manual_seed(seed))
        return answers([real, setup.synthetic.subset(order[: round(ratio * len(real))])], seed)

    ways: dict[str, Callable[[SegmentedImages, int], Tensor]] = {
        "real": lambda real, seed: answers([real], seed),
        "real + classical": lambda real, seed: answers([real], seed, replace(setup.recipe, augment=CLASSICAL)),
    }
    groups = setup.train.groups[setup.train.rows]
    repetitions = [
        (setup.train.subset(rows), seed)
        for rows, seed in folds_without_one(torch.zeros_like(groups), groups, setup.folds, seeds=setup.seeds)
    ]
    for ratio in ratios:
        if round(ratio * max(len(real) for real, _ in repetitions)) <= len(setup.synthetic):
            ways[f"real + {ratio:g} x synthetic"] = partial(mixed, ratio=ratio)
    patients = setup.test.groups[setup.test.rows].numpy()
    names = setup.class_names[1:]
    return compare_ways(ways, repetitions, partial(_outcome, patients=patients, names=names))


def _outcome(name: str, runs: Sequence[Tensor], *, patients: NDArray[np.int64], names: Sequence[str]) -> Outcome:
    """Means over test images, then classes, then repetitions."""
    found = torch.stack(list(runs)).numpy()  # (runs, images, classes)

    def mean(columns: Sequence[int]) -> Interval:
        values = found[..., columns]
        known, filled = np.isfinite(values), np.nan_to_num(values)

        def statistic(counts: NDArray[np.float64]) -> NDArray[np.float64]:
            total = np.einsum("bn,rnk->brk", counts, filled)
            weight = np.einsum("bn,rnk->brk", counts, known.astype(np.float64))
            each = np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)
            result: NDArray[np.float64] = each.mean((1, 2))
            return result

        return bootstrap(statistic, patients)

    everything = range(len(names))
    per_label: Mapping[str, Interval] = {label: mean([k]) for k, label in enumerate(names)}
    return Outcome(
        name=name,
        value=mean(everything),
        per_label=per_label if len(names) > 1 else {},
        runs=tuple(float(np.nanmean(run, axis=0).mean()) for run in found),
    )
