"""What 20 steps of DPM-Solver++ lose and save against the published 150 steps of DDIM.

    python benchmarks/samplers.py [--checkpoint checkpoints/medfusion-cxr] [--n 258]

Both draw the same number of images from the same seed with the same labels; `fd_ratio` is the ratio of their Fréchet
distances to the real validation and test images (EfficientNet-Lite0 features, MEDGEN_DATA), `time_ratio` that of their
times. Distances depend on n.
"""

import argparse
import json
from pathlib import Path

from frechet import SPLIT, frechet_distances, load_generator

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "medfusion-cxr"
WAYS = {"ddim_150": {"sampler": "ddim", "steps": 150}, "dpmpp_20": {"sampler": "dpm++", "steps": 20}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="folder of the checkpoint")
    parser.add_argument("--n", type=int, default=258, help="number of images of each sampler")
    args = parser.parse_args()
    runs = frechet_distances(load_generator(args.checkpoint), args.n, WAYS)
    slow, fast = runs["ddim_150"], runs["dpmpp_20"]
    result = {
        **{f"fd_{name}": round(run.distance, 3) for name, run in runs.items()},
        **{f"seconds_{name}": round(run.seconds, 2) for name, run in runs.items()},
        "fd_ratio": round(fast.distance / slow.distance, 4),
        "time_ratio": round(fast.seconds / slow.seconds, 4),
    }
    print(json.dumps({"benchmark": "samplers", "n": args.n, "real": SPLIT, **result}))


if __name__ == "__main__":
    main()
