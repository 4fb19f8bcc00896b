"""Classifiers of labelled images, trained to measure utility and bias."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from medgen.data.augmentation import Augmentation
from medgen.evaluation.judges.short_training import Batches, Selected, fit_quietly, one_cycle
from medgen.evaluation.sets import known_and_positive
from medgen.evaluation.statistics.roc import auc_value, youden_threshold
from medgen.labels import LabelSpace

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class LabelledImages(Selected):
    """Images with labels: (n,) classes, -1 for unknown, or (n, K) findings, NaN for unknown."""

    labels: Tensor

    def read(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images and labels at some positions."""
        rows = self.rows[list(positions)]
        return torch.cat([self.images[row : row + 1] for row in rows.tolist()]), self.labels[rows]


@dataclass(frozen=True, kw_only=True)
class ClassifierRecipe:
    """Network and training of a classifier.

    Attributes:
        network: Name of a timm network, such as ``densenet121`` or ``inception_v3``; the default is tiny, and on a few
            hundred small images as good as larger ones.
        weights: File with initial weights; None for random ones. Nothing is downloaded.
        size: Height and width of the input; None for the size of the images.
        steps: Optimiser steps, independent of the number of images, so that more images do not mean more training.
        batch_size: Images per step.
        lr: Peak learning rate of AdamW, with linear warm-up over a tenth of the steps and decay to 0.
        weight_decay: Weight decay of AdamW.
        augment: Augmentation of training images.
        checks: Number of evaluations on the validation set, of which the best weights are kept.
    """

    network: str = "test_resnet"
    weights: str | None = None
    size: tuple[int, int] | None = None
    steps: int = 100
    batch_size: int = 32
    lr: float = 4e-3
    weight_decay: float = 0.01
    augment: Augmentation = field(default_factory=Augmentation)
    checks: int = 6


RECIPES: dict[str, ClassifierRecipe] = {
    "small": ClassifierRecipe(),
    "inception_v3": ClassifierRecipe(network="inception_v3", size=(299, 299), steps=5000, lr=3e-4),
    "densenet121": ClassifierRecipe(network="densenet121", size=(224, 224), steps=5000, lr=3e-4),
}
"""``small`` for machines without a GPU; InceptionV3 of "The beauty or the beast"; DenseNet-121 of Segal et al. 2021."""


