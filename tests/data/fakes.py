"""Tiny data sets in the folder layouts that are published: smooth random pictures, no patients."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from medgen.data import chestxray14, chexpert


def picture(seed: int, size: tuple[int, int] = (24, 24), colour: bool = False) -> np.ndarray:
    """A smooth random 8-bit picture, (H, W) or (H, W, 3)."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 4, 3) if colour else (4, 4), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def write_picture(path: Path, seed: int, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, **options)).save(path)


def write_mask(path: Path, seed: int) -> None:
    """A label map of the picture with this seed: 0 where it is dark, 1, and 2 where it is bright."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.digitize(picture(seed), (85, 170)).astype(np.uint8)).save(path)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(header), *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_table(folder: Path, per_split: Sequence[tuple[str, int]] = (("train", 12), ("val", 4), ("test", 4))) -> Path:
    """A CSV beside its images and masks of three classes: a label, an age, two findings, one patient per two images."""
    rows, number = [], 0
    for split, count in per_split:
        for place in range(count):
            write_picture(folder / "images" / f"{number:03d}.png", number)
            write_mask(folder / "masks" / f"{number:03d}.png", number)
            patient = f"{split}-{place // 2}"
            findings = (place % 2, "" if place == 3 else -1 if place == 2 else 1)
            label, mask = ("healthy", "ill")[number % 2], f"masks/{number:03d}.png"
            rows.append((f"images/{number:03d}.png", label, patient, split, 40 + number, *findings, mask))
            number += 1
    header = ("image", "label", "patient", "split", "age", "edema", "effusion", "mask")
    return write_csv(folder / "labels.csv", header, rows)


def write_chexpert(folder: Path) -> Path:
    """CheXpert-v1.0-small with six frontal films and one lateral one; cardiomegaly is 1, 0, -1, blank, 1, blank."""
    home = folder / "CheXpert-v1.0-small"
    header = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *chexpert.FINDINGS)

    def row(name: str, view: str, cardiomegaly: str) -> list[str]:
        write_picture(home / name, seed=len(name) + int(name.split("patient")[1][:5]))
        findings = [cardiomegaly if finding == "Cardiomegaly" else "" for finding in chexpert.FINDINGS]
        return [f"{home.name}/{name}", "Female", "68", view, "AP" if view == "Frontal" else "", *findings]

    train = [
        row("train/patient00001/study1/view1_frontal.jpg", "Frontal", "1.0"),
        row("train/patient00001/study1/view2_lateral.jpg", "Lateral", "1.0"),
        row("train/patient00002/study1/view1_frontal.jpg", "Frontal", "0.0"),
        row("train/patient00003/study1/view1_frontal.jpg", "Frontal", "-1.0"),
        row("train/patient00003/study2/view1_frontal.jpg", "Frontal", ""),
    ]
    valid = [
        row("valid/patient64541/study1/view1_frontal.jpg", "Frontal", "1.0"),
        row("valid/patient64542/study1/view1_frontal.jpg", "Frontal", ""),
    ]
    write_csv(home / "train.csv", header, train)
    write_csv(home / "valid.csv", header, valid)
    return home


def write_chestxray14(folder: Path, patients: int = 20) -> Path:
    """ChestX-ray14 with two films per patient in two image folders and the published lists."""
    header = (
        "Image Index",
        "Finding Labels",
        "Follow-up #",
        "Patient ID",
        "Patient Age",
        "Patient Gender",
        "View Position",
        "OriginalImage[Width",
        "Height]",
        "OriginalImagePixelSpacing[x",
        "y]",
    )
    rows, lists = [], {"train_val_list.txt": [], "test_list.txt": []}
    for patient in range(1, patients + 1):
        for film in range(2):
            name = f"{patient:08d}_{film:03d}.png"
            part = "images_001" if patient % 2 else "images_002"
            write_picture(folder / part / "images" / name, seed=patient * 2 + film)
            finding = "No Finding" if film else "|".join(chestxray14.FINDINGS[1 + patient % 3 : 3 + patient % 3])
            rows.append((name, finding, film, patient, 58, "M", "PA", 2682, 2749, 0.143, 0.143))
            lists["test_list.txt" if patient > patients * 0.8 else "train_val_list.txt"].append(name)
    write_csv(folder / "Data_Entry_2017_v2020.csv", header, rows)
    for name, films in lists.items():
        (folder / name).write_text("\n".join(films))
    return folder
