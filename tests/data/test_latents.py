"""Latents are encoded once, right, and drawn anew in every epoch."""

import numpy as np
import pytest
import torch

from medgen.data import Augmentation, latents
from medgen.data.latents import LatentStore
from tests.tiny import data_module, generator

CPU = torch.device("cpu")


@pytest.fixture
def autoencoder():
    return generator().autoencoder


@pytest.fixture
def data(table, tmp_path):
    return data_module(table, cache_folder=str(tmp_path / "cache"))


def open_store(autoencoder, data, variants=1):
    return LatentStore(autoencoder, data, latent_shape=(4, 8, 8), variants=variants, device=CPU)


def encoded(autoencoder, data, epoch=None):
    """Mean and log-variance of the training images, as they are or augmented."""
    dataset = data.dataset("train")
    batch = dataset.__getitems__([i if epoch is None else (epoch, i) for i in range(len(dataset))])
    with torch.no_grad():
        return autoencoder.encode_moments(batch["image"] * 2 - 1)


def test_drawn_latents_have_the_moments_of_their_image(autoencoder, data):
    store = open_store(autoencoder, data)
    mean, logvar = encoded(autoencoder, data)
    index = torch.tensor([5, 0, 5])
    torch.manual_seed(0)
    drawn = store.draw(index, epoch=0)
    torch.manual_seed(0)
    expected = mean[index] + (0.5 * logvar[index]).exp() * torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-5)
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("at_once", [5, 64])
def test_statistics_are_those_of_the_drawn_latents(autoencoder, data, monkeypatch, at_once):
    monkeypatch.setattr(latents, "_BATCH", at_once)
    store = open_store(autoencoder, data)
    mean, std = store.statistics()
    torch.manual_seed(0)
    drawn = torch.cat([store.draw(torch.arange(24), epoch) for epoch in range(200)])
    torch.testing.assert_close(mean.flatten(), drawn.mean((0, 2, 3)), rtol=0, atol=0.03)
    torch.testing.assert_close(std.flatten(), drawn.std((0, 2, 3)), rtol=0.01, atol=0)
    assert mean.shape == std.shape == (4, 1, 1)


def test_a_second_run_reads_what_the_first_one_encoded(autoencoder, data, monkeypatch):
    first = open_store(autoencoder, data)
    monkeypatch.setattr(latents, "_encode", lambda *args: pytest.fail("encoded again"))
    assert np.array_equal(open_store(autoencoder, data).encoded.array, first.encoded.array)


def test_other_weights_are_encoded_anew(autoencoder, data):
    first = open_store(autoencoder, data)
    with torch.no_grad():
        next(autoencoder.parameters()).mul_(1.01)
    assert not np.array_equal(open_store(autoencoder, data).encoded.array, first.encoded.array)


def test_other_data_are_encoded_anew(autoencoder, data, table, tmp_path):
    first = open_store(autoencoder, data)
    other = data_module(table, cache_folder=str(tmp_path / "cache"), intensity_window=(0, 200))
    assert not np.array_equal(open_store(autoencoder, other).encoded.array, first.encoded.array)


@pytest.mark.slow
def test_epochs_take_the_augmented_variants_in_turn(autoencoder, table, tmp_path):
    data = data_module(
        table, cache_folder=str(tmp_path), augment=Augmentation(horizontal_flip=True, rotation_degrees=20)
    )
    store = open_store(autoencoder, data, variants=3)
    index = torch.arange(24)
    for epoch in range(6):
        mean, logvar = encoded(autoencoder, data, epoch % 3)
        torch.manual_seed(epoch)
        drawn = store.draw(index, epoch)
        torch.manual_seed(epoch)
        expected = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(encoded(autoencoder, data, 0)[0], encoded(autoencoder, data, 1)[0], atol=1e-3)


def test_a_vector_quantised_latent_is_kept_as_it_is(data):
    autoencoder = generator(autoencoder={"kind": "vq"}).autoencoder
    store = open_store(autoencoder, data)
    batch = data.dataset("train").__getitems__([3, 4])
    with torch.no_grad():
        expected = autoencoder.encode(batch["image"] * 2 - 1)
    torch.testing.assert_close(store.draw(torch.tensor([3, 4]), epoch=9), expected, rtol=0, atol=1e-5)
    mean, std = store.statistics()
    everything = store.draw(torch.arange(24), 0)
    torch.testing.assert_close(mean.flatten(), everything.mean((0, 2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(std.flatten(), everything.std((0, 2, 3), correction=0), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("variants", "augment", "message"),
    [
        (0, None, "latent_variants is 0; use at least 1"),
        (3, None, "latent_variants is 3, but the data does not augment"),
        (1, Augmentation(horizontal_flip=True), "latent_variants is 1, but the data augments"),
    ],
)
def test_variants_go_with_augmentation(autoencoder, table, variants, augment, message):
    with pytest.raises(ValueError, match=message):
        open_store(autoencoder, data_module(table, augment=augment), variants)
