"""The verbs ``medgen walk`` and ``medgen mix``: animations between images, and grids of mixed styles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from medgen.families.stylegan2.generator import StyledGenerator
    from medgen.generator import Generator
    from medgen.labels import Label

_SMALLEST = 128
"""Width in pixels below which pictures are enlarged, as in the grids of ``medgen sample``."""


def walk(args: Sequence[str]) -> None:
    """Run ``medgen walk`` with its arguments."""
    parser = _parser("walk", "Write an animation that goes from image to image, between seeds or between labels.")
    parser.add_argument("--out", type=str, required=True, help="file to write, .gif or .mp4")
    parser.add_argument("--seeds", type=str, default="0", help="seeds to visit, with commas")
    parser.add_argument(
        "--labels", type=str | None, default=None, help="classes or findings to visit, with commas; one stays"
    )
    parser.add_argument("-n", "--n", type=int, default=1, help="images that walk side by side")
    parser.add_argument("--columns", type=int, default=8, help="images per row, where there are several")
    parser.add_argument("--frames", type=int, default=30, help="steps from one seed or label to the next")
    parser.add_argument("--fps", type=int, default=20, help="frames per second")
    parser.add_argument("--closed", type=bool, default=True, help="go back to the first, to be repeated without a jump")
    cfg = parser.parse_args(args)

    from medgen.animation import check_animation, save_animation
    from medgen.families.stylegan2 import latents
    from medgen.images import image_grid

    check_animation(cfg.out, cfg.fps)
    for name in ("n", "columns"):
        if cfg[name] < 1:
            raise ValueError(f"{name} is {cfg[name]}; use at least 1")
    seeds = _seeds("seeds", cfg.seeds)
    generator = _load(cfg)
    labels = _labels(generator, cfg.labels)
    stations: dict[str, Any] = {"seeds": seeds, "labels": labels, "n": cfg.n, "closed": cfg.closed}
    styles = latents.walk(generator, cfg.frames, **stations, **_truncation(cfg))
    images = _drawn(generator, styles.flatten(0, 1), cfg)
    columns, scale = min(cfg.columns, cfg.n), _scale(images)
    frames = [image_grid(shown, columns=columns, scale=scale) for shown in images.split(cfg.n)]
    save_animation(frames, cfg.out, fps=cfg.fps, text=_origin(generator, seeds, cfg.labels))
    if not cfg.quiet:
        print(f"{len(frames)} frames in {cfg.out}")


def mix(args: Sequence[str]) -> None:
    """Run ``medgen mix`` with its arguments."""
    parser = _parser(
        "mix", "Write a grid of images that have the coarse styles of their row, the fine ones of their column."
    )
    parser.add_argument("--out", type=str, required=True, help="file to write, .png")
    parser.add_argument("--rows", type=str, default="0,1,2", help="seeds of the coarse styles, with commas")
    parser.add_argument("--columns", type=str, default="3,4,5,6", help="seeds of the fine styles, with commas")
    parser.add_argument(
        "--labels", type=str | None, default=None, help="class or finding; two, with a comma, for rows and for columns"
    )
    parser.add_argument(
        "--layer", type=int | None, default=None, help="first layer with fine styles; default: half way"
    )
    cfg = parser.parse_args(args)

    from pathlib import Path

    import torch

    from medgen.families.stylegan2 import latents
    from medgen.images import image_grid, save_png

    target = Path(cfg.out)
    if target.suffix.lower() != ".png":
        raise ValueError(f"out is {cfg.out!r}; use a name that ends in .png")
    seeds = [_seeds(name, cfg[name]) for name in ("rows", "columns")]
    generator = _load(cfg)
    labels = _labels(generator, cfg.labels)
    if len(labels) > 2:
        raise ValueError(f"labels has {len(labels)} parts; give one for all images, or two, for rows and for columns")
    coarse, fine = (
        torch.cat([generator.styles(1, label, seed=seed, **_truncation(cfg)) for seed in part])
        for part, label in zip(seeds, (labels[0], labels[-1]), strict=True)
    )
    layer = coarse.shape[1] // 2 if cfg.layer is None else cfg.layer
    mixed = latents.mix(coarse[:, None], fine[None], layer)  # (rows, columns, num_ws, w_dim)
    images = _drawn(generator, torch.cat([fine, coarse, mixed.flatten(0, 1)]), cfg)
    top, left, inside = images.split([len(fine), len(coarse), len(fine) * len(coarse)])
    blank = torch.zeros_like(images[:1])
    lines = [torch.cat([left[i : i + 1], part]) for i, part in enumerate(inside.split(len(fine)))]
    rows, columns = (
        [_caption(generator, seed, label) for seed in part]
        for part, label in zip(seeds, (labels[0], labels[-1]), strict=True)
    )
    captions = ["", *columns, *(text for row in rows for text in (row, *[""] * len(fine)))]
    sheet = image_grid(torch.cat([blank, top, *lines]), columns=len(fine) + 1, captions=captions, scale=_scale(images))
    target.parent.mkdir(parents=True, exist_ok=True)
    text = _origin(generator, [*seeds[0], *seeds[1]], cfg.labels) | {"layer": str(layer)}
    save_png(sheet, target, text)
    if not cfg.quiet:
        print(f"{len(inside)} mixtures, fine styles from layer {layer} on, in {cfg.out}")


def _parser(verb: str, about: str) -> Any:
    """Make a parser with the arguments that both verbs have."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=f"medgen {verb}", description=about)
    parser.add_argument("name", help="a name of medgen list, a checkpoint folder, or org/repo[@revision]")
    parser.add_argument(
        "--truncation_psi",
        type=float,
        default=1.0,
        help="scale of styles about the average, 0 to 2; less is more typical",
    )
    parser.add_argument("--truncation", type=float | None, default=None, help="old name of truncation_psi")
    parser.add_argument("--batch_size", type=int, default=16, help="images drawn together")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, mps; default: the best there is")
    parser.add_argument("--quiet", type=bool, default=False, help="no progress bar")
    return parser


