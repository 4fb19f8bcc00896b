"""Utility on images where the answer is known: a bright square on the left or on the right."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from medgen.evaluation.checks.prevalence import prevalence
from medgen.evaluation.checks.utility import (
    UtilitySetup,
    augmentation_utility,
    feature_utility,
    gan_test,
    gan_train,
)
from medgen.evaluation.judges.classifier import (
    ClassifierModule,
    ClassifierRecipe,
    LabelledImages,
    class_weights,
    macro_auc,
    train_classifier,
)
from medgen.evaluation.judges.saliency import border_share, grad_cam, without_borders, without_boxes
from medgen.evaluation.statistics.comparisons import folds_without_one, holm, signed_rank_p
from medgen.evaluation.statistics.roc import youden_threshold
from medgen.labels import LabelSpace

SPACE = LabelSpace("single", ("left", "right"))
RECIPE = ClassifierRecipe(steps=25, batch_size=16, lr=1e-2, checks=2)


def squares(n, seed, *, wrong=False):
    """Images of noise with a square on the side of their class; on the other side if wrong."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    images = 0.2 * torch.rand(n, 1, 32, 32, generator=generator)
    for image, label in zip(images, labels, strict=True):
        left = 4 if (label == 0) != wrong else 20
        image[:, 12:20, left : left + 8] += 0.7
    return LabelledImages(images=images, labels=labels, rows=torch.arange(n), groups=torch.arange(n) // 2)


def setup(**changes):
    parts = {"train": squares(60, 0), "val": squares(30, 1), "test": squares(40, 2), "synthetic": squares(60, 3)}
    return UtilitySetup(**(parts | changes), recipe=RECIPE, label_space=SPACE, folds=2)


@pytest.fixture(scope="module")
def classifier():
    return train_classifier([squares(60, 0)], squares(30, 1), RECIPE, SPACE)


@pytest.mark.slow
def test_a_classifier_learns_what_can_be_seen(classifier):
    test = squares(40, 5)
    assert macro_auc(classifier.scores(test), test.labels) > 0.95


@pytest.mark.slow
def test_the_same_seed_trains_the_same_classifier(classifier):
    again = train_classifier([squares(60, 0)], squares(30, 1), RECIPE, SPACE)
    test = squares(10, 5)
    assert torch.equal(classifier.scores(test), again.scores(test))


@pytest.mark.slow
def test_training_a_classifier_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    train_classifier([squares(20, 0)], squares(10, 1), RECIPE, SPACE)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
def test_saliency_of_a_network_with_a_known_answer(classifier):
    class Sum(torch.nn.Module):
        """The second logit grows with the sum over the image, the first falls."""

        feature_info = ({"module": "maps", "reduction": 1},)

        def __init__(self):
            super().__init__()
            self.maps = torch.nn.Identity()

        def forward(self, images):
            total = self.maps(images).sum((1, 2, 3))
            return torch.stack([-total, total], 1)

    known = copy.deepcopy(classifier)
    known.network = Sum()
    images = 0.5 + 0.5 * squares(4, 6).images  # 0.5 is 0 for the network
    bright = images[:, 0] - 0.5
    torch.testing.assert_close(grad_cam(known, images, 1), bright / bright.amax((1, 2), keepdim=True))
    assert not grad_cam(known, images, 0).any()
    assert grad_cam(classifier, images, 1).shape == (4, 32, 32)
    assert border_share(torch.ones(100, 100), fraction=0.1) == pytest.approx(0.36)


def test_borders_are_cut_away():
    images = torch.zeros(2, 1, 20, 20)
    images[..., :3, :] = 1
    assert not without_borders(images).any()


def test_boxes_are_hidden_behind_the_mean_of_the_rest():
    images = torch.full((2, 1, 20, 10), 0.25)
    images[..., :5, 5:] = 1
    torch.testing.assert_close(without_boxes(images, [(0.5, 0, 1, 0.25)]), torch.full((2, 1, 20, 10), 0.25))
    torch.testing.assert_close(
        without_boxes(images, [(0, 0, 0.1, 0.1), (0.9, 0.9, 1, 1)])[..., :5, 5:], images[..., :5, 5:]
    )


@pytest.mark.parametrize("box", [(0.5, 0, 0.5, 1), (0, 0, 20, 10), (-0.1, 0, 0.5, 0.5), (0, 0.9, 1, 0.1)])
def test_boxes_that_make_no_sense_are_refused(box):
    with pytest.raises(ValueError, match="give shares of width and height"):
        without_boxes(torch.rand(1, 1, 20, 10), [box])


def test_a_tiny_box_hides_at_least_a_pixel():
    images = torch.rand(1, 1, 20, 10)
    assert int((without_boxes(images, [(0.51, 0.51, 0.511, 0.511)]) != images).sum()) == 1


def test_hiding_everything_is_refused():
    with pytest.raises(ValueError, match="nothing is left"):
        without_boxes(torch.rand(1, 1, 20, 10), [(0, 0, 1, 1)])


@pytest.mark.slow
def test_good_synthetic_images_train_as_well_as_real_ones_and_wrong_ones_do_not():
    real, synthetic = gan_train(setup())
    assert real.value.value > 0.95
    assert synthetic.value.value > 0.95
    _, wrong = gan_train(setup(synthetic=squares(60, 3, wrong=True)))
    assert wrong.value.value < 0.05


@pytest.mark.slow
def test_wrong_labels_are_seen_by_a_classifier_of_real_images():
    _, right = gan_test(setup())
    _, wrong = gan_test(setup(synthetic=squares(60, 3, wrong=True)))
    assert right.value.value > 0.95
    assert wrong.value.value < 0.05


@pytest.mark.slow
def test_all_ways_of_augmentation_are_compared_with_real_images_alone():
    outcomes = augmentation_utility(setup(), ratios=(1.0,))
    assert [item.name for item in outcomes] == ["real", "real + classical", "real + 1 x synthetic"]
    assert [item.baseline for item in outcomes] == ["", "real", "real"]
    assert all(len(item.runs) == 2 for item in outcomes)


@pytest.mark.slow
def test_features_of_synthetic_images_are_compared_with_those_of_real_ones():
    real, synthetic = feature_utility(setup())
    assert real.value.value > 0.9
    assert synthetic.baseline == "real features"


@pytest.mark.slow
def test_only_the_last_layer_is_trained_on_kept_features(classifier):
    tuned = train_classifier([squares(60, 7)], squares(30, 1), RECIPE, SPACE, start=classifier)
    changed = {
        name
        for name, value in tuned.network.named_parameters()
        if not torch.equal(value, dict(classifier.network.named_parameters())[name])
    }
    assert changed == {"fc.weight", "fc.bias"}
    kept = dict(classifier.network.named_buffers())
    assert all(torch.equal(value, kept[name]) for name, value in tuned.network.named_buffers())


@pytest.mark.parametrize("channels", [1, 3])
def test_weights_of_another_number_of_classes_and_channels_are_a_start(channels, tmp_path):
    torch.manual_seed(0)
    published = timm.create_model("test_resnet", num_classes=1000)
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    module = ClassifierModule(replace(RECIPE, weights=str(tmp_path / "weights.pth")), SPACE, channels)
    assert torch.equal(module.network.layer4[0].conv1.weight, published.layer4[0].conv1.weight)
    assert module(torch.rand(2, channels, 32, 32)).shape == (2, 2)


def test_class_weights_give_every_class_the_same_total():
    labels = torch.tensor([0, 0, 0, 1, -1])
    weights = class_weights(labels, 2)
    assert (weights * labels[:4].bincount()).tolist() == [2, 2]
    findings = torch.tensor([[1.0, torch.nan], [0, 0], [0, 1], [0, 1]])
    absent, present = class_weights(findings, 2)
    assert (absent * torch.tensor([3, 1])).tolist() == pytest.approx([2, 1.5])  # 3 and 1 cases
    assert (present * torch.tensor([1, 2])).tolist() == pytest.approx([2, 1.5])


def test_unknown_findings_do_not_count():
    module = ClassifierModule(RECIPE, LabelSpace("multi", ("a", "b")), 1)
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    labels = torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan]])
    expected = torch.nn.functional.softplus(torch.tensor(-2.0))
    assert module.loss(logits, labels).item() == pytest.approx(expected.item())


