"""Draw the images that are not stored yet."""

import numpy as np

from tests.stored import FOLDER, OPTIONS, cases
from tests.test_stored_images import drawn

if __name__ == "__main__":
    for name in OPTIONS:
        if not (FOLDER / f"{name}.npz").exists():
            arrays = {key: drawn(name, key) for found, key in cases() if found == name}
            np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
