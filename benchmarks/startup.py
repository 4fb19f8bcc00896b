"""How long one waits for `import medgen`, `medgen --help` and `medgen.load`, beside `import torch`.

    python benchmarks/startup.py [--checkpoint checkpoints/medfusion-cxr]

Every time is the median of several fresh processes, less that of a bare `python -c pass`. Without a checkpoint, a small
one with random weights of the bundled model's kind is made for the occasion.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BUNDLED = Path(__file__).parents[1] / "checkpoints" / "medfusion-cxr"
MAKE_CHECKPOINT = """
import sys
from medgen.families.medfusion.generator import MedfusionConfig, MedfusionGenerator
from medgen.nn.autoencoder import AutoencoderConfig
from medgen.nn.unet import UNetConfig
autoencoder = AutoencoderConfig(latent_channels=4, hidden=(32, 64, 128), strides=(1, 2, 2))
unet = UNetConfig(hidden=(96, 96, 112, 128), norm=("group", {"num_groups": 16}), blocks_per_level=1, embedding_dim=192)
config = MedfusionConfig(image_size=(64, 64), channels=1, autoencoder=autoencoder, unet=unet)
MedfusionGenerator(config).save_pretrained(sys.argv[1])
"""


def median_seconds(code: str, repeats: int, *arguments: str) -> float:
    """The time of a fresh interpreter that runs the code."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="folder of the checkpoint to load")
    parser.add_argument("--repeats", type=int, default=5, help="processes per number")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = args.checkpoint or (BUNDLED if (BUNDLED / "model.safetensors").is_file() else Path(folder) / "new")
        if not checkpoint.is_dir():
            subprocess.run([sys.executable, "-c", MAKE_CHECKPOINT, str(checkpoint)], check=True)
        programs = {
            "import_medgen": "import medgen",
            "medgen_help": "import sys; from medgen.cli import main; sys.exit(main(['--help']))",
            "import_torch": "import torch",
            "medgen_load": "import sys, medgen; medgen.load(sys.argv[1])",
        }
        python = median_seconds("pass", args.repeats)
        times = {name: median_seconds(code, args.repeats, str(checkpoint)) - python for name, code in programs.items()}
    result = {f"{name}_s": round(value, 3) for name, value in times.items()}
    shares = {f"{name}_to_torch": round(value / times["import_torch"], 3) for name, value in times.items()}
    shares.pop("import_torch_to_torch")
    print(json.dumps({"benchmark": "startup", "python_s": round(python, 3), **result, **shares}))


if __name__ == "__main__":
    main()
