"""Operations on styles: mixing two images, walks between images, moves along the direction of a label.

Styles are (..., num_ws, w_dim): one vector for every layer, coarse to fine. Functions with a generator use its methods
`styles` and `synthesize` only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from medgen.families import family_class, family_names
from medgen.families.stylegan2.generator import StyledGenerator
from medgen.generator import Generator
from medgen.labels import Label
from medgen.noise import stream_seed, whole_number
from medgen.renamed import renamed_arguments

_FEWEST_DRAWS = 20
"""Fewest images for which a held-out quarter is of use."""


def styled(generator: Generator) -> StyledGenerator:
    """Check that a generator has styles, and return it.

    Raises:
        ValueError: If its family has none.
    """
    if not isinstance(generator, StyledGenerator):
        families = ", ".join(name for name in family_names() if issubclass(family_class(name), StyledGenerator))
        raise ValueError(
            f"{generator.source or 'this model'} is of family {generator.family}, whose images have no styles; "
            f"use a model of {families}"
        )
    return generator


def mix(coarse: Tensor, fine: Tensor, layer: int) -> Tensor:
    """Join the styles of one image up to a layer with those of another from there on.

    Early layers control layout, late ones texture. Leading dimensions broadcast: (R, 1, ...) and (C, ...) give all R x
    C mixtures.

    Args:
        coarse: Styles (..., num_ws, w_dim) of the layers before.
        fine: Styles of this layer and those after.
        layer: The first layer that is taken from `fine`, 0 to num_ws.

    Raises:
        ValueError: If styles are not of the same layers, or there is no such layer.

    Source: Karras et al. 2019, "A style-based generator architecture for generative adversarial networks", section 3.1.
    """
    if coarse.dim() < 2 or coarse.shape[-2:] != fine.shape[-2:]:
        raise ValueError(
            f"coarse has shape {tuple(coarse.shape)}, fine {tuple(fine.shape)}; give styles (..., num_ws, w_dim) "
            "of the same generator"
        )
    count = coarse.shape[-2]
    if not 0 <= whole_number("layer", layer) <= count:
        raise ValueError(f"layer is {layer}; use 0, for all of fine, to {count}, for all of coarse")
    try:
        coarse, fine = torch.broadcast_tensors(coarse, fine)
    except RuntimeError:
        raise ValueError(
            f"coarse is {tuple(coarse.shape[:-2])} images, fine {tuple(fine.shape[:-2])}; give as many, or one"
        ) from None
    return torch.cat([coarse[..., :layer, :], fine[..., layer:, :]], dim=-2)


def interpolate(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Interpolate linearly between styles (..., w_dim), both ends included: (steps, ..., w_dim).

    In the space of styles, steps of equal length change images about equally. Random vectors lie on a sphere instead,
    which a straight line leaves.

    Raises:
        ValueError: If shapes differ or there are fewer than 2 steps.
    """
    if start.shape != end.shape:
        raise ValueError(f"start has shape {tuple(start.shape)}, end {tuple(end.shape)}; give styles of equal shape")
    if whole_number("steps", steps) < 2:
        raise ValueError(f"steps is {steps}; use at least 2, the two ends")
    weights = torch.linspace(0, 1, steps, device=start.device).view(-1, *[1] * start.dim())
    return torch.lerp(start[None], end[None], weights)


def tour(stations: Tensor, frames: int, *, closed: bool = True) -> Tensor:
    """Interpolate from station to station, and back to the first, so that an animation repeats without a jump.

    Args:
        stations: Styles (K, ..., w_dim) to visit, two or more.
        frames: Steps from one station to the next.
        closed: Whether to go back to the first station.

    Returns:
        (K * frames, ..., w_dim), which ends one step before the first; if not closed ((K - 1) * frames + 1, ...), which
            ends with the last station. Every `frames`-th is a station.

    Raises:
        ValueError: If there are fewer than two stations, or no frames.
    """
    if stations.dim() < 2 or len(stations) < 2:
        raise ValueError(f"stations have shape {tuple(stations.shape)}; give at least two, (K, ..., w_dim)")
    if whole_number("frames", frames) < 1:
        raise ValueError(f"frames is {frames}; use at least 1 for the way from one station to the next")
    following = torch.roll(stations, -1, 0) if closed else stations[1:]
    legs = [interpolate(start, end, frames + 1)[:-1] for start, end in zip(stations, following, strict=closed)]
    return torch.cat(legs if closed else [*legs, stations[-1:]])