class ClassifierModule(LightningModule):
    """A timm network for classes or findings, with weights against imbalance and a threshold for each label.

    The loss is cross-entropy with equal total weight of all classes, or binary cross-entropy with equal total weight of
    present and absent cases of each finding, see `class_weights`. Unknown labels are left out.

    Attributes:
        thresholds: Youden's threshold of each class or finding; set after training.
    """

    thresholds: Tensor

    def __init__(
        self, recipe: ClassifierRecipe, label_space: LabelSpace, channels: int, weights: Tensor | None = None
    ) -> None:
        super().__init__()
        import timm

        if label_space.kind not in ("single", "multi"):
            raise ValueError(f"label_space is {label_space.kind!r}; a classifier needs classes or findings")
        self.recipe = recipe
        self.frozen = False
        self.label_space = label_space
        # timm fits a file of other classes or channels to this network, but only where it takes it for pretraining.
        start: dict[str, Any] = {"pretrained": bool(recipe.weights)}
        if recipe.weights:
            start["pretrained_cfg_overlay"] = {"file": recipe.weights}
        network = timm.create_model(recipe.network, num_classes=len(label_space), in_chans=channels, **start)
        self.network = network.to(memory_format=torch.channels_last)  # a third faster on CPUs
        shape = (len(label_space),) if label_space.kind == "single" else (2, len(label_space))
        self.weights: Tensor
        self.register_buffer("weights", torch.ones(shape) if weights is None else weights)
        self.register_buffer("thresholds", torch.zeros(len(label_space)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1]."""
        if self.recipe.size is not None:
            images = F.interpolate(images, size=self.recipe.size, mode="bilinear", antialias=True)
        images = ((images - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network(images)
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over the known labels of a batch."""
        if labels.dim() == 1:
            return F.cross_entropy(logits, labels, weight=self.weights, ignore_index=-1)
        known = labels.isfinite()
        weights = torch.where(labels == 1, self.weights[1], self.weights[0])
        each = weights * F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(0.0), reduction="none")
        return (each * known).sum() / known.sum().clamp(min=1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of a batch of images and labels."""
        images, labels = batch
        return self.loss(self(images), labels)

    def configure_optimizers(self) -> Any:
        """Set up AdamW with one cycle for all parameters that are not frozen."""
        return one_cycle(self, lr=self.recipe.lr, weight_decay=self.recipe.weight_decay, steps=self.recipe.steps)

    @torch.inference_mode()
    def scores(self, data: LabelledImages, *, change: Change | None = None, batch_size: int = 128) -> Tensor:
        """Scores (n, K): probabilities of classes, or logits of findings."""
        self.eval()
        parts = []
        for start in range(0, len(data), batch_size):
            images, _ = data.read(range(start, min(start + batch_size, len(data))))
            images = change(images) if change else images
            logits = self(images.to(self.device)).float().cpu()
            parts.append(logits.softmax(1) if self.label_space.kind == "single" else logits)
        return torch.cat(parts)

    def set_thresholds(self, data: LabelledImages, *, change: Change | None = None) -> None:
        """Set Youden's thresholds on validation images; labels without both cases keep 0."""
        scores, labels = self.scores(data, change=change), data.labels[data.rows]
        for k, known, positive in usable_labels(labels, len(self.label_space)):
            self.thresholds[k] = youden_threshold(scores[known, k], positive[known])

    def freeze_all_but_last(self) -> None:
        """Reset the last layer and freeze all others, with the statistics of normalisation layers."""
        self.network.requires_grad_(requires_grad=False)
        self.network.reset_classifier(len(self.label_space))  # type: ignore[operator]
        self.frozen = True
        self.train()

    def train(self, mode: bool = True) -> ClassifierModule:
        """Switch between train and eval mode; frozen features stay in eval mode."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weights with equal totals for all classes, (K,), or for absent and present cases of all findings, (2, K).

    The mean weight over images is 1; a class or case that does not occur gets 0.

    Source: Segal et al. 2021, "Evaluating the clinical realism of synthetic chest X-rays generated using progressively
    growing GANs", eq. 3, there without the division by the number of cases.
    """
    if labels.dim() == 1:
        counts = labels[labels >= 0].bincount(minlength=num_classes).float()[None]
    else:
        counts = torch.stack([(labels == case).sum(0) for case in (0, 1)]).float()
    dim = 1 if labels.dim() == 1 else 0
    share = counts.sum(dim, keepdim=True) / counts.shape[dim]
    weights = torch.where(counts > 0, share / counts.clamp(min=1), 0.0)
    return weights[0] if labels.dim() == 1 else weights


def train_classifier(
    train: Sequence[LabelledImages],
    val: LabelledImages,
    recipe: ClassifierRecipe,
    label_space: LabelSpace,
    *,
    start: ClassifierModule | None = None,
    change: Change | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> ClassifierModule:
    """Train a classifier; keep the weights that are best on the validation images, and set its thresholds.

    Args:
        train: Training sets, which are mixed.
        val: Validation images, for weights (by macro-averaged area under the ROC curve) and thresholds.
        recipe: Network and training.
        label_space: Classes or findings.
        start: A classifier whose features are kept, so that only the last layer is trained.
        change: Applied to all images, such as hiding the borders.
        device: Device of training and result.
        seed: Seed of weights, order and augmentation.
    """
    labels = torch.cat([part.labels[part.rows] for part in train])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        channels = train[0].images[0:1].shape[1]
        module = ClassifierModule(recipe, label_space, channels, class_weights(labels, len(label_space)))
        if start is not None:
            module.network.load_state_dict(start.network.state_dict())
            module.freeze_all_but_last()
        module.to(device)
        best = _KeepBest(val, max(1, recipe.steps // recipe.checks), change)
        batches = Batches(train, recipe.augment, steps=recipe.steps, batch_size=recipe.batch_size, seed=seed)
        fit_quietly(module, batches if change is None else _Changed(batches, change), recipe.steps, best)
    best.restore(module)
    module.set_thresholds(val, change=change)
    return module.eval()


class _KeepBest(Callback):
    """Keeps the weights that are best on the validation images."""

    def __init__(self, val: LabelledImages, every: int, change: Change | None) -> None:
        self.val = val
        self.every = every
        self.change = change
        self.best = -float("inf")
        self.state: dict[str, Tensor] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every and trainer.global_step < trainer.max_steps:
            return
        module = cast("ClassifierModule", pl_module)
        value = macro_auc(module.scores(self.val, change=self.change), self.val.labels[self.val.rows])
        if value > self.best:
            self.best, self.state = value, copy.deepcopy(module.state_dict())
        module.train()

    def restore(self, module: ClassifierModule) -> None:
        if self.state:
            module.load_state_dict(self.state)


def usable_labels(labels: Tensor, count: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield each of `count` labels that images are known to have and to lack, with its `known_and_positive`."""
    for k in range(count):
        known, positive = known_and_positive(labels, k)
        if 0 < int(positive[known].sum()) < int(known.sum()):
            yield k, known, positive


def macro_auc(scores: Tensor, labels: Tensor) -> float:
    """Mean area under the ROC curves of all labels; NaN if no label has both cases."""
    usable = usable_labels(labels, scores.shape[1])
    areas = [auc_value(scores[known, k], positive[known]) for k, known, positive in usable]
    return sum(areas) / len(areas) if areas else float("nan")


class _Changed:
    """Batches whose images are changed."""

    def __init__(self, batches: Batches, change: Change) -> None:
        self.batches = batches
        self.change = change

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((self.change(images), labels) for images, labels in self.batches)
