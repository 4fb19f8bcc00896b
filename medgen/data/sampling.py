"""The order of training images: shuffled by (seed, epoch), shared by ranks, resumable at any batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

if TYPE_CHECKING:
    from medgen.data.dataset import Batch

Key: TypeAlias = "tuple[int, int]"  # (epoch, index): which look at which image


class EpochSampler(DistributedSampler[Key]):
    """Yields (epoch, index) pairs, in an order that depends on nothing but seed and epoch.

    Epoch and index together let a data set augment as a pure function of what it is asked for, so neither workers nor
    a restart change anything. Being a `DistributedSampler`, Lightning sets its epoch and wraps no other around it.

    Rank r takes every world-size-th entry from r on, so that the images of one optimiser step are the same for any
    number of ranks at equal total batch size. All ranks get the same number.

    Args:
        dataset: The data set to draw from.
        shuffle: A new order each epoch; otherwise the order of the data set.
        seed: Chooses the sequence of orders.
        weights: (n,) Draw with replacement, in proportion to these, instead of each image once.
        drop_last: Leave out what does not fill every rank's last batch, instead of repeating images at the end.
        batch_size: Images per batch and rank.
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
        order = self._order()
        order = np.resize(order, self.total_size)  # shorter, or repeated from its start
        mine = order[self.rank :: self.num_replicas][self.start_batch * self.batch_size :]
        return ((self.epoch, int(index)) for index in mine)

    def set_epoch(self, epoch: int) -> None:
        """Take the order of another epoch, from its first batch on."""
        if epoch != self.epoch:
            self.start_batch = 0
        super().set_epoch(epoch)

    def layout(self) -> dict[str, int]:
        """What decides which images the n-th batch holds."""
        return {"images": self._length, "batch_size": self.batch_size, "processes": self.num_replicas}

    def _order(self) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(self._length)
        random = np.random.default_rng([self.seed, self.epoch])
        if self.weights is not None:
            return random.choice(self._length, size=self._length, p=self.weights)
        return random.permutation(self._length)


class EpochLoader(DataLoader["Batch"]):
    """A loader that can stop in the middle of an epoch and go on there; its sampler is an `EpochSampler`.

    Lightning saves ``state_dict`` with the fit loop and loads it before the first batch. Workers are started with the
    first batch, not when the iterator is made, because Lightning sets the epoch in between. (With ``overfit_batches``
    it replaces the sampler by a plain one; the loader then has no state and the images are not augmented.)
    """

    _batches_done = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        order = self.sampler
        if not isinstance(order, EpochSampler):
            yield from super().__iter__()
            return
        self._batches_done = order.start_batch
        for batch in super().__iter__():
            order.start_batch = 0  # it held for this pass only
            self._batches_done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch and how many of its batches were handed out, with all that must be the same to go on within it."""
        order = self.sampler
        if not isinstance(order, EpochSampler):
            return {}
        return {"epoch": order.epoch, "batches": self._batches_done, "of": len(self)} | order.layout()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after the batches that were handed out.

        Raises:
            ValueError: If the state is from within an epoch of other batches (batch size, processes, images).
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
    """Chances (n,) that amount to choosing a class at random and then one of its images.

    For several findings per image, choosing one of the findings (or "none of them") and then one image that shows it.
    Images of unknown class are never drawn.

    Args:
        labels: (n,) classes with -1 for unknown, or (n, K) findings 0 / 1 with NaN for unknown.
    """
    values = labels.numpy()
    if values.ndim == 1:
        member = values[:, None] == np.unique(values[values >= 0])[None]
    else:
        found = values == 1
        none = (values == 0).all(axis=1, keepdims=True)
        member = np.concatenate([found, none], axis=1)
    counts = member.sum(axis=0)
    if not counts.any():
        raise ValueError("balanced sampling needs labels, but every label of the training split is unknown")
    weights: NDArray[np.float64] = np.divide(member, counts, where=counts > 0, out=np.zeros(member.shape)).sum(axis=1)
    weights /= weights.sum()
    return weights


def keys_to_arrays(keys: Sequence[int | Key]) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
    """Epochs and indices of a list of keys; epochs are ``None`` for plain indices, which mean the image as it is."""
    array = np.asarray(keys, dtype=np.int64)
    return (None, array) if array.ndim == 1 else (array[:, 0], array[:, 1])
