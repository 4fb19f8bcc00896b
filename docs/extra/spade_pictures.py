"""The pictures of docs/families/spade.md, by the bundled model.

    python docs/extra/spade_pictures.py

Rows of ``spade_styles.png`` are hearts, all in the same styles; ``spade_walks.png`` goes from one style to another over
one heart, and from one heart to another in one style.
"""

from pathlib import Path

import torch
from torch import Tensor

import medgen
from medgen.images import coloured, image_grid, save_png

FOLDER = Path(__file__).parents[1] / "families"
STEPS = 6


def main() -> None:
    """Draw them."""
    generator = medgen.load("spade-cardiac")
    classes = len(generator.config.mask_names)

    def row(mask: Tensor, images: Tensor) -> Tensor:
        """A map in colours before its images, (1 + n, 3, H, W)."""
        return torch.cat([coloured(mask[None], classes), images.expand(-1, 3, -1, -1)])

    hearts = generator.sample_masks(3, label=["NOR", "HCM", "DCM"], seed=1)
    codes = generator.encode_style(generator.sample(STEPS, label="NOR", seed=2))
    same_styles = [row(mask, generator.sample(STEPS, mask=mask, style=codes)) for mask in hearts]
    grid = image_grid(torch.cat(same_styles), columns=1 + STEPS)
    save_png(grid, FOLDER / "spade_styles.png")

    weights = torch.linspace(0, 1, STEPS)
    styles = generator.sample(STEPS, mask=hearts[0], style=codes[0].blend(codes[3], weights))
    first, last = generator.encode_masks(hearts[1:])
    between = generator.decode_masks(first + weights[:, None] * (last - first))
    anatomies = generator.sample(STEPS, mask=between, style=codes[0])
    empty = torch.zeros(1, 3, *hearts.shape[1:])
    rows = [row(hearts[0], styles), empty, coloured(between, classes), empty, anatomies.expand(-1, 3, -1, -1)]
    save_png(image_grid(torch.cat(rows), columns=1 + STEPS), FOLDER / "spade_walks.png")


if __name__ == "__main__":
    main()
