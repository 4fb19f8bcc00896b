import torch

from medgen.evaluation.controls import controls, pick_matched
from medgen.evaluation.sets import RealImages


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

    from medgen.evaluation.features import FeatureNetwork

    found = controls(datamodule, FeatureNetwork("spread", Spread(), size=(8, 8), dim=2), ["frechet_distance"])
    sharp, blurred = (scores["fd_spread"] for scores in found.values())
    assert (sharp.generated, blurred.generated) == ("train", "train, blurred by 1 pixel")
    assert blurred.value > 10 * sharp.value
