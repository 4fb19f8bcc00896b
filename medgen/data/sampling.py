"""Order of training images: shuffled by (seed, epoch), divided among ranks, resumable at any batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from medgen.data.batch import Batch

Key: TypeAlias = tuple[int, int]  # (epoch, index)


class EpochSampler(DistributedSampler[Key]):
    """Yields (epoch, index) pairs in an order that depends on seed and epoch only.

    The data set augments as a pure function of (epoch, index), so neither workers nor a restart change an image. It is
    a `DistributedSampler` so that Lightning sets its epoch and does not wrap it in another.

    Rank r takes every world-size-th entry from r on, so that an optimiser step sees the same images for any number of
    ranks at equal total batch size. All ranks get equally many.

    Args:
        dataset: The data set to draw from.
        shuffle: A new order each epoch; otherwise the order of the data set.
        seed: Chooses the sequence of orders.
        batch_size: Images per batch and rank.
        weights: (n,) Draw with replacement, in proportion to these, instead of each image once.
        drop_last: Leave out the images that do not fill every rank's last batch, instead of repeating some.
    """

    def __init__(
        self,
        dataset: Dataset[Batch],
        *,
        shuffle: bool,
        seed: int,
        batch_size: int,
        weights: NDArray[np.float64] | None = None,
        drop_last: bool = False,
    ) -> None:
        parallel = dist.is_available() and dist.is_initialized()
        super().__init__(
            dataset,
            num_replicas=dist.get_world_size() if parallel else 1,
            rank=dist.get_rank() if parallel else 0,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
        )
        self.batch_size = batch_size
        self.weights = weights
        self.start_batch = 0
        self._length = len(dataset)  # type: ignore[arg-type]
        step = self.num_replicas * (batch_size if drop_last else 1)
        self.total_size = self._length // step * step if drop_last else -(-self._length // step) * step
        self.num_samples = self.total_size // self.num_replicas

    def __iter__(self) -> Iterator[Key]:
        order = np.resize(self._order(), self.total_size)  # cut, or repeated from its start
        mine = order[self.rank :: self.num_replicas][self.start_batch * self.batch_size :]
        return ((self.epoch, int(index)) for index in mine)

    def set_epoch(self, epoch: int) -> None:
        """Switch to the order of another epoch, from its first batch on."""
        if epoch != self.epoch:
            self.start_batch = 0
        super().set_epoch(epoch)

    def layout(self) -> dict[str, int]:
        """Numbers that decide which images the n-th batch holds."""
        return {"images": self._length, "batch_size": self.batch_size, "processes": self.num_replicas}

    def _order(self) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(self._length)
        random = np.random.default_rng([self.seed, self.epoch])
        if self.weights is not None:
            return random.choice(self._length, size=self._length, p=self.weights)
        return random.permutation(self._length)


class EpochLoader(DataLoader[Batch]):
    """Data loader that can resume in the middle of an epoch; its sampler is an `EpochSampler`.

    Lightning saves ``state_dict`` with the fit loop and loads it before the first batch. Workers start with the first
    batch, not with the iterator, because Lightning sets the epoch in between. (With ``overfit_batches`` Lightning
    installs a plain sampler; the loader then has no state and images are not augmented.)
    """

    _batches_done = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        order = self.sampler
        if not isinstance(order, EpochSampler):
            yield from super().__iter__()
            return
        self._batches_done = order.start_batch
        for batch in super().__iter__():
            order.start_batch = 0  # for this pass only
            self._batches_done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, how many of its batches were yielded, and the layout that resuming needs."""
        order = self.sampler
        if not isinstance(order, EpochSampler):
            return {}
        return {"epoch": order.epoch, "batches": self._batches_done, "of": len(self)} | order.layout()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after the batches that were yielded.

        Raises:
            ValueError: If the state is from within an epoch of another layout (batch size, processes, images).
        """
        order = self.sampler
        if not isinstance(order, EpochSampler) or not state_dict:
            return
        layout = order.layout()
        saved = {name: state_dict[name] for name in layout}
        if state_dict["batches"] < state_dict["of"] and saved != layout:
            raise ValueError(
                f"the checkpoint stopped after batch {state_dict['batches']} of an epoch with {saved}, but this run "
                f"has {layout}; go on with the same settings, or from a checkpoint of the end of an epoch"
            )
        order.set_epoch(state_dict["epoch"])
        order.start_batch = self._batches_done = state_dict["batches"]


def balanced_weights(labels: Tensor) -> NDArray[np.float64]:
    """Probabilities (n,) of drawing each image when a class is drawn first, then one of its images.

    With several findings per image, a finding (or "none of them") takes the place of the class. Images of unknown class
    are never drawn.

    Args:
        labels: (n,) classes with -1 for unknown, or (n, K) findings 0 / 1 with NaN for unknown.
    """
    values = labels.numpy()
    if values.ndim == 1:
        member = values[:, None] == np.unique(values[values >= 0])[None]
    else:
        member = np.concatenate([values == 1, (values == 0).all(axis=1, keepdims=True)], axis=1)
    counts = member.sum(axis=0)
    if not counts.any():
        raise ValueError("balanced sampling needs labels, but every label of the training split is unknown")
    weights: NDArray[np.float64] = np.divide(member, counts, where=counts > 0, out=np.zeros(member.shape)).sum(axis=1)
    weights /= weights.sum()
    return weights


def keys_to_arrays(keys: Sequence[int | Key]) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
    """Epochs and indices of a list of keys; epochs are ``None`` for plain indices (images that are not augmented)."""
    array = np.asarray(keys, dtype=np.int64)
    return (None, array) if array.ndim == 1 else (array[:, 0], array[:, 1])
