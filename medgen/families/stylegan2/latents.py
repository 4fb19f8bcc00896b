"""What can be done with styles: mix those of two images, walk between them, move them along what a label changes.

Styles are (..., num_styles, w_dim): one vector for every layer, coarse to fine, as `styles` of a generator gives and
its `synthesize` takes them. What takes a generator needs no more of it than these two methods.
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

_FEWEST_DRAWS = 20
"""Below, a held-out quarter says nothing."""


def styled(generator: Generator) -> StyledGenerator:
    """The generator, if it has styles.

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
    """Styles of one image up to a layer, and of another from there on.

    Early layers say where things are, late ones how they look.

    Args:
        coarse: Styles (..., num_styles, w_dim) of the layers before.
        fine: Styles of this layer and those after; its leading dimensions need only go with those of `coarse`, so that
            (R, 1, ...) and (C, ...) give all R x C mixtures.
        layer: The first layer that is taken from `fine`; 0 for all of `fine`, num_styles for all of `coarse`.

    Raises:
        ValueError: If styles are not of the same layers, or there is no such layer.

    Source: Karras et al. 2019, "A style-based generator architecture for generative adversarial networks", section 3.1.
    """
    if coarse.dim() < 2 or coarse.shape[-2:] != fine.shape[-2:]:
        raise ValueError(
            f"coarse has shape {tuple(coarse.shape)}, fine {tuple(fine.shape)}; give styles (..., num_styles, w_dim) "
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
    """Styles on the straight line from one to another, both included.

    Lines are straight in the space of styles, which the mapping network makes so that steps of equal length change
    images about equally; random vectors lie on a sphere, through which a straight line leads past all images.

    Args:
        start: Styles (..., w_dim).
        end: Styles of the same shape.
        steps: How many, both ends included.

    Returns:
        (steps, ..., w_dim).

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
    """Styles on the way from station to station, and back to the first.

    Args:
        stations: Styles (K, ..., w_dim) to visit, two or more.
        frames: Steps from one station to the next.
        closed: Whether the way leads back to the first station, so that an animation can be repeated without a jump.

    Returns:
        (K * frames, ..., w_dim), the last of which is a step before the first; not closed ((K - 1) * frames + 1, ...),
        which ends with the last station. Every `frames`-th is a station.

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


def walk(
    generator: StyledGenerator,
    frames: int,
    *,
    seeds: Sequence[int] = (0,),
    labels: Sequence[Label] = (None,),
    n: int = 1,
    truncation: float = 1.0,
    closed: bool = True,
) -> Tensor:
    """Styles on the way between several seeds of a label, or between several labels of a seed.

    Between labels, the way leads from the style that one label gives a random vector to the style that another label
    gives it, not through label vectors in between: there is no such thing as half a class, and the mapping network has
    never seen one, whereas both ends are what `sample` draws, whatever the kind of labels.

    Args:
        generator: What draws.
        frames: Steps from one station to the next.
        seeds: Seeds to visit.
        labels: Labels to visit, each for all images; see `Generator.sample`.
        n: Number of images, which walk side by side: image i visits image i of each seed and label.
        truncation: See `StyledGenerator.styles`.
        closed: See `tour`.

    Returns:
        (F, n, num_styles, w_dim), F being the number of steps that `tour` gives.

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
        generator.styles(n, label, seed=whole_number("seed", seed), truncation=truncation)
        for seed in seeds
        for label in labels
    ]
    return tour(torch.stack(stations), frames, closed=closed)


@dataclass(frozen=True)
class Direction:
    """Where styles go as a score rises.

    Attributes:
        vector: A step of length 1, (w_dim,).
        spread: Standard deviation of styles along it, the measure of a step that is large but not out of the way.
        correlation: Of the styles' position along it with their score, for images it was not fitted to.
        auc: Area under the ROC curve of the same images: how surely the position tells a score above the mean from one
            below; 0.5 is chance, 1 is perfect.
    """

    vector: Tensor
    spread: float
    correlation: float
    auc: float


@torch.no_grad()
def label_direction(
    generator: StyledGenerator,
    score: Callable[[Tensor], Tensor],
    *,
    n: int = 1000,
    label: Label = None,
    seed: int = 0,
    truncation: float = 1.0,
    held_out: float = 0.25,
    batch_size: int = 16,
    progress: bool = False,
) -> Direction:
    """The direction in which the score of a classifier rises, fitted to images that the generator draws.

    A linear model of the score from the style, by least squares with a ridge whose strength generalised
    cross-validation chooses; its gradient is the direction. Scores count as they are, so logits are better than
    probabilities, most of which are about 0 or 1.

    Args:
        generator: What draws.
        score: From images (B, C, H, W) in [0, 1], on the generator's device, to scores (B,), larger where the label is
            more likely; a logit, a measurement, anything.
        n: Number of images.
        label: Labels of the images, see `Generator.sample`; one for all keeps the label's own direction out.
        seed: Seed of the images.
        truncation: See `StyledGenerator.styles`.
        held_out: Share of images that only say how well the direction tells.
        batch_size: Images drawn and scored together.
        progress: Whether to show a progress bar.

    Returns:
        The direction, on the CPU. One whose `auc` is about 0.5 means nothing.

    Raises:
        ValueError: If an argument is out of range, or scores are not one finite number per image, or too much alike.

    Source: least squares in the place of the support vector machine of Shen et al. 2020, "Interpreting the latent space
        of GANs for semantic face editing", section 3.1; ridge strength: Golub et al. 1979, "Generalized
        cross-validation as a method for choosing a good ridge parameter".
    """
    if whole_number("n", n) < _FEWEST_DRAWS:
        raise ValueError(f"n is {n}; draw at least {_FEWEST_DRAWS} images, better 1000")
    if not 0 < held_out < 1 or not 2 <= round(n * held_out) <= n - 2:
        raise ValueError(f"held_out is {held_out}; use a share between 0 and 1 that leaves 2 images on both sides")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; use at least 1")
    styles = generator.styles(n, label, seed=seed, truncation=truncation)
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
        raise ValueError(f"all {n} styles are the same; use a truncation above 0, not {truncation}")
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
    """Slope (d,) of the linear model of (n,) from (n, d), its ridge chosen by generalised cross-validation."""
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
    """Share of pairs of a positive and a negative image that are in order; a tie is half a pair."""
    order = (position[positive][:, None] - position[~positive]).sign()
    return float(order.mean() / 2 + 0.5)


def label_shift(generator: StyledGenerator, start: Label, end: Label) -> Tensor:
    """What takes the average style of one label to that of another, (w_dim,); needs no classifier.

    Moved by 1, styles of the first label have the average of the second, and the same differences among each other.

    Args:
        generator: A generator with labels.
        start: The one label, for an image; see `Generator.sample`.
        end: The other.

    Raises:
        ValueError: If a label is unknown.
    """
    means = [generator.styles(1, label, truncation=0.0)[0, 0] for label in (start, end)]
    return means[1] - means[0]


def move(styles: Tensor, direction: Direction | Tensor, amount: float) -> Tensor:
    """Styles moved along a direction.

    Args:
        styles: (..., num_styles, w_dim).
        direction: What `label_direction` or `label_shift` gave, or any vector (w_dim,), or one per layer, (num_styles,
            w_dim), which is 0 where layers are to stay as they are.
        amount: How far, in lengths of the vector; of a `Direction` in its `spread`. Negative for the opposite.

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
