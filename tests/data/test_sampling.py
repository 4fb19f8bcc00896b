"""The order of images: complete, deterministic, shared by ranks, resumable, balanced."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
import torch.distributed as dist

from medgen.data.sampling import EpochLoader, EpochSampler, balanced_weights


class Numbers(torch.utils.data.Dataset):
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        raise NotImplementedError

    def __getitems__(self, keys):
        return list(keys)


def sampler(length=10, *, epoch=0, **options):
    made = EpochSampler(Numbers(length), **{"shuffle": True, "seed": 0, "batch_size": 2} | options)
    made.set_epoch(epoch)
    return made


def loader(length=10, workers=0, **options):
    order = sampler(length, **options)
    return EpochLoader(
        order.dataset, batch_size=order.batch_size, sampler=order, num_workers=workers, collate_fn=lambda batch: batch
    )


@pytest.fixture
def ranks(monkeypatch):
    """A function that builds one sampler per rank of a pretended group."""

    def build(world, **options):
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda *_: world)
        made = []
        for rank in range(world):
            monkeypatch.setattr(dist, "get_rank", lambda *_, rank=rank: rank)
            made.append(sampler(**options))
        return made

    return build


def test_every_image_comes_once_per_epoch_with_the_epoch():
    assert sorted(sampler(7, epoch=3)) == [(3, index) for index in range(7)]


def test_the_order_is_a_function_of_seed_and_epoch():
    assert list(sampler(50, epoch=3)) == list(sampler(50, epoch=3))
    orders = {tuple(index for _, index in sampler(50, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_without_shuffling_the_order_is_that_of_the_table():
    assert [index for _, index in sampler(5, shuffle=False)] == [0, 1, 2, 3, 4]


def test_ranks_share_an_epoch_without_overlap(ranks):
    parts = [[index for _, index in part] for part in ranks(3, length=12)]
    assert [len(part) for part in parts] == [4, 4, 4]
    assert sorted(itertools.chain(*parts)) == list(range(12))


def test_the_images_of_a_step_do_not_depend_on_the_number_of_ranks(ranks):
    alone = [index for _, index in sampler(12, batch_size=4)]
    first, second = ([index for _, index in part] for part in ranks(2, length=12, batch_size=2))
    for step in range(3):
        assert set(alone[4 * step : 4 * step + 4]) == set(
            first[2 * step : 2 * step + 2] + second[2 * step : 2 * step + 2]
        )


@pytest.mark.parametrize(("drop_last", "each"), [(False, 4), (True, 2)])
def test_all_ranks_get_equally_many_when_the_number_does_not_divide(ranks, drop_last, each):
    parts = [list(part) for part in ranks(3, length=10, drop_last=drop_last)]
    assert [len(part) for part in parts] == [each] * 3
    if not drop_last:
        assert {index for part in parts for _, index in part} == set(range(10))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_where_its_state_was_taken(workers):
    first = loader(11, workers, epoch=4)
    whole = list(first)
    batches = iter(first)
    for _ in range(2):
        next(batches)
    state = first.state_dict()
    resumed = loader(11, workers)
    resumed.load_state_dict(state)
    assert list(resumed) == whole[2:]


def test_only_the_first_pass_after_loading_a_state_is_shortened():
    resumed = loader(10)
    resumed.load_state_dict({"epoch": 0, "batches": 3, "of": 5, "images": 10, "batch_size": 2, "processes": 1})
    assert [len(list(resumed)) for _ in range(2)] == [2, 5]


def test_another_epoch_than_the_one_saved_starts_at_its_beginning():
    resumed = loader(10)
    resumed.load_state_dict({"epoch": 0, "batches": 3, "of": 5, "images": 10, "batch_size": 2, "processes": 1})
    resumed.sampler.set_epoch(1)
    assert len(list(resumed)) == 5


def test_going_on_within_an_epoch_of_other_batches_is_refused():
    other = loader(10, batch_size=5)
    state = loader(10).state_dict() | {"batches": 3}
    with pytest.raises(ValueError, match=r"stopped after batch 3 .*'batch_size': 2.*'batch_size': 5"):
        other.load_state_dict(state)


def test_going_on_after_an_epoch_with_other_batches_is_fine():
    other = loader(10, batch_size=5)
    other.load_state_dict(loader(10).state_dict() | {"batches": 5})
    other.sampler.set_epoch(1)
    assert len(list(other)) == 2


def test_balanced_weights_give_every_class_the_same_chance():
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    weights = balanced_weights(labels)
    assert [weights[labels.numpy() == c].sum() for c in range(3)] == pytest.approx([1 / 3] * 3)


def test_balanced_weights_of_findings_share_between_findings_and_none():
    labels = torch.tensor([[1, 0], [1, 1], [0, 0], [0, 0], [float("nan"), 0]])
    # Three groups of a third: finding 0 (images 0 and 1), finding 1 (image 1), none (images 2 and 3).
    assert balanced_weights(labels) == pytest.approx([1 / 6, 1 / 6 + 1 / 3, 1 / 6, 1 / 6, 0])


def test_images_of_unknown_class_are_never_drawn():
    assert balanced_weights(torch.tensor([-1, 0, 1, 1])) == pytest.approx([0, 0.5, 0.25, 0.25])
    with pytest.raises(ValueError, match="every label of the training split is unknown"):
        balanced_weights(torch.tensor([-1, -1]))


def test_weighted_orders_follow_the_weights_and_repeat():
    weights = balanced_weights(torch.tensor([0] * 1900 + [1] * 100))
    order = [index for _, index in sampler(2000, weights=weights)]
    drawn = Counter(index >= 1900 for index in order)
    assert 0.45 < drawn[True] / 2000 < 0.55
    assert order == [index for _, index in sampler(2000, weights=weights)]
    assert np.unique(order).size < 2000