def _truncation(cfg: Any) -> dict[str, Any]:
    return {"truncation_psi": cfg.truncation_psi} if cfg.truncation is None else {"truncation": cfg.truncation}


def _seeds(name: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"{name} is {text!r}; use whole numbers with commas, such as 0,1,2")
    return [int(part) for part in parts]


def _load(cfg: Any) -> StyledGenerator:
    from medgen.commands.arguments import move_to_device
    from medgen.families.stylegan2.latents import styled
    from medgen.loading import load

    if cfg.batch_size < 1:
        raise ValueError(f"batch_size is {cfg.batch_size}; use at least 1")
    generator = styled(load(cfg.name))
    move_to_device(generator, cfg.device)
    return generator


def _labels(generator: Generator, text: str | None) -> list[Label]:
    """Parse labels with commas; findings of one label are joined by a bar."""
    from medgen.sampling import labels_per_image

    if text is None:
        return [None]
    return list(labels_per_image(generator, [part.strip() for part in text.split(",")]))


def _caption(generator: Generator, seed: int, label: Label) -> str:
    space = generator.label_space
    (name,) = space.describe(space.resolve(label, 1), 1)
    return f"seed {seed}, {name}" if name else f"seed {seed}"


def _drawn(generator: StyledGenerator, styles: Tensor, cfg: Any) -> Tensor:
    """Draw images of styles with fixed noise, as new noise in every frame would flicker."""
    import torch
    from tqdm import tqdm

    batches = styles.split(cfg.batch_size)
    return torch.cat([generator.synthesize(part).cpu() for part in tqdm(batches, unit="batch", disable=cfg.quiet)])


def _scale(images: Tensor) -> int:
    return max(1, _SMALLEST // images.shape[-1])


def _origin(generator: Generator, seeds: Sequence[int], labels: str | None) -> dict[str, str]:
    """Provenance in the file's comments, as in those of ``medgen sample``."""
    return {
        "SyntheticData": "YES",
        "Software": "medgen",
        "seed": ",".join(map(str, seeds)),
        "label": labels or "",
        "checkpoint": generator.source,
        "revision": generator.revision,
    }
