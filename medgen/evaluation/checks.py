"""What a check of a report is given, and what it gives back."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from medgen.evaluation.classifier import ClassifierRecipe, LabelledImages
from medgen.evaluation.conditional import LabelReaders
from medgen.evaluation.features import FeatureNetwork
from medgen.evaluation.networks import feature_network
from medgen.evaluation.run import Opened, real_features
from medgen.evaluation.scores import Score
from medgen.evaluation.segmentation import SegmentedImages, SegmenterRecipe, segmented_images
from medgen.evaluation.sets import FeatureSet, RealImages, patients_of
from medgen.labels import LabelSpace

if TYPE_CHECKING:
    from medgen.data.base import ImageDataModule


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture of a report.

    Attributes:
        name: File name without suffix.
        title: Heading.
        caption: What it shows, in a sentence or two.
        image: A picture, or the text of an SVG.
        patients: Whether it shows images of real patients.
    """

    name: str
    title: str
    caption: str
    image: Image.Image | str
    patients: bool = False

    @property
    def wide(self) -> bool:
        """Whether it needs the width of two."""
        return not isinstance(self.image, str) and self.image.width > 600

    def content(self) -> tuple[str, bytes]:
        """Suffix and bytes of the file."""
        if isinstance(self.image, str):
            return ".svg", self.image.encode()
        buffer = io.BytesIO()
        self.image.save(buffer, "PNG", optimize=True)
        return ".png", buffer.getvalue()


@dataclass(kw_only=True)
class Findings:
    """What a check found.

    Attributes:
        scores: Numbers.
        figures: Pictures.
        warnings: What a reader must know before believing a number.
    """

    scores: list[Score] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a report measures; the same for everything it compares.

    Attributes:
        judge: The feature network.
        split: The real images.
        metrics: Names of the metrics on features.
        seed: Seed of everything drawn.
        batch_size: Images seen together.
        recipe: How the classifiers of utility and bias are trained.
        segmenter: How the segmentation network of consistency is trained.
        folds: Repetitions of each, on other training patients.
        seeds: Repetitions of each fold.
        hide: Boxes that bias hides; without any, the borders. See `medgen.evaluation.saliency.without_boxes`.
    """

    judge: FeatureNetwork
    split: str
    metrics: Sequence[str] = ()
    seed: int = 0
    batch_size: int = 16
    recipe: ClassifierRecipe = field(default_factory=ClassifierRecipe)
    segmenter: SegmenterRecipe = field(default_factory=SegmenterRecipe)
    folds: int = 8
    seeds: int = 1
    hide: Sequence[tuple[float, float, float, float]] = ()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One generator or folder of images beside the real images.

    Attributes:
        opened: What is judged.
        generated: Its images and their features.
        real: The real images and their features.
        datamodule: The real data.
        settings: How to measure.
        options: Sampling options.
    """

    opened: Opened
    generated: FeatureSet
    real: FeatureSet
    datamodule: ImageDataModule
    settings: Settings
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def judge(self) -> FeatureNetwork:
        """The feature network."""
        return self.settings.judge

    @property
    def space(self) -> LabelSpace:
        """What labels mean."""
        return self.datamodule.label_space

    @cached_property
    def pixels(self) -> FeatureNetwork:
        """The space of grey levels, in which copies are near."""
        return feature_network("pixels")

    @cached_property
    def train(self) -> FeatureSet:
        """The real training images."""
        images = RealImages(self.datamodule, "train")
        return real_features(images, [self.judge, self.pixels], batch_size=self.settings.batch_size)

    @cached_property
    def readers(self) -> LabelReaders:
        """What tells the labels of images, learned from the real training images."""
        return LabelReaders(self.train, self.judge, self.space)

    def held_out(self, split: str) -> FeatureSet:
        """Real images of another split, without features."""
        images = RealImages(self.datamodule, split)
        n = len(images)
        return FeatureSet(name=split, images=images, features={}, labels=images.labels, n=n, rows=range(n))

    def segmented(self, split: str) -> SegmentedImages:
        """Real images of a split with their masks."""
        return segmented_images(self.datamodule, split)

    def labelled(self, part: FeatureSet) -> LabelledImages:
        """A set for classifiers, without images of unknown class."""
        labels = part.labels
        if labels is None:
            raise ValueError(f"{part.name} has no labels")
        known = labels >= 0 if labels.dim() == 1 else labels.isfinite().any(1)
        return LabelledImages(images=part.images, labels=labels, rows=known.nonzero()[:, 0], groups=patients_of(part))


class Check(Protocol):
    """Looks at one case."""

    def __call__(self, case: Case) -> Findings:
        """Scores, figures and warnings."""
