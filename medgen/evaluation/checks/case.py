"""Base of the checks: their input, their output, and the entry of a check."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from medgen.evaluation.judges.classifier import ClassifierRecipe, LabelledImages
from medgen.evaluation.judges.features import FeatureNetwork
from medgen.evaluation.judges.label_readers import LabelReaders
from medgen.evaluation.judges.networks import feature_network
from medgen.evaluation.judges.segmentation import SegmenterRecipe
from medgen.evaluation.run import Opened, real_features
from medgen.evaluation.scores import Meaning, Score
from medgen.evaluation.sets import FeatureSet, RealImages, known_and_positive, patients_of
from medgen.generator import Generator
from medgen.labels import LabelSpace

if TYPE_CHECKING:
    from medgen.data.base import ImageDataModule

CLASS_LEAST = 20
"""Images that a class needs on each side for scores of its own."""

HOW_TO_LABEL = "a folder of images gets them from a samples.csv with the columns file and label"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture of a report, or the text of an SVG, with its file name without suffix.

    Attributes:
        caption: A sentence or two about what it shows.
        patients: Whether it shows images of real patients.
    """

    name: str
    title: str
    caption: str
    image: Image.Image | str
    patients: bool = False

    @property
    def wide(self) -> bool:
        """Whether it needs the width of two figures."""
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
    """Results of a check: numbers, pictures, and facts a reader must know before believing a number."""

    scores: list[Score] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a report, shared by all sources it compares.

    Attributes:
        judge: The feature network.
        split: The real images.
        metrics: Names of the metrics on features.
        seed: Seed of all random draws.
        batch_size: Images processed together.
        recipe: Training of the classifiers of utility and bias.
        segmenter: Training of the segmentation network of consistency.
        folds: Repetitions of each training, on other training patients.
        seeds: Repetitions of each fold.
        hide: Boxes that bias hides; empty hides the borders. See `medgen.evaluation.judges.saliency.without_boxes`.
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
    """Input of a check: one judged source and its images beside the real ones, with settings and sampling options."""

    opened: Opened
    generated: FeatureSet
    real: FeatureSet
    datamodule: ImageDataModule
    settings: Settings
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def generator(self) -> Generator:
        """The judged generator, for checks with ``generator=True``."""
        assert self.opened.generator is not None  # `Check.obstacle` refuses folders
        return self.opened.generator

    @property
    def judge(self) -> FeatureNetwork:
        """The feature network."""
        return self.settings.judge

    @property
    def space(self) -> LabelSpace:
        """Label space of the data."""
        return self.datamodule.label_space

    @property
    def train_apart(self) -> bool:
        """Whether the data have training images that are not among the compared real images."""
        return "train" in self.datamodule.table.splits and "train" not in self.settings.split.split("+")

    @cached_property
    def pixels(self) -> FeatureNetwork:
        """Feature network of grey levels, in which copies are near."""
        return feature_network("pixels")

    @cached_property
    def train(self) -> FeatureSet:
        """The real training images and their features."""
        images = RealImages(self.datamodule, "train")
        return real_features(images, [self.judge, self.pixels], batch_size=self.settings.batch_size)

    @cached_property
    def readers(self) -> LabelReaders:
        """Classifiers of the labels, trained on the real training images."""
        return LabelReaders(self.train, self.judge, self.space)

    def held_out(self, split: str) -> FeatureSet:
        """Real images of another split, without features."""
        return real_features(RealImages(self.datamodule, split), [])

    def labelled(self, part: FeatureSet) -> LabelledImages:
        """Convert a set for classifiers, without images of unknown class."""
        labels = part.labels
        if labels is None:
            raise ValueError(f"{part.name} has no labels")
        known = labels >= 0 if labels.dim() == 1 else labels.isfinite().any(1)
        return LabelledImages(images=part.images, labels=labels, rows=known.nonzero()[:, 0], groups=patients_of(part))

    def classes(self, part: FeatureSet) -> dict[str, torch.Tensor]:
        """Rows of each class or finding of a set, by name; all rows under an empty name for other labels."""
        if part.labels is None or self.space.kind not in ("single", "multi"):
            return {"": torch.arange(part.n)}
        rows = [known_and_positive(part.labels, k)[1].nonzero()[:, 0] for k in range(len(self.space.names))]
        return {name: found for name, found in zip(self.space.names, rows, strict=True) if len(found)}


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check, the meanings of its scores, and its requirements.

    Attributes:
        run: Computes the findings of a case.
        meanings: Meaning of each score, by name; a name also covers longer ones that continue it after an underscore.
        labels: Whether it needs classes or findings.
        train: Whether it needs a train split that is not among the compared images.
        generator: Whether it needs a generator, not only images.
        suits: Says why a generator and the data do not suit the check; empty if they do.
        packages: Optional modules it imports.
        shared: Whether it looks at real images only, so that it runs once for all judged sources.
    """

    run: Callable[[Case], Findings]
    meanings: Mapping[str, Meaning] = field(default_factory=dict)
    labels: bool = False
    train: bool = True
    generator: bool = False
    suits: Callable[[Generator, ImageDataModule], str] = lambda generator, datamodule: ""
    packages: tuple[str, ...] = ()
    shared: bool = False

    def obstacle(self, name: str, judged: Opened, datamodule: ImageDataModule, split: str) -> Exception | None:
        """Reason why the check `name` cannot run on a source and these data, compared on `split`; None if it can."""
        kind = datamodule.label_space.kind
        if self.train and "train" in split.split("+"):
            return ValueError(f"split is {split!r}; {name} compares with training images, so leave train out of split")
        if self.train and "train" not in datamodule.table.splits:
            return ValueError(f"the data have no train split; {name} needs it")
        if self.labels and kind not in ("single", "multi"):
            return ValueError(f"the data's labels are {kind!r}; {name} asks for classes")
        if self.labels and judged.labels is None:
            return ValueError(f"the images have no labels, which {name} needs; {HOW_TO_LABEL}")
        if self.generator and judged.generator is None:
            return ValueError(f"{name} needs a generator, but images were given")
        if judged.generator and (reason := self.suits(judged.generator, datamodule)):
            return ValueError(f"{name} needs {reason}")
        if missing := [module for module in self.packages if find_spec(module) is None]:
            return ImportError(f'{name} needs {", ".join(missing)}; run: pip install "medgen[eval]"')
        return None
