import numpy as np
import pytest
import torch

from medgen.evaluation.checks.privacy import (
    authenticity,
    copying_z,
    memorisation_scores,
    nearest_pictures,
    nearest_training,
)
from medgen.evaluation.judges.networks import feature_network
from medgen.evaluation.sets import FeatureSet
from medgen.evaluation.statistics import distances
from medgen.evaluation.statistics.distances import nearest


@pytest.fixture(scope="module")
def pixels():
    return feature_network("pixels")


@pytest.fixture(scope="module")
def textures(pixels):
    """Sets of unlike images, as image rows of a feature set."""

    def make(name, images):
        features = {"pixels": pixels(images)}
        return FeatureSet(
            name=name, images=images, features=features, labels=None, n=len(images), rows=range(len(images))
        )

    return make


def noise(n, seed):
    return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_nearest_of_points_on_a_line():
    found = nearest(torch.tensor([[0.9], [5.0]]), torch.tensor([[0.0], [1.0], [7.0]]))
    assert found.index.tolist() == [1, 2]
    assert found.distance.tolist() == pytest.approx([0.1, 2.0])


def test_nearest_equals_brute_force_in_any_block_size(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, reference = torch.randn(40, 8, generator=generator), torch.randn(70, 8, generator=generator)
    monkeypatch.setattr(distances, "_BLOCK", 100)
    expected = torch.cdist(queries, reference).min(1)
    found = nearest(queries, reference)
    assert torch.equal(found.index, expected.indices)
    torch.testing.assert_close(found.distance, expected.values)


def test_an_exact_copy_far_from_the_origin_is_at_distance_zero():
    reference = 1000 + torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    assert nearest(reference[5:6], reference).distance.item() == 0


def test_vectors_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="vectors of one length"):
        nearest(torch.zeros(2, 3), torch.zeros(2, 4))


def test_planted_copies_are_found_with_their_source(pixels, textures):
    train = noise(50, 0)
    generated = noise(10, 1)
    generated[3] = train[17] + 0.01 * noise(1, 2)[0] * (1 - train[17])
    sets = textures("generated", generated), textures("train", train), textures("test", noise(40, 3))
    found = nearest_training(*sets, pixels)
    assert found.generated.index[3] == 17
    assert found.generated.distance.argmin() == 3
    assert found.near_share == pytest.approx(1 / 10)


def test_fresh_images_raise_no_alarm(pixels, textures):
    sets = textures("generated", noise(40, 1)), textures("train", noise(50, 0)), textures("test", noise(40, 3))
    found = nearest_training(*sets, pixels)
    assert found.median_ratio == pytest.approx(1, abs=0.05)
    assert found.near_share <= 0.1


def test_a_model_that_only_copies_has_a_ratio_near_zero(pixels, textures):
    train = noise(50, 0)
    sets = textures("generated", train[:20]), textures("train", train), textures("test", noise(40, 3))
    found = nearest_training(*sets, pixels)
    assert found.median_ratio == 0
    assert found.near_share == 1


def test_scores_name_the_space_and_the_baseline(pixels, textures):
    sets = textures("model", noise(8, 1)), textures("train", noise(50, 0)), textures("test", noise(40, 3))
    scores = memorisation_scores(nearest_training(*sets, pixels), sets[0], sets[2], pixels)
    assert set(scores) == {"nearest_train_ratio_pixels", "near_train_share_pixels"}
    assert {(s.generated, s.n_generated, s.real, s.n_real) for s in scores.values()} == {("model", 8, "test", 40)}


def test_pictures_show_the_nearest_sample_beside_its_training_image(pixels, textures):
    train, generated = torch.zeros(3, 1, 64, 64), torch.zeros(2, 1, 64, 64)
    train[2], generated[1], generated[0] = 0.8, 0.8, 0.4
    sets = textures("generated", generated), textures("train", train), textures("test", noise(4, 0))
    picture = nearest_pictures(nearest_training(*sets, pixels), *sets[:2], count=1, columns=1)
    shown = np.unique(np.asarray(picture)[:128])
    assert 204 in shown  # grey level 0.8, in the first pair
    assert 102 not in shown  # grey level 0.4, farther from the training images


def test_authenticity_on_a_line():
    train = torch.tensor([[0.0], [1.0], [5.0]])  # own neighbours at 1, 1, 4
    generated = nearest(torch.tensor([[0.2], [-1.5], [7.0], [10.0]]), train)
    assert authenticity(generated, train).tolist() == [False, True, False, True]


def test_copying_is_a_z_score_of_fresh_images_and_far_below_zero_for_copies():
    generator = torch.Generator().manual_seed(0)
    train, held_out, fresh = (torch.randn(300, 4, generator=generator) for _ in range(3))
    copies = train[:150] + 0.01 * torch.randn(150, 4, generator=generator)
    unseen = nearest(held_out, train).distance
    assert abs(copying_z(nearest(fresh, train).distance, unseen)) < 3
    assert copying_z(nearest(copies, train).distance, unseen) < -10
    assert np.isnan(copying_z(torch.rand(5), unseen))


def test_copying_in_one_cell_is_seen_though_the_rest_is_far():
    held_out, cells = torch.rand(100), torch.arange(100) % 2
    generated = torch.where(torch.arange(100) % 2 == 0, torch.rand(100) * 0.01, 2 + torch.rand(100))
    both = torch.cat([cells, cells])
    copied, rest = both.clone(), both.clone()
    rest[both == 0], copied[both == 1] = torch.arange(100) + 10, torch.arange(100) + 10  # too small to count
    assert copying_z(generated, held_out, cells=copied) < -5
    assert copying_z(generated, held_out, cells=rest) > 5