@renamed_arguments(truncation="truncation_psi")
def walk(
    generator: StyledGenerator,
    frames: int,
    *,
    seeds: Sequence[int] = (0,),
    labels: Sequence[Label] = (None,),
    n: int = 1,
    truncation_psi: float = 1.0,
    closed: bool = True,
) -> Tensor:
    """Interpolate styles between several seeds of a label, or between several labels of a seed: (F, n, num_ws, w_dim).

    Image i visits image i of each seed and label; `tour` says how many steps F there are. Between labels, styles are
    interpolated, not label vectors: the mapping network was never trained on half a class.

    Raises:
        ValueError: If there are several seeds and several labels, or one of each, or an argument is out of range.
    """
    if (len(seeds) > 1) == (len(labels) > 1):
        raise ValueError(
            f"there are {len(seeds)} seeds and {len(labels)} labels; give several seeds with one label, or several "
            "labels with one seed"
        )
    if not seeds or not labels:
        raise ValueError(f"{'labels' if seeds else 'seeds'} is empty; give at least one")
    stations = [
        generator.styles(n, label, seed=whole_number("seed", seed), truncation_psi=truncation_psi)
        for seed in seeds
        for label in labels
    ]
    return tour(torch.stack(stations), frames, closed=closed)


@dataclass(frozen=True)
class Direction:
    """A direction in the space of styles along which a score rises; measured on held-out images.

    Attributes:
        vector: Its unit vector, (w_dim,).
        spread: Standard deviation of styles along it, the unit of `move`.
        correlation: Correlation of the position along it with the score.
        auc: Area under the ROC curve of the position, for scores above and below the mean; 0.5 is chance, 1 is perfect.
    """

    vector: Tensor
    spread: float
    correlation: float
    auc: float


@renamed_arguments(truncation="truncation_psi")
@torch.no_grad()
def label_direction(
    generator: StyledGenerator,
    score: Callable[[Tensor], Tensor],
    *,
    n: int = 1000,
    label: Label = None,
    seed: int = 0,
    truncation_psi: float = 1.0,
    held_out: float = 0.25,
    batch_size: int = 16,
    progress: bool = False,
) -> Direction:
    """Fit the direction in which the score of a classifier rises, to images that the generator draws.

    The direction is the gradient of a linear model of the score, by ridge regression whose strength is chosen by
    generalised cross-validation. It is on the CPU, and of no use where its `auc` is about 0.5.

    Args:
        generator: The generator.
        score: Maps images (B, C, H, W) in [0, 1], on the generator's device, to scores (B,). Logits are better than
            probabilities, most of which are about 0 or 1.
        n: Number of images.
        label: Labels of the images, see `Generator.sample`; one for all keeps the direction free of the label's own.
        seed: Seed of the images.
        truncation_psi: See `Generator.sample`.
        held_out: Share of images that are not fitted, for `correlation` and `auc`.
        batch_size: Images drawn and scored together.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If an argument is out of range, or scores are not one finite number per image, or too much alike.

    Source: least squares in the place of the support vector machine of Shen et al. 2020, "Interpreting the latent space
    of GANs for semantic face editing", section 3.1; ridge strength: Golub et al. 1979, "Generalized cross-validation as
    a method for choosing a good ridge parameter".
    """
    if whole_number("n", n) < _FEWEST_DRAWS:
        raise ValueError(f"n is {n}; draw at least {_FEWEST_DRAWS} images, better 1000")
    if not 0 < held_out < 1 or not 2 <= round(n * held_out) <= n - 2:
        raise ValueError(f"held_out is {held_out}; use a share between 0 and 1 that leaves 2 images on both sides")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; use at least 1")
    styles = generator.styles(n, label, seed=seed, truncation_psi=truncation_psi)
    scores = torch.cat(
        [
            _scores(score, generator.synthesize(part))
            for part in tqdm(styles.split(batch_size), unit="batch", disable=not progress)
        ]
    )
    x = styles[:, 0].double().cpu()  # all layers have the same one
    if not bool(scores.var() > 0):
        raise ValueError(f"score is {float(scores[0]):.4g} for all {n} images; nothing changes it")
    if not bool(x.var(0).sum() > 0):
        raise ValueError(f"all {n} styles are the same; use a truncation_psi above 0, not {truncation_psi}")
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(stream_seed("held out", seed)))
    unseen, seen = shuffled[: round(n * held_out)], shuffled[round(n * held_out) :]
    for name, part in (("fitted", seen), ("held-out", unseen)):
        if not bool(scores[part].var() > 0):
            raise ValueError(f"score is the same for all {len(part)} {name} images; draw more than n = {n}")
    slope = _ridge(x[seen], scores[seen])
    vector = slope / slope.norm()
    position = x @ vector
    return Direction(
        vector=vector.float(),
        spread=float(position.std()),
        correlation=float(torch.corrcoef(torch.stack([position[unseen], scores[unseen]]))[0, 1]),
        auc=_area(position[unseen], scores[unseen] > scores[unseen].mean()),
    )


