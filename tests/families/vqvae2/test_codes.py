"""Codes are encoded once, right, and in turn where there are variants."""

import numpy as np
import pytest
import torch

from medgen.data import Augmentation
from medgen.families.vqvae2.modules import open_codes, unpack
from tests.families.vqvae2.tiny import generator
from tests.tiny import data_module

CPU = torch.device("cpu")
EVERYTHING = torch.arange(24)


@pytest.fixture
def model():
    return generator()


@pytest.fixture
def cached(table, tmp_path):
    """A function from options to the tiny data with a cache of this test."""
    return lambda **options: data_module(table, cache_folder=str(tmp_path / "cache"), **options)


class Store:
    """Codes of a split, which the bottom prior's training opens and unpacks the same way."""

    def __init__(self, model, data, variants=1, split="train"):
        self.encoded = open_codes(model, data, split, variants=variants, device=CPU)
        self.config = model.config

    def read(self, index, epoch=0):
        return unpack(self.encoded.read(index, epoch), self.config)


open_store = Store


def encoded(model, data, split="train", epoch=None):
    """Codes of the images, as they are or augmented."""
    dataset = data.dataset(split)
    keys = [i if epoch is None else (epoch, i) for i in range(len(dataset))]
    return model.encode(dataset.__getitems__(keys)["image"])


def assert_same_codes(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.int64
        assert ours.tolist() == theirs.tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"image_size": (16, 24), "channels": 3}, {"image_size": (24, 16)}, {"autoencoder": {"num_codes": 300}}],
    ids=str,
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_codes_are_those_of_their_image(cached, changes, split):
    model = generator(**changes)
    data = cached(image_size=model.config.image_size, channels=model.config.channels)
    index = torch.tensor([5, 0, 5])
    expected = encoded(model, data, split)
    assert len(expected.bottom.unique()) > 4
    found = open_store(model, data, split=split).read(index, epoch=7)
    assert_same_codes(found, [part[index] for part in expected])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_codes", "dtype"), [(16, np.int16), (2**15, np.int16), (2**15 + 1, np.int32)], ids=["few", "most", "more"]
)
def test_codes_are_stored_in_as_few_bytes_as_they_need(cached, num_codes, dtype):
    model, data = generator(autoencoder={"num_codes": num_codes}), cached()
    for level in (model.autoencoder.top_codes, model.autoencoder.bottom_codes):
        level.codebook[: num_codes // 2] += 100  # so that the upper half is used
    store = open_store(model, data)
    assert store.encoded.array.dtype == dtype
    assert store.read(EVERYTHING).bottom.max() >= num_codes // 2
    assert_same_codes(store.read(EVERYTHING), encoded(model, data))


def test_a_second_run_reads_what_the_first_one_encoded(model, cached, monkeypatch):
    first = open_store(model, cached()).read(EVERYTHING)
    monkeypatch.setattr(model.autoencoder, "encode", lambda images: pytest.fail("encoded again"))
    assert_same_codes(open_store(model, cached()).read(EVERYTHING), first)


@pytest.mark.parametrize("part", ["encode_bottom.0.weight", "top_codes.codebook"])
def test_another_first_stage_encodes_anew(model, cached, part):
    first = open_store(model, cached()).read(EVERYTHING)
    model.autoencoder.state_dict()[part].mul_(-1)
    second = open_store(model, cached()).read(EVERYTHING)
    assert not torch.equal(second.top, first.top)
    assert_same_codes(second, encoded(model, cached()))


def test_other_priors_read_the_same_codes(model, cached, monkeypatch):
    open_store(model, cached())
    model.top.to_logits.bias.data += 1
    monkeypatch.setattr(model.autoencoder, "encode", lambda images: pytest.fail("encoded again"))
    assert open_store(model, cached()).read(EVERYTHING).top.shape == (24, 2, 2)


def test_encoding_a_split_leaves_the_codebooks_alone(model, cached):
    model.train()
    before = model.codebook_hash
    open_store(model, cached())
    assert model.codebook_hash == before


def test_epochs_take_the_augmented_variants_in_turn(model, cached):
    data = cached(augment=Augmentation(horizontal_flip=True, rotation_degrees=20))
    store = open_store(model, data, variants=3)
    for epoch in range(6):
        assert_same_codes(store.read(EVERYTHING, epoch), encoded(model, data, epoch=epoch % 3))
    assert not torch.equal(store.read(EVERYTHING, 0).bottom, store.read(EVERYTHING, 1).bottom)


def test_what_is_measured_on_is_not_augmented(model, cached):
    augmented = open_store(model, cached(augment=Augmentation(rotation_degrees=20)), split="val")
    assert_same_codes(augmented.read(torch.arange(8), epoch=3), encoded(model, cached(), "val"))


@pytest.mark.parametrize(
    ("variants", "augment", "message"),
    [
        (0, None, "code_variants is 0; use at least 1"),
        (3, None, "code_variants is 3, but the data does not augment"),
        (1, Augmentation(horizontal_flip=True), "code_variants is 1, but the data augments"),
    ],
)
def test_variants_go_with_augmentation(model, cached, variants, augment, message):
    with pytest.raises(ValueError, match=message):
        open_store(model, cached(augment=augment), variants)
