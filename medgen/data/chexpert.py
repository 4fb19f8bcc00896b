"""CheXpert (Irvin et al. 2019) as it is downloaded, whole (CheXpert-v1.0) or small (CheXpert-v1.0-small)."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import torch

from medgen.data.base import ImageDataModule
from medgen.data.columns import Columns, LabelPolicy, class_labels, finding_labels
from medgen.data.files import FileRoot
from medgen.data.image_table import ImageTable

FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)


class CheXpertDataModule(ImageDataModule):
    """Chest radiographs of Stanford Hospital with 14 findings, split as published.

    ``train.csv`` is the train split and ``valid.csv``, labelled by three radiologists, the val split; the download has
    no test split. Patients are those of the file paths. The default is the training set of Medfusion: frontal images,
    cardiomegaly yes or no, unknown counted as no. (The counts in that paper, 30,092 with cardiomegaly of which 23,385
    are certain, fit ``uncertain="ones"``.)

    Args:
        root: The folder or zip archive that holds ``train.csv`` and ``valid.csv``, or the folder above it.
        finding: One finding as two classes, no and yes; ``None`` gives all 14 as a multi-label vector.
        frontal_only: Leave out lateral images.
        uncertain: Meaning of -1: ``"ones"``, ``"zeros"``, ``"ignore"`` (unknown) or ``"drop"`` (leave the row out).
        blank: Meaning of an unmentioned finding, as for ``uncertain``.
        image_size: Height and width in pixels, or one number for a square.
        **options: Everything else `ImageDataModule` takes.
    """

    def __init__(
        self,
        *,
        root: str,
        finding: str | None = "Cardiomegaly",
        frontal_only: bool = True,
        uncertain: LabelPolicy = "zeros",
        blank: LabelPolicy = "zeros",
        image_size: int | tuple[int, int] = 256,
        **options: object,
    ) -> None:
        super().__init__(image_size=image_size, **options)  # type: ignore[arg-type]
        if finding is not None and finding not in FINDINGS:
            raise ValueError(f"finding is {finding!r}; CheXpert has {', '.join(FINDINGS)}")
        self.root = root
        self.finding = finding
        self.frontal_only = frontal_only
        self.uncertain: LabelPolicy = uncertain
        self.blank: LabelPolicy = blank

    def read_table(self) -> ImageTable:
        """List the images of ``train.csv`` and ``valid.csv``."""
        root = self._home()
        train, valid = (Columns.parse(root.read(name), root.locate(name)) for name in ("train.csv", "valid.csv"))
        columns = train.joined(valid)
        columns = columns.with_column("split", ["train"] * len(train) + ["val"] * len(valid))
        if self.frontal_only:
            columns = columns.where({"Frontal/Lateral": "Frontal"})
        if self.finding is None:
            labels = finding_labels(columns, FINDINGS, self.uncertain, self.blank)
        else:
            names = [f"No {self.finding}", self.finding]
            labels = class_labels(columns, self.finding, names, self.uncertain, self.blank)
        columns = columns.keep(labels.keep)
        # Paths in the table start with the name of its own folder: CheXpert-v1.0-small/train/patient00001/...
        paths = [PurePosixPath(*PurePosixPath(path).parts[1:]) for path in columns["Path"]]
        return ImageTable(
            root=root,
            images=[str(path) for path in paths],
            splits=columns["split"],
            label_space=labels.space,
            labels=labels.values[torch.from_numpy(labels.keep)],
            patients=[path.parts[1] for path in paths],
        )

    def _home(self) -> FileRoot:
        given = FileRoot(self.root)
        if given.identity("train.csv") is not None:
            return given
        for folder in ("CheXpert-v1.0-small", "CheXpert-v1.0"):
            if given.identity(f"{folder}/train.csv") is not None:
                return FileRoot(Path(self.root) / folder)
        raise FileNotFoundError(
            f"{self.root} holds neither train.csv nor a folder CheXpert-v1.0 or CheXpert-v1.0-small with it; set root "
            "to the download"
        )
