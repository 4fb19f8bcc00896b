"""Topological rules of anatomy (one piece, no holes, enclosed), and transforms whose results must obey them."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.anatomy.base import (
    Branches,
    Labels,
    MaskTransform,
    Range,
    check_labels,
    check_masks,
    check_number,
    check_range,
    check_transform,
    ends_of,
    labels_of,
)
from medgen.noise import NoiseSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rule(ABC):
    """A rule that one class of a map, or the union of several, must obey; maps without them obey.

    Derive a frozen dataclass and write `_holds`.
    """

    labels: Labels

    def __post_init__(self) -> None:
        check_labels("labels", self.labels)

    def holds(self, mask: NDArray[np.int64]) -> bool:
        """Whether a map (H, W) of class numbers obeys; most rules need SciPy."""
        inside = np.isin(mask, labels_of(self.labels))
        return not inside.any() or self._holds(inside, mask)

    @abstractmethod
    def _holds(self, inside: NDArray[np.bool_], mask: NDArray[np.int64]) -> bool:
        """Whether a map obeys, given that some pixels are inside the classes."""


@dataclass(frozen=True)
class OneComponent(Rule):
    """The classes form one component; pixels that meet at a corner are connected."""

    def _holds(self, inside: NDArray[np.bool_], mask: NDArray[np.int64]) -> bool:
        return count_components(inside) == 1


@dataclass(frozen=True)
class NoHoles(Rule):
    """The classes enclose no other pixels; pixels outside them are not connected by corners."""

    def _holds(self, inside: NDArray[np.bool_], mask: NDArray[np.int64]) -> bool:
        return count_holes(inside) == 0


@dataclass(frozen=True)
class Enclosed(Rule):
    """The classes lie inside others: their pixels have no side in common with a third class or the image border.

    Attributes:
        labels: The class or classes inside.
        by: The class or classes around them.
    """

    by: Labels

    def __post_init__(self) -> None:
        super().__post_init__()
        check_labels("by", self.by)
        if shared := sorted(set(labels_of(self.labels)) & set(labels_of(self.by))):
            raise ValueError(f"by is {self.by}, which shares {shared} with labels {self.labels}; leave it out of one")

    def _holds(self, inside: NDArray[np.bool_], mask: NDArray[np.int64]) -> bool:
        others = np.pad(~(inside | np.isin(mask, labels_of(self.by))), 1, constant_values=True)
        beside = others[:-2, 1:-1] | others[2:, 1:-1] | others[1:-1, :-2] | others[1:-1, 2:]
        return not bool((inside & beside).any())


@dataclass(frozen=True)
class WithinImage(Rule):
    """The classes have no pixel at the border of the image."""

    def _holds(self, inside: NDArray[np.bool_], mask: NDArray[np.int64]) -> bool:
        return not bool(inside[[0, -1]].any() or inside[:, [0, -1]].any())


@dataclass(frozen=True)
class Size(Rule):
    """The classes cover a share of the image, from the smallest to the largest allowed."""

    share: Range

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("share", self.share, 0, 1)

    def _holds(self, inside: NDArray[np.bool_], mask: NDArray[np.int64]) -> bool:
        low, high = ends_of(self.share)
        return low <= float(inside.mean()) <= high


def _heart(*muscle: int) -> tuple[Rule, ...]:
    return (
        OneComponent(1),
        OneComponent(muscle),
        OneComponent(3),
        OneComponent((1, *muscle, 3)),
        NoHoles(1),
        NoHoles((*muscle, 3)),
        Enclosed(3, by=muscle),
        WithinImage((1, *muscle, 3)),
    )


HEART = _heart(2)
"""One right ventricle (1), attached to one left ventricle whose cavity (3) lies inside one myocardium (2).