def test_youden_finds_the_best_cut():
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    truth = torch.tensor([0, 0, 1, 0, 1, 1], dtype=torch.bool)
    threshold = youden_threshold(scores, truth)
    assert threshold == pytest.approx(0.5) or threshold == pytest.approx(0.3)
    sensitivity = float((scores[truth] >= threshold).float().mean())
    specificity = float((scores[~truth] < threshold).float().mean())
    assert sensitivity + specificity == pytest.approx(5 / 3)


@pytest.mark.slow
def test_a_dropped_label_shows_in_the_prevalence():
    real, generated = torch.arange(400) % 2 == 0, torch.arange(400) % 10 == 0
    result = prevalence(real, generated)
    assert (result.real.value, result.generated.value) == (0.5, pytest.approx(0.1))
    assert result.difference.value == pytest.approx(-0.4)
    assert result.difference.high < -0.3
    same = prevalence(real, real)
    assert same.difference.low < 0 < same.difference.high


def test_holm_corrects_step_down_and_skips_what_was_not_tested():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    corrected = holm([0.5, float("nan"), 0.001])
    assert corrected[0] == 0.5
    assert np.isnan(corrected[1])
    assert corrected[2] == pytest.approx(0.002)


def test_signed_ranks_agree_with_the_textbook_and_need_six_pairs():
    assert signed_rank_p([1, 2, 3, 4, 5, 6], [0] * 6) == pytest.approx(2 / 64)
    assert np.isnan(signed_rank_p([1, 2, 3, 4, 5], [0] * 5))


