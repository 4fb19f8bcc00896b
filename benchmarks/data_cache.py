"""How much faster an epoch from the image cache is than one that decodes: `python benchmarks/data_cache.py`.

Both epochs go through the data module, its loader and its shuffled order in one process; building the cache is
reported apart. Reads the chest radiographs in MEDGEN_DATA (256 px PNG in a zip), or else writes as many random PNGs.
The last line is one JSON object.
"""

import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from medgen.data import TableDataModule

REPEATS = 5  # of the cached epoch, which takes milliseconds; the best counts


def source(folder: Path) -> tuple[dict[str, object], str]:
    """Where the images are, for `TableDataModule`, and what they are."""
    radiographs = Path(os.environ.get("MEDGEN_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cxr"
    if radiographs.is_dir():
        table, archive = str(radiographs / "labels.csv"), str(radiographs / "images.zip")
        columns = {"label_column": "label", "patient_column": "patient_id", "split_column": "split"}
        return {"csv": table, "root": archive, **columns}, "cxr"
    random = np.random.default_rng(0)
    for number in range(664):
        noise = random.integers(0, 256, (64, 64), dtype=np.uint8)
        path = folder / "images" / "train" / ("a", "b")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).resize((256, 256), Image.Resampling.BICUBIC).save(path)
    return {"root": str(folder / "images")}, "generated"


def epoch_seconds(data: TableDataModule) -> tuple[float, int]:
    loader = data.train_dataloader()
    start = time.perf_counter()
    images = sum(len(batch["index"]) for batch in loader)
    return time.perf_counter() - start, images


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        where, name = source(Path(folder))
        settings = {**where, "image_size": 64, "batch_size": 32, "drop_last": False}
        uncached = TableDataModule(**settings, cache=False)
        epochs = [epoch_seconds(uncached) for _ in range(2)]  # the first one also imports the decoders
        decoding, images = min(epochs)
        cached = TableDataModule(**settings, cache_folder=str(Path(folder) / "cache"))
        start = time.perf_counter()
        cached.prepare_data()
        building = time.perf_counter() - start
        reading = min(epoch_seconds(cached)[0] for _ in range(REPEATS))
    result = {
        "speedup": round(decoding / reading, 1),
        "decoding_epoch_s": round(decoding, 4),
        "cached_epoch_s": round(reading, 4),
        "build_s": round(building, 3),
        "n": images,
        "data": name,
        "image_size": 64,
        "batch_size": 32,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