def _scores(score: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    found = score(images)
    if found.shape != images.shape[:1]:
        raise ValueError(f"score gives {tuple(found.shape)} for {len(images)} images; expected ({len(images)},)")
    if not bool(found.isfinite().all()):
        raise ValueError("score gives numbers that are not finite; mend it for the images of this generator")
    return found.double().cpu()


def _ridge(x: Tensor, y: Tensor) -> Tensor:
    """Fit the slope (d,) of a linear model of (n,) from (n, d); generalised cross-validation chooses the ridge."""
    u, s, v = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    y = y - y.mean()
    along = u.T @ y
    ridges = s[0] ** 2 * torch.logspace(-6, 2, 33, dtype=s.dtype)
    kept = s**2 / (s**2 + ridges[:, None])  # (ridges, d): how much of each component a ridge leaves
    error = y.square().sum() - ((2 - kept) * kept * along.square()).sum(1)
    best = (error / (len(y) - 1 - kept.sum(1)).square()).argmin()
    slope: Tensor = v.T @ (s / (s**2 + ridges[best]) * along)
    return slope


def _area(position: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve: share of pairs of a positive and a negative image in order, ties counting half."""
    order = (position[positive][:, None] - position[~positive]).sign()
    return float(order.mean() / 2 + 0.5)


def label_shift(generator: StyledGenerator, start: Label, end: Label) -> Tensor:
    """Difference (w_dim,) of the average styles of two labels; needs no classifier.

    Moved by 1, styles of the first label have the average of the second; differences between them stay.

    Raises:
        ValueError: If a label is unknown.
    """
    means = [generator.styles(1, label, truncation_psi=0.0)[0, 0] for label in (start, end)]
    return means[1] - means[0]


def move(styles: Tensor, direction: Direction | Tensor, amount: float) -> Tensor:
    """Move styles (..., num_ws, w_dim) along a direction; a negative amount moves them the opposite way.

    Args:
        styles: The styles.
        direction: A `Direction`, in units of its `spread`; or any vector (w_dim,), or one per layer, (num_ws, w_dim),
            which is 0 for layers to leave alone.
        amount: Factor of the vector.

    Raises:
        ValueError: If the direction is not one of these styles.
    """
    vector = direction.vector * direction.spread if isinstance(direction, Direction) else direction
    if vector.shape not in (styles.shape[-1:], styles.shape[-2:]):
        raise ValueError(
            f"direction has shape {tuple(vector.shape)} for styles {tuple(styles.shape)}; "
            f"expected {tuple(styles.shape[-1:])} or {tuple(styles.shape[-2:])}"
        )
    return styles + amount * vector.to(styles)
