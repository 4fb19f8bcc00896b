"""Segmentation networks for images with label maps, and their scores by patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor, nn

from medgen.data.augmentation import Augmentation
from medgen.evaluation.judges.short_training import Batches, Selected, fit_quietly, one_cycle
from medgen.evaluation.sets import FeatureSet, ImageSet, RealImages, patients_of
from medgen.evaluation.statistics.hausdorff import class_maps, hausdorff, paired_class_maps

if TYPE_CHECKING:
    from medgen.data.base import ImageDataModule

_READ = 256
"""Images read together."""


@dataclass(frozen=True, kw_only=True)
class SegmentedImages(Selected):
    """Images with masks, the class of each pixel, (n, H, W) integers when sliced; 0 is the background.

    Labels of images, such as the pathology, are (n,) int64; None if unknown.
    """

    masks: ImageSet | Tensor
    labels: Tensor | None = None

    def read(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images and label maps at some positions."""
        rows = self.rows[list(positions)].tolist()
        return tuple(torch.cat([part[row : row + 1] for row in rows]) for part in (self.images, self.masks))  # type: ignore[return-value]


def segmented_images(datamodule: ImageDataModule, split: str) -> SegmentedImages:
    """Read images and label maps of a split, or of several joined by ``+``, with patients and classes.

    Raises:
        ValueError: If the data have no masks.
    """
    if datamodule.mask_classes is None:
        raise ValueError("the data have no masks; give mask_classes, and for a table mask_column")
    images = RealImages(datamodule, split)
    n = len(images)
    masks = [
        part.__getitems__(list(range(start, min(start + _READ, len(part)))))["mask"].byte()
        for part in images.parts
        for start in range(0, len(part), _READ)
    ]
    part = FeatureSet(name=split, images=images, features={}, labels=images.labels, n=n, rows=range(n))
    return SegmentedImages(
        images=images,
        masks=torch.cat(masks),
        rows=torch.arange(n),
        groups=patients_of(part),
        labels=part.labels if datamodule.label_space.kind == "single" else None,
    )


@dataclass(frozen=True, kw_only=True)
class SegmenterRecipe:
    """Network and training of a segmentation network.

    Attributes:
        width: Channels at full resolution, doubled at each lower level.
        levels: Resolutions; sides must be divisible by ``2 ** (levels - 1)``. None takes as many as leave 8 pixels.
        steps: Optimiser steps, independent of the number of images.
        batch_size: Images per step.
        lr: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        augment: Augmentation of training images.
    """

    width: int = 16
    levels: int | None = None
    steps: int = 300
    batch_size: int = 16
    lr: float = 3e-3
    weight_decay: float = 0.01
    augment: Augmentation = field(default_factory=Augmentation)

    def for_images(self, height: int, width: int) -> SegmenterRecipe:
        """Fill in the number of levels for images of this size in pixels.

        Raises:
            ValueError: If the size is not divisible by the factor of the levels.
        """
        fits = [n for n in range(3, 16) if not (height % 2 ** (n - 1) or width % 2 ** (n - 1))]
        levels = self.levels
        if levels is None:
            levels = max((n for n in fits if min(height, width) >= 8 * 2 ** (n - 1)), default=3)
        factor = 2 ** (levels - 1)
        if height % factor or width % factor:
            raise ValueError(f"images are {height}x{width} pixels; {levels} levels need sides divisible by {factor}")
        return replace(self, levels=levels)


class SegmentationUNet(nn.Module):
    """U-Net with instance norm, from images (B, C, H, W) to logits (B, K, H, W) of all classes and the background.

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
    """A `SegmentationUNet` trained with equal parts of cross-entropy and soft Dice.

    The recipe states its number of levels, see `SegmenterRecipe.for_images`; classes include the background.

    Source: Isensee et al. 2021, "nnU-Net: a self-configuring method for deep learning-based biomedical image
    segmentation", online methods.
    """

    def __init__(self, recipe: SegmenterRecipe, channels: int, classes: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.classes = classes
        # Not channels last, as elsewhere: instance norm would bring its input to the usual order and back each time.
        assert recipe.levels is not None
        self.network = SegmentationUNet(channels, classes, width=recipe.width, levels=recipe.levels)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W) of images (B, C, H, W) in [0, 1]."""
        logits: Tensor = self.network((images - 0.5) / 0.25)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of a batch of images and masks."""
        images, masks = batch
        logits = self(images)
        truth = F.one_hot(masks.long(), logits.shape[1]).movedim(-1, 1)
        probabilities = logits.softmax(1)
        overlap = 2 * (probabilities * truth).sum((0, 2, 3)) / (probabilities + truth).sum((0, 2, 3)).clamp(min=1)
        loss: Tensor = F.cross_entropy(logits, masks.long()) + 1 - overlap[1:].mean()
        return loss

    def configure_optimizers(self) -> Any:
        """Set up AdamW with one cycle."""
        return one_cycle(self, lr=self.recipe.lr, weight_decay=self.recipe.weight_decay, steps=self.recipe.steps)

    @torch.inference_mode()
    def masks(self, images: Tensor) -> Tensor:
        """Most probable class of each pixel, (B, H, W), of images (B, C, H, W)."""
        self.eval()
        found: Tensor = self(images.to(self.device)).argmax(1).cpu()
        return found


def train_segmenter(
    train: Sequence[SegmentedImages],
    recipe: SegmenterRecipe,
    classes: int,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> SegmenterModule:
    """Train a segmentation network with `classes` classes, including the background, on several sets mixed.

    Raises:
        ValueError: If the image size does not fit the levels of the network.
    """
    images, _ = train[0].read([0])
    recipe = recipe.for_images(images.shape[-2], images.shape[-1])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = SegmenterModule(recipe, images.shape[1], classes)
        module.to(device)
        batches = Batches(train, recipe.augment, steps=recipe.steps, batch_size=recipe.batch_size, seed=seed)
        fit_quietly(module, batches, recipe.steps)
    return module.eval()


def overlaps(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Twice the common pixels, and the sum of the pixels of both masks: numerator and denominator of Dice.

    Masks are class numbers (B, H, W); the result is (B, K - 1, 2) float64, without the background.

    Raises:
        ValueError: If shapes differ, or class numbers are out of range.
    """
    a, b = (maps.flatten(2).double() for maps in paired_class_maps(predicted, truth, classes))
    return torch.stack([2 * (a * b).sum(2), (a + b).sum(2)], -1)


