"""What synthetic hearts add to the segmentation of real ones, for networks trained on few patients.

    python benchmarks/segmentation_utility.py [--patients 4 8 all] [--ratio 2] [--steps 400] [--seeds 1]
        [--out runs/segmentation] [--device cuda]

For each number of patients a generator is trained on these patients only (segmentation_utility.yaml; `--config` for
another recipe), and draws images of deformed label maps of theirs, in styles drawn as for their pathology. Segmentation
networks that were trained with and without them are compared on all test patients. What a run has finished is kept in
`--out`, and another call goes on from there, unless its recipe, ratio or deformations are others, which is refused. The
tables are printed and written to `tables.md`.
"""

import argparse
import csv
import inspect
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

import medgen
from medgen.anatomy import Checked, Compose, RandomAffine, RandomElastic, Sometimes, Thicken
from medgen.data import TableDataModule
from medgen.data.augmentation import Augmentation
from medgen.evaluation.judges.segmentation import SegmentedImages, SegmenterRecipe, segmented_images
from medgen.evaluation.segmentation_utility import (
    Cohort,
    SegmentationOutcome,
    SegmentationSetup,
    choose_patients,
    segmentation_utility_by_patients,
    utility_table,
)
from medgen.noise import NoiseSource

RECIPE = Path(__file__).with_suffix(".yaml")
CLASSICAL = Augmentation(rotation_degrees=15, scaling=0.15, translation=0.05, elastic_pixels=30, contrast=0.3)
"""Without flips: the right ventricle is on one side."""


def change(size: int) -> Checked:
    """How label maps are deformed, for images of a width in pixels; results still show a heart."""
    pixel = size / 128
    return Checked(
        Compose(
            [
                RandomElastic(pixels=(0, 2 * pixel), smoothness=16 * pixel),
                RandomAffine(rotation_degrees=15, scaling=0.15, translation=0.05),
                Sometimes(Thicken(2, (pixel, 3 * pixel), into=(0, 3)), chance=0.3),
                Sometimes(Thicken(3, (pixel, 3 * pixel), into=2), chance=0.3),
            ]
        )
    )


def table_of(settings: dict[str, Any], patients: int | None, path: Path) -> None:
    """The rows of the data without those training patients that are not chosen."""
    rows = list(csv.DictReader(Path(settings["csv"]).read_text(encoding="utf-8").splitlines()))
    patient, split, label = (settings[f"{name}_column"] for name in ("patient", "split", "label"))
    groups = {row[patient]: row[label] for row in rows if row[split] == "train"}
    chosen = set(choose_patients(groups, patients or len(groups)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(row for row in rows if row[split] != "train" or row[patient] in chosen)


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Note what the results in a folder were made with, and refuse to go on with anything else.

    Raises:
        ValueError: Naming the settings that differ; all of them where nothing is known of the results.
    """
    file = folder / "settings.json"
    if folder.exists():
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if differ := [name for name, value in settings.items() if found.get(name) != value]:
            raise ValueError(f"{folder} holds results of another {', '.join(differ)}; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=1), encoding="utf-8")


def train(config: Path, table: Path, folder: Path) -> None:
    """A generator of the training rows of a table, unless it is there."""
    if not (folder / "published").exists():
        command = [sys.executable, "-m", "medgen", "fit", "--config", str(config), "--data.init_args.csv", str(table)]
        command += ["--trainer.default_root_dir", str(folder)]
        if (folder / "checkpoints" / "last.ckpt").exists():
            command += ["--ckpt_path", "last"]
        subprocess.run(command, check=True)


def draw(
    folder: Path, real: SegmentedImages, names: list[str], ratio: int, device: torch.device | str
) -> SegmentedImages:
    """Synthetic images of deformed maps of real ones, `ratio` for each, unless they are there."""
    file = folder / "synthetic.pt"
    if not file.exists():
        masks = torch.cat([real.read([row])[1] for row in range(len(real))]).long().repeat(ratio, 1, 1)
        labels = real.labels.repeat(ratio)
        transform = change(masks.shape[-1])
        changed = transform(masks, NoiseSource(0, range(len(masks))))
        print(f"deformed maps: {transform.tally}", flush=True)
        generator = medgen.load(folder / "published").to(device)
        images = generator.sample(len(masks), mask=changed, label=[names[i] for i in labels.tolist()], seed=0)
        images = images.cpu().mul(255).round().byte()  # as real ones are kept
        torch.save({"images": images, "masks": changed.byte(), "labels": labels}, file)
    found = torch.load(file, weights_only=True)
    n = len(found["images"])
    return SegmentedImages(
        images=found["images"] / 255,
        masks=found["masks"],
        rows=torch.arange(n),
        groups=torch.arange(n),
        labels=found["labels"],
    )


def compared(arguments: argparse.Namespace, patients: int | None) -> list[SegmentationOutcome]:
    """All ways of training on some patients, compared."""
    folder = arguments.out / (f"patients-{patients}" if patients else "patients-all")
    recipe = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    keep_settings(folder, {"config": recipe, "ratio": arguments.ratio, "change": inspect.getsource(change)})
    settings = recipe["data"]["init_args"]
    table_of(settings, patients, folder / "table.csv")
    train(arguments.config, folder / "table.csv", folder)
    data = TableDataModule(**{**settings, "csv": folder / "table.csv", "augment": None})
    data.setup("fit")
    names = list(data.label_space.names)
    real = segmented_images(data, "train")
    setup = SegmentationSetup(
        test=segmented_images(data, "test"),
        val=segmented_images(data, "val"),
        class_names=("background", "right ventricle", "myocardium", "left ventricle"),
        label_names=names,
        classical=CLASSICAL,
        recipe=SegmenterRecipe(steps=arguments.steps),
        ratio=arguments.ratio,
        seeds=arguments.seeds,
        device=arguments.device,
    )
    cohort = Cohort(real=real, synthetic=draw(folder, real, names, arguments.ratio, arguments.device))
    outcomes = segmentation_utility_by_patients([cohort], setup)
    (folder / "outcomes.json").write_text(json.dumps([asdict(row) for row in outcomes], indent=1), encoding="utf-8")
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", nargs="+", default=["4", "8", "all"], help="numbers of training patients, or all")
    parser.add_argument("--ratio", type=int, default=2, help="synthetic images for each real one")
    parser.add_argument("--steps", type=int, default=400, help="steps of each network's training")
    parser.add_argument("--seeds", type=int, default=1, help="networks trained in each way")
    parser.add_argument("--config", type=Path, default=RECIPE, help="how generators are trained")
    best = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument(
        "--device", default=best, help="where segmentation networks are trained; cuda where it is there"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/segmentation"), help="folder of what is made")
    arguments = parser.parse_args()
    outcomes = []
    for patients in arguments.patients:
        outcomes += compared(arguments, None if patients == "all" else int(patients))
        tables = [utility_table(outcomes), utility_table(outcomes, by="label"), utility_table(outcomes, "hausdorff")]
        (arguments.out / "tables.md").write_text("\n".join(tables), encoding="utf-8")
        print(*tables, sep="\n", flush=True)


if __name__ == "__main__":
    main()
