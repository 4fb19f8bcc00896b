"""ChestX-ray14 of the NIH Clinical Center (Wang et al. 2017) as it is downloaded."""

from __future__ import annotations

from pathlib import PurePosixPath

from torch import Tensor

from medgen.data.base import ImageDataModule
from medgen.data.columns import Columns, listed_labels
from medgen.data.files import FileRoot
from medgen.data.image_table import ImageTable
from medgen.data.splits import split_by_patient

FINDINGS = (
    "No Finding",
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
)


class ChestXray14DataModule(ImageDataModule):
    """112,120 frontal chest radiographs of 30,805 patients with 15 text-mined labels, "No Finding" among them.

    Labels are those of ``Data_Entry_2017*.csv``. The test split is ``test_list.txt`` as published; all other patients
    (``train_val_list.txt``) are split into train and val with equal label shares. Without the list all patients are
    split. Images may lie anywhere below the root, such as in ``images_001/images`` to ``images_012/images``.

    Args:
        root: The folder or zip archive of the download.
        val_fraction: Share of the patients outside the test split that form the val split.
        test_fraction: Share of all patients that form the test split if there is no ``test_list.txt``.
        split_seed: Chooses the split.
        image_size: Height and width in pixels, or one number for a square.
        **options: Everything else `ImageDataModule` takes.
    """

    def __init__(
        self,
        *,
        root: str,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        image_size: int | tuple[int, int] = 256,
        **options: object,
    ) -> None:
        super().__init__(image_size=image_size, **options)  # type: ignore[arg-type]
        self.root = root
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed

    def read_table(self) -> ImageTable:
        """List the images of ``Data_Entry_2017*.csv``."""
        root = FileRoot(self.root)
        places = {PurePosixPath(name).name: name for name in root.names()}
        entries = sorted(name for name in places if name.startswith("Data_Entry_2017") and name.endswith(".csv"))
        if not entries:
            raise FileNotFoundError(f"{self.root} holds no Data_Entry_2017*.csv; set root to the unpacked download")
        table = places[entries[-1]]
        columns = Columns.parse(root.read(table), root.locate(table))
        labels = listed_labels(columns, "Finding Labels", "|", FINDINGS, "ignore")
        images, patients = columns["Image Index"], columns["Patient ID"]
        return ImageTable(
            root=root,
            images=[places.get(name, name) for name in images],
            splits=self._splits(root, places, images, patients, labels.values),
            label_space=labels.space,
            labels=labels.values,
            patients=patients,
        )

    def _splits(
        self, root: FileRoot, places: dict[str, str], images: list[str], patients: list[str], labels: Tensor
    ) -> list[str]:
        if "test_list.txt" not in places:
            rest = 1 - self.test_fraction
            fractions = (rest * (1 - self.val_fraction), rest * self.val_fraction, self.test_fraction)
            return split_by_patient(patients, labels, fractions=fractions, seed=self.split_seed)
        tested = set(root.read(places["test_list.txt"]).decode().split())
        rows = [row for row, name in enumerate(images) if name not in tested]
        fractions = (1 - self.val_fraction, self.val_fraction, 0.0)
        own = [patients[row] for row in rows]
        splits = ["test"] * len(images)
        others = split_by_patient(own, labels[rows], fractions=fractions, seed=self.split_seed)
        for row, split in zip(rows, others, strict=True):
            splits[row] = split
        return splits