def dice(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Dice of each image and class but the background, (B, K - 1); NaN if both masks lack the class.

    See `overlaps` for arguments and errors.

    Source: Dice 1945, "Measures of the amount of ecologic association between species".
    """
    return _dice(overlaps(predicted, truth, classes))


def patient_dice(found: Tensor, patients: Tensor) -> Tensor:
    """Dice over all pixels of each patient, as of a volume, (P, K - 1); NaN if both masks lack a class.

    From `overlaps` of images, (n, K - 1, 2), and the patient of each, (n,).

    Source: Bernard et al. 2018, "Deep learning techniques for automatic MRI cardiac multi-structures segmentation and
    diagnosis: is the problem solved?", section III-D, where Dice is taken in 3-D.
    """
    return _dice(torch.stack([found[patients == patient].sum(0) for patient in patients.unique()]))


def _dice(found: Tensor) -> Tensor:
    return found[..., 0] / found[..., 1]  # 0 / 0 is NaN


@dataclass(frozen=True, kw_only=True)
class PatientScores:
    """Scores of a segmentation network for each patient, by patient number (P,).

    Attributes:
        labels: Label of each patient, (P,) int64, taken from the first image; None if unknown.
        dice: Dice over all pixels of a patient, for each class but the background, (P, K - 1) float64. NaN if no image
            of the patient, or no mask of the data, has the class.
        hausdorff: 95 % Hausdorff distance in pixels, mean over the patient's images, (P, K - 1); NaN as for Dice.
    """

    patients: Tensor
    labels: Tensor | None
    dice: Tensor
    hausdorff: Tensor


def patient_scores(segmenter: SegmenterModule, data: SegmentedImages, *, batch_size: int = 16) -> PatientScores:
    """Dice and Hausdorff distance of predicted label maps against those of the data.

    Raises:
        ValueError: If masks hold class numbers that the network does not have.
    """
    classes, common, distances = segmenter.classes, [], []
    shown = torch.zeros(classes - 1, dtype=torch.bool)
    for start in range(0, len(data), batch_size):
        images, masks = data.read(range(start, min(start + batch_size, len(data))))
        predicted = segmenter.masks(images)
        common.append(overlaps(predicted, masks, classes))
        distances.append(hausdorff(predicted, masks, classes))
        shown |= class_maps(masks, classes).any(0).flatten(1).any(1)
    groups = data.groups[data.rows]
    scores = torch.stack([patient_dice(torch.cat(common), groups), patient_means(torch.cat(distances), groups)])
    scores[..., ~shown] = torch.nan
    patients, first = np.unique(groups.numpy(), return_index=True)
    return PatientScores(
        patients=torch.from_numpy(patients),
        labels=None if data.labels is None else data.labels[data.rows[torch.from_numpy(first)]],
        dice=scores[0],
        hausdorff=scores[1],
    )


def patient_means(values: Tensor, patients: Tensor) -> Tensor:
    """Means of rows (n, ...) over the images of each patient (n,), in order of patient numbers; NaN is ignored."""
    return torch.stack([values[patients == patient].nanmean(0) for patient in patients.unique()])


def class_means(counts: NDArray[np.float64], values: Tensor) -> NDArray[np.float64]:
    """Mean over classes, then mean of each class, (r, 1 + K), of values (P, K): a statistic for `bootstraps`."""
    weights = torch.from_numpy(counts)
    each = (weights @ values.nan_to_num()) / (weights @ values.isfinite().double())  # NaN where no patient has it
    return torch.cat([each.nanmean(1, keepdim=True), each], 1).numpy()