def test_folds_leave_out_whole_patients_and_keep_the_shares_of_classes():
    groups, classes = torch.arange(120) // 4, torch.arange(120) // 4 % 2
    repetitions = folds_without_one(classes, groups, 3, seeds=2)
    assert [seed for _, seed in repetitions] == list(range(6))
    for rows, _ in repetitions:
        left_out = torch.ones(120, dtype=torch.bool).index_fill_(0, rows, value=False)
        assert not set(groups[rows].tolist()) & set(groups[left_out].tolist())
        assert classes[rows].bincount().tolist() == [40, 40]
    with pytest.raises(ValueError, match="folds is 31; use at least 2 and no more than the 30 patients"):
        folds_without_one(classes, groups, 31)


def test_what_measurements_share_is_trained_once(monkeypatch):
    names = []
    monkeypatch.setattr(
        "medgen.evaluation.checks.utility.train_classifier",
        lambda *args, **kwargs: names.append(kwargs["seed"]) or Untrained(),
    )
    shared = setup()
    augmentation_utility(shared, ratios=(1.0,))
    assert len(names) == 6
    gan_train(shared)
    assert len(names) == 8  # synthetic only
    gan_test(shared)
    assert len(names) == 8
    gan_train(replace(shared, change=without_borders))
    assert len(names) == 12  # other images, other classifiers


class Untrained:
    def scores(self, data, change=None):
        return torch.rand(len(data), 2)


def test_ratios_without_enough_synthetic_images_are_left_out(monkeypatch):
    monkeypatch.setattr("medgen.evaluation.checks.utility.train_classifier", lambda *args, **kwargs: Untrained())
    names = [item.name for item in augmentation_utility(setup(), ratios=(0.5, 1, 3))]
    assert names == ["real", "real + classical", "real + 0.5 x synthetic", "real + 1 x synthetic"]