Class numbers are those of short-axis slices of ACDC (Bernard et al. 2018), of which 98.6 % obey all
rules (1117 slices of 59 patients). Slices without some of the classes can obey.
"""

SCARRED_HEART = _heart(2, 4)
"""Rules of `HEART` with a scar (4), which counts as muscle and may touch the cavity; see `InsertLesion`."""


def obeys(masks: Tensor, rules: Sequence[Rule]) -> Tensor:
    """Whether each of the maps (B, H, W) int64 obeys all rules, (B,) bool on the CPU.

    Raises:
        ValueError: If the masks are not class maps.
    """
    check_masks(masks)
    return torch.tensor([all(rule.holds(mask) for rule in rules) for mask in masks.cpu().numpy()], dtype=torch.bool)


@dataclass
class Tally:
    """Counts of `Checked`.

    Attributes:
        accepted: Maps that were changed.
        rejected: Draws that broke a rule.
        given_up: Maps left unchanged because all their draws broke a rule.
    """

    accepted: int = 0
    rejected: int = 0
    given_up: int = 0


@dataclass(frozen=True)
class Checked(MaskTransform):
    """Repeat a transform for maps whose results break a rule; leave a map unchanged if all its draws do.

    A warning is logged if all maps of a batch stay unchanged; maps that break a rule themselves mostly do.

    Attributes:
        transform: The transform; each try draws new noise.
        rules: Rules that the results must obey.
        tries: Most draws per map.
        keeps: Least size of each class in the result, as a share of its size before; 0 lets classes vanish.
        tally: Counts since this object was made, in this process.
    """

    transform: MaskTransform
    rules: Sequence[Rule] = HEART
    tries: int = 10
    keeps: float = 0.2
    tally: Tally = field(default_factory=Tally, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_transform("transform", self.transform)
        for position, rule in enumerate(self.rules):
            if not isinstance(rule, Rule):
                raise ValueError(f"rules[{position}] is {rule!r}; give a rule of medgen.anatomy, with its classes")
        check_number("keeps", self.keeps, 0)
        if self.tries < 1:
            raise ValueError(f"tries is {self.tries}; use at least 1")
        object.__setattr__(self, "rules", tuple(self.rules))

    def _changed(self, masks: Tensor, noise: NoiseSource) -> Tensor:
        branches = Branches(noise)
        result = masks.clone()
        left = torch.arange(len(masks))
        for attempt in range(self.tries):
            before = masks[left.to(masks.device)]
            after = self.transform(before, branches.of(left.tolist(), attempt))
            good = obeys(after, self.rules) & _has_kept(before, after, self.keeps)
            result[left[good].to(masks.device)] = after[good.to(masks.device)]
            self.tally.accepted += int(good.sum())
            self.tally.rejected += int((~good).sum())
            left = left[~good]
            if not len(left):
                break
        self.tally.given_up += len(left)
        if len(left) == len(masks):
            logger.warning(
                "all %d maps stay as they were: no result of %s obeys the rules; are these the rules of such maps?",
                len(masks),
                self.transform,
            )
        return result


def count_components(inside: NDArray[np.bool_]) -> int:
    """Number of components of a set of pixels (H, W); pixels that meet at a corner are connected. Needs SciPy."""
    return int(_ndimage().label(inside, structure=np.ones((3, 3)))[1])


def count_holes(inside: NDArray[np.bool_]) -> int:
    """Number of holes in a set of pixels (H, W); pixels of a hole are not connected by corners. Needs SciPy."""
    return int(_ndimage().label(np.pad(~inside, 1, constant_values=True))[1]) - 1


def _has_kept(before: Tensor, after: Tensor, share: float) -> Tensor:
    """Whether each map has at least a share of every class of the map before, (B,) bool on the CPU."""
    kept = torch.ones(len(before), dtype=torch.bool, device=before.device)
    for label in before.unique().tolist():
        sizes = [(masks == label).sum((1, 2)) for masks in (after, before)]
        kept &= sizes[0] >= share * sizes[1]
    return kept.cpu()


def _ndimage() -> ModuleType:
    try:
        from scipy import ndimage
    except ImportError as error:
        raise ImportError('rules of topology need SciPy; run: pip install "medgen[eval]"') from error
    module: ModuleType = ndimage
    return module
