"""Variety of a set: the file size of its mean image, and the structural similarity of pairs."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from medgen.evaluation.checks.case import CLASS_LEAST, Case, Check, Figure, Findings
from medgen.evaluation.scores import Meaning, score
from medgen.evaluation.sets import ImageSet
from medgen.evaluation.statistics.intervals import Interval, bootstrap
from medgen.images import image_grid, to_uint8

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW = 11
LEAST_SIDE = _WINDOW
"""Smallest side in pixels for which MS-SSIM is defined."""


def variety(case: Case) -> Findings:
    """Measure each class of both sides, on equally many images: the mean of fewer images is less blurred."""
    found = Findings()
    means, captions = [], []
    real, generated = case.classes(case.real), case.classes(case.generated)
    common = [name for name in real if name in generated]
    if not common:  # one side has no labels: all images stand against all
        common, real, generated = [""], {"": torch.arange(case.real.n)}, {"": torch.arange(case.generated.n)}
    counts = {name: min(len(real[name]), len(generated[name])) for name in common}
    fewer = any(counts[name] < len(real[name]) for name in common)
    beside = replace(case.real, name=f"{case.real.name}, as many as {case.generated.name}") if fewer else case.real
    for part, classes in ((case.generated, generated), (beside, real)):
        for name in common:
            count = counts[name]
            draw = torch.Generator().manual_seed(case.settings.seed)
            rows = classes[name][torch.randperm(len(classes[name]), generator=draw)[:count]]
            suffix = f":{name}" if name else ""
            picture = mean_image(part.images, rows)
            means.append(picture)
            captions.append(f"{'generated' if part is case.generated else 'real'} {name}".strip())
            numbers: dict[str, float | Interval] = {
                f"mean_image_{kind}_bytes{suffix}": float(size) for kind, size in lossless_bytes(picture).items()
            }
            if min(picture.shape[-2:]) >= LEAST_SIDE and len(rows) > 1:
                numbers[f"ms_ssim{suffix}"] = pair_similarity(part.images, rows, seed=case.settings.seed)
            found.scores += [
                score(key, value, part, case.real, n_generated=count, n_real=count) for key, value in numbers.items()
            ]
    picture_grid = image_grid(
        torch.stack(means), columns=len(means) // 2 or 1, captions=captions, scale=max(1, 128 // means[0].shape[-1])
    )
    found.figures.append(
        Figure(
            name="mean_images",
            title="Mean images",
            caption="The mean image of each class. Sharp edges say that images resemble each other (mode collapse).",
            image=picture_grid,
            patients=min(counts.values()) < CLASS_LEAST,  # the mean of few images shows a patient
        )
    )
    return found


_BLURRED = "Varied images have a blurred mean, whose file is small."

MEANINGS = {
    "mean_image_png_bytes": Meaning("variety", "Mean image as PNG (bytes)", 0, _BLURRED),
    "mean_image_jpeg_bytes": Meaning("variety", "Mean image as lossless JPEG (bytes)", 0, _BLURRED),
    "ms_ssim": Meaning(
        "variety", "MS-SSIM of pairs", 0, "Similarity of random images of one class; compare with real."
    ),
}

CHECK = Check(run=variety, train=False, packages=("imagecodecs",), meanings=MEANINGS)


def mean_image(images: ImageSet | Tensor, rows: Tensor, *, batch_size: int = 64) -> Tensor:
    """Mean (C, H, W) of some images of a set."""
    total = torch.zeros(())
    for start in range(0, len(rows), batch_size):
        total = total + torch.stack([images[i : i + 1][0] for i in rows[start : start + batch_size].tolist()]).sum(0)
    return total / len(rows)


def lossless_bytes(image: Tensor) -> dict[str, int]:
    """Sizes in bytes of one image (C, H, W) in [0, 1] as a lossless file: ``png`` and ``jpeg``.

    The mean of varied images is a blur, which compresses well. Sizes of different image sizes or numbers of images do
    not compare. The papers do not name the lossless JPEG; ours is JPEG-LS, the standard of medical archives.

    Source: Deng et al. 2009, "ImageNet: a large-scale hierarchical image database", section 3.2.
    """
    import imagecodecs

    return {"png": png_bytes(image), "jpeg": len(imagecodecs.jpegls_encode(_pixels(image)))}


def png_bytes(image: Tensor) -> int:
    """Size in bytes of one image (C, H, W) in [0, 1] as a PNG file; see `lossless_bytes`."""
    png = io.BytesIO()
    Image.fromarray(_pixels(image)).save(png, "PNG", optimize=True)
    return len(png.getvalue())


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    """(H, W) or (H, W, C) of an image (C, H, W) in [0, 1]."""
    return to_uint8(image).permute(1, 2, 0).squeeze(-1).contiguous().numpy()


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Multi-scale structural similarity of each pair of images (B, C, H, W) in [0, 1], (B,).

    Five scales need 176 pixels; smaller images get as many as fit, with weights normalised to a sum of one.

    Source: Wang et al. 2003, "Multi-scale structural similarity for image quality assessment", eq. 7.
    """
    weights = _WEIGHTS[: scales(min(a.shape[-2:]))]
    value = multiscale_structural_similarity_index_measure(
        a,
        b,
        data_range=1.0,
        betas=tuple(w / sum(weights) for w in weights),
        kernel_size=_WINDOW,
        normalize="relu",
        reduction="none",
    )
    return value if isinstance(value, Tensor) else value[0]


def scales(side: int) -> int:
    """Number of scales of MS-SSIM for images with this smaller side in pixels.

    Raises:
        ValueError: If the side is smaller than the window.
    """
    if side < _WINDOW:
        raise ValueError(f"images are {side} pixels wide or high; MS-SSIM needs at least {_WINDOW}")
    # The window fits into the smallest scale; torchmetrics' own bound is stricter from 88 to 98 pixels.
    return max(
        count
        for count in range(1, len(_WEIGHTS) + 1)
        if side >= _WINDOW * 2 ** (count - 1) and side // max(1, (count - 1) ** 2) >= _WINDOW
    )


def pair_similarity(
    images: ImageSet | Tensor, rows: Tensor, *, pairs: int = 500, seed: int = 0, batch_size: int = 32
) -> Interval:
    """Mean MS-SSIM between random pairs of images of a set, with its interval; 1 if all are equal.

    Pairs are of the given rows, at least two, such as those of one class; all pairs, if there are fewer than `pairs`.

    Source: Odena et al. 2017, "Conditional image synthesis with auxiliary classifier GANs", section 4.2.
    """
    if len(rows) < 2:
        raise ValueError(f"there are {len(rows)} images; pairs need at least two")
    n = len(rows)
    if n * (n - 1) // 2 <= pairs:
        first, second = torch.triu_indices(n, n, offset=1)
    else:
        generator = torch.Generator().manual_seed(seed)
        first = torch.randint(n, (pairs,), generator=generator)
        second = (first + 1 + torch.randint(n - 1, (pairs,), generator=generator)) % n
    found = []
    for start in range(0, len(first), batch_size):
        sides = [
            torch.cat([images[i : i + 1] for i in rows[part[start : start + batch_size]].tolist()])
            for part in (first, second)
        ]
        found.append(ms_ssim(*sides))
    values = torch.cat(found).double().numpy()

    def mean(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean over pairs, which count as often as both of their images were drawn."""
        weights = counts[:, first.numpy()] * counts[:, second.numpy()]
        total = weights.sum(1)
        result: NDArray[np.float64] = np.divide(
            weights @ values, total, out=np.full(len(total), np.nan), where=total > 0
        )
        return result

    return bootstrap(mean, np.arange(n))
