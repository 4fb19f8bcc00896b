"""Training of translators."""

from __future__ import annotations

from typing import Generic, TypeVar

from medgen.training.base import PublishingModule
from medgen.translator import Translator

T = TypeVar("T", bound=Translator)


class TranslatorModule(PublishingModule[T], Generic[T]):
    """Base of the modules that train a translator, their attribute `translator`."""

    published_weights = "translator."

    def setup(self, stage: str) -> None:
        """Check the data against the config.

        Raises:
            ValueError: If they differ, a domain has no training images, or unlabelled images would be drawn.
        """
        super().setup(stage)
        if stage != "fit":
            return
        data = self.datamodule
        labels = data.table.labels
        assert labels is not None  # label_kind is "single" in both
        labels = labels[data.table.rows("train")]
        names = self.published.domains
        missing = [name for number, name in enumerate(names) if not (labels == number).any()]
        if missing:
            raise ValueError(
                f"the train split has no images of {' and '.join(map(repr, missing))}; a translator learns from images "
                f"of all domains, {' and '.join(map(repr, names))}: see that the table and its split have them"
            )
        unknown = int((labels < 0).sum())
        if unknown and not data.balanced:
            raise ValueError(
                f"{unknown} images of the train split have no label, so that their domain is unknown; leave them out "
                "of the table, or set balanced to true, which never draws them"
            )
