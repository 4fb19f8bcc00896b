"""Precision and recall of many images against torch-fidelity, and what cached real features save.

    python benchmarks/evaluation.py [--n 20000] [--dim 2048] [--images 400]

Both compute improved precision and recall (k = 3) of the same two random sets of feature vectors; each runs in a
process of its own, so that peak memory is its own. `speedup` and `memory_ratio` compare the two. `cached_share` is the
time of a Fréchet distance of images against real images whose features are cached, as a share of the time of the first
run, which had to make them.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def vectors(n: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, dim, generator=generator), torch.rand(n, dim, generator=generator) * 0.97


def ours(n: int, dim: int) -> tuple[float, float]:
    from medgen.evaluation.metrics.precision_recall import precision_recall

    precision, recall = precision_recall(*vectors(n, dim))
    return float(precision), float(recall)


def theirs(n: int, dim: int) -> tuple[float, float]:
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    real, generated = vectors(n, dim)
    precision, recall = calculate_precision_recall_full(generated, real, neighborhood=3)
    return float(precision), float(recall)


def idle(n: int, dim: int) -> tuple[float, float]:
    """Both packages and the vectors, without any work."""
    import torch_fidelity.metric_prc  # noqa: F401

    import medgen.evaluation.metrics.precision_recall  # noqa: F401

    vectors(n, dim)
    return 0.0, 0.0


WORK = {"ours": ours, "theirs": theirs, "idle": idle}


Measured = tuple[float, float, tuple[float, float]]


def measured(name: str, n: int, dim: int, results: "multiprocessing.Queue[Measured]") -> None:
    WORK[name](100, dim)  # imports and first calls
    start = time.perf_counter()
    numbers = WORK[name](n, dim)
    seconds = time.perf_counter() - start
    results.put((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, numbers))


def run(name: str, n: int, dim: int) -> tuple[float, float, tuple[float, float]]:
    """Seconds, peak memory in MB and the numbers, of a process that does nothing else."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[tuple[float, float, tuple[float, float]]] = context.Queue()
    process = context.Process(target=measured, args=(name, n, dim, results))
    process.start()
    found = results.get()
    process.join()
    return found


def cached_share(count: int) -> float:
    """Seconds of a second run by those of the first."""
    from medgen.data import TableDataModule
    from medgen.evaluation.run import evaluate

    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        lines = ["image,split"]
        for i in range(count):
            Image.fromarray(random.integers(0, 255, (64, 64), dtype=np.uint8)).save(root / f"{i}.png")
            lines.append(f"{i}.png,{'train' if i < 2 else 'val' if i < 4 else 'test'}")
        (root / "table.csv").write_text("\n".join(lines))
        data = TableDataModule(
            csv=root / "table.csv", image_column="image", split_column="split", image_size=64, cache_folder=folder
        )
        data.prepare_data()
        few = torch.rand(20, 1, 64, 64)
        evaluate(few, data, ["frechet_distance"], split="val+train")  # the network is loaded and warm
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            evaluate(few, data, ["frechet_distance"])
            seconds.append(time.perf_counter() - start)
    return seconds[1] / seconds[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20000, help="vectors in each set")
    parser.add_argument("--dim", type=int, default=2048, help="their length")
    parser.add_argument("--images", type=int, default=400, help="real images of the cache's run")
    args = parser.parse_args()
    runs = {name: run(name, args.n, args.dim) for name in WORK}
    base = runs["idle"][1]
    for name, (seconds, peak, numbers) in runs.items():
        print(f"{name}: {seconds:.1f} s, peak {peak:.0f} MB, precision and recall {numbers}")
    result = {
        "benchmark": "evaluation",
        "n": args.n,
        "dim": args.dim,
        "speedup": round(runs["theirs"][0] / runs["ours"][0], 2),
        "memory_ratio": round((runs["ours"][1] - base) / (runs["theirs"][1] - base), 3),
        "cached_share": round(cached_share(args.images), 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
