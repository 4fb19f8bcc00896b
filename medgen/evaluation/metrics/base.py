"""Base of the metrics that compare two sets of feature vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from medgen.evaluation.judges.features import FeatureNetwork
from medgen.evaluation.scores import Meaning


class FeatureMetric(Metric):
    """Base of the metrics that compare two sets of feature vectors.

    `compute` returns numbers by name; the ends of a 95 % interval are named ``NAME_low`` and ``NAME_high``.

    Args:
        features: The network that turns images into features; or the length D of a feature vector, if `update` gets
            vectors (B, D) instead of images.

    Attributes:
        network_in_name: Whether names of results must include the network, because values of networks do not compare.
        least: Smallest number of images in each set.
        meanings: Meaning of each number that `compute` returns, by name.
    """

    full_state_update = False
    network_in_name: ClassVar[bool] = False
    least: ClassVar[int] = 2
    meanings: ClassVar[Mapping[str, Meaning]] = {}

    def __init__(self, features: FeatureNetwork | int) -> None:
        super().__init__()
        self.network = features if isinstance(features, FeatureNetwork) else None
        self.dim = features.dim if isinstance(features, FeatureNetwork) else features

    def vectors(self, images: Tensor) -> Tensor:
        """Feature vectors (B, D) on the metric's device.

        Raises:
            ValueError: If given vectors have another length, or hold NaN or infinity.
        """
        features: Tensor = images if self.network is None else self.network(images)
        if features.dim() != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features have shape {tuple(features.shape)}; expected (B, {self.dim})")
        if not bool(features.isfinite().all()):
            raise ValueError("features hold NaN or infinity")
        return features.to(self.device)

    def update(self, images: Tensor, real: bool) -> None:
        """Add images (B, C, H, W) in [0, 1], or vectors (B, D), to the real or the generated set."""
        raise NotImplementedError

    def compute(self) -> dict[str, Tensor]:
        """Compute the numbers of the metric, by name."""
        raise NotImplementedError


class SampleMetric(FeatureMetric):
    """Base of the metrics that need all vectors rather than sums over them."""

    def __init__(self, features: FeatureNetwork | int) -> None:
        super().__init__(features)
        self.real: list[Tensor]
        self.generated: list[Tensor]
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("generated", [], dist_reduce_fx="cat")

    def update(self, images: Tensor, real: bool) -> None:
        """Add images (B, C, H, W) in [0, 1], or vectors (B, D), to the real or the generated set."""
        (self.real if real else self.generated).append(self.vectors(images))

    def sets(self, least: int | None = None) -> tuple[Tensor, Tensor]:
        """All real and all generated vectors, (N, D) and (M, D); ValueError if one has fewer than `least` of them."""
        least = self.least if least is None else least
        both = []
        for name in ("real", "generated"):
            state = getattr(self, name)  # a list until processes have exchanged theirs
            if isinstance(state, Tensor):
                vectors = state
            else:  # one part is not copied: sets may fill much of the memory
                vectors = (
                    state[0] if len(state) == 1 else torch.cat([torch.zeros(0, self.dim, device=self.device), *state])
                )
            if len(vectors) < least:
                raise ValueError(
                    f"the {name} set has {len(vectors)} images; {type(self).__name__} needs at least {least}"
                )
            both.append(vectors)
        return both[0], both[1]
