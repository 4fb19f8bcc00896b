from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medgen.evaluation.checks.class_distances import class_distances
from medgen.evaluation.checks.controls import controls, pick_matched
from medgen.evaluation.checks.zero_point import halves_by_patient, zero_point
from medgen.evaluation.report.plots import dendrogram_plot, distances_plot, scaled_to_two_dimensions
from medgen.evaluation.run import real_features
from medgen.evaluation.sets import FeatureSet, RealImages
from medgen.labels import LabelSpace


def test_training_images_have_the_classes_of_the_reference(datamodule):
    train, test = RealImages(datamodule, "train"), RealImages(datamodule, "test")
    picked = pick_matched(train, test, 20, seed=0)
    everything = train[0:60]
    rows = [int((everything == image).flatten(1).all(1).nonzero()) for image in picked]
    assert len(set(rows)) == 20
    assert train.labels[rows].bincount().tolist() == [14, 6]


def test_another_seed_picks_other_images(datamodule):
    train, test = RealImages(datamodule, "train"), RealImages(datamodule, "test")
    assert not torch.equal(pick_matched(train, test, 20, seed=0), pick_matched(train, test, 20, seed=1))


def test_a_class_short_of_images_limits_the_number_and_not_the_shares(datamodule):
    train, test = RealImages(datamodule, "train"), RealImages(datamodule, "test")
    train.labels[torch.nonzero(train.labels == 1)[:9]] = -1  # 9 of 18 bright images are left
    assert len(pick_matched(train, test, 60, seed=0)) == 30


def test_blurred_training_images_are_farther_than_sharp_ones(datamodule):
    class Spread(torch.nn.Module):
        def forward(self, images):
            return torch.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], 1)

    from medgen.evaluation.judges.features import FeatureNetwork

    found = controls(datamodule, FeatureNetwork("spread", Spread(), size=(8, 8), dim=2), ["frechet_distance"])
    sharp, blurred = (scores["fd_spread"] for scores in found.values())
    assert (sharp.generated, blurred.generated) == ("train", "train, blurred by 1 pixel")
    assert blurred.value > 10 * sharp.value


def flat(n, *, labels, level=0.0, seed=0):
    """A set whose features are noise around a level for each class."""
    features = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)) + level * labels[:, None]
    return FeatureSet(name="set", images=features, features={"quarters": features}, labels=labels, n=n, rows=range(n))


def test_halves_share_no_patient_and_have_the_same_classes(tmp_path):
    images = SimpleNamespace(
        patients=[f"p{i // 3}" for i in range(120)], labels=torch.arange(120) // 3 % 2, __len__=lambda: 120
    )
    one, other = halves_by_patient(images)
    assert sorted([*one.tolist(), *other.tolist()]) == list(range(120))
    assert not {images.patients[i] for i in one} & {images.patients[i] for i in other}
    assert images.labels[one].bincount().tolist() == images.labels[other].bincount().tolist() == [30, 30]
    assert not torch.equal(halves_by_patient(images, seed=1)[0], one)


def test_the_zero_point_of_a_real_set_is_near_zero(datamodule, network):
    real = real_features(RealImages(datamodule, "train"), [network])
    scores = zero_point(real, network, ["frechet_distance", "kernel_distance"])
    assert scores["fd_quarters"].value < 0.01
    assert scores["kd_quarters"].low < 0 < scores["kd_quarters"].high
    assert scores["fd_quarters"].n_generated == scores["fd_quarters"].n_real == 30


def test_a_generated_class_lies_nearest_to_its_own(network):
    labels, space = torch.arange(200) % 2, LabelSpace("single", ("dark", "bright"))
    real, generated = flat(200, labels=labels, level=5), flat(200, labels=labels, level=4, seed=1)
    found = class_distances(generated, real, network, space)
    assert found.names == ["real: dark", "generated: dark", "real: bright", "generated: bright"]
    matrix = torch.from_numpy(found.matrix)
    assert torch.equal(matrix, matrix.T)
    assert not matrix.diagonal().any()
    assert matrix[2, 3].item() == pytest.approx(2, rel=0.3)  # (5 - 4)^2 in two dimensions
    assert matrix[0, 2].item() == pytest.approx(50, rel=0.1)
    swapped = replace(generated, labels=1 - labels)
    assert class_distances(swapped, real, network, space).matrix[1].argsort()[1] == 2  # dark lies beside real: bright


def test_classes_too_small_to_compare_are_refused(network):
    few = flat(30, labels=torch.arange(30) % 2)
    with pytest.raises(ValueError, match="fewer than two classes have 20 images on each side"):
        class_distances(few, few, network, LabelSpace("single", ("dark", "bright")))


@pytest.mark.slow
@pytest.mark.parametrize("plot", [distances_plot, dendrogram_plot])
def test_plots_of_distances_name_every_set(plot):
    matrix = np.array([[0, 1, 9], [1, 0, 8], [9, 8, 0.0]])
    svg = plot(matrix, ["real: a", "real: b", "generated: a"])
    assert svg.startswith("<svg")
    assert svg == plot(matrix, ["real: a", "real: b", "generated: a"])  # the same numbers make the same file


def test_points_on_paper_keep_distances_that_fit_on_paper():
    points = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    squared = ((points[:, None] - points[None]) ** 2).sum(-1)
    placed = scaled_to_two_dimensions(squared)
    assert ((placed[:, None] - placed[None]) ** 2).sum(-1) == pytest.approx(squared)
