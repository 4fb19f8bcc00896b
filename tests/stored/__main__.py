"""Draw the images that are not stored yet."""

import numpy as np

from tests.stored import FOLDER, OPTIONS, cases, drawn

if __name__ == "__main__":
    for name in OPTIONS:
        if not (FOLDER / f"{name}.npz").exists():
            np.savez_compressed(FOLDER / f"{name}.npz", **{key: drawn(name, key) for key in cases(name)})
