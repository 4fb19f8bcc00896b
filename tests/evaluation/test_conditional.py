from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from medgen.evaluation.checks.inception_score import inception_scores
from medgen.evaluation.checks.label_auc import label_aucs
from medgen.evaluation.checks.prevalence import label_prevalences
from medgen.evaluation.judges.label_readers import LabelReaders
from medgen.evaluation.run import compare, real_features
from medgen.evaluation.sets import FeatureSet, RealImages
from medgen.evaluation.statistics.roc import roc_auc, weighted_areas
from medgen.labels import LabelSpace
from tests.evaluation.conftest import DotGenerator


def feature_set(name, features, labels):
    return FeatureSet(
        name=name,
        images=features,
        features={"quarters": features},
        labels=labels,
        n=len(features),
        rows=range(len(features)),
    )


@pytest.fixture
def separable():
    """Two findings, each written into a feature of its own; the third feature means nothing."""

    def make(name, n, seed):
        generator = torch.Generator().manual_seed(seed)
        labels = (torch.rand(n, 2, generator=generator) < 0.5).float()
        noise = torch.randn(n, 3, generator=generator)
        return feature_set(name, torch.cat([6 * labels, torch.zeros(n, 1)], 1) + noise, labels)

    return make


def test_area_equals_that_of_scikit_learn_with_ties():
    generator = torch.Generator().manual_seed(0)
    scores, positive = (
        torch.randint(0, 10, (80,), generator=generator).float(),
        torch.rand(80, generator=generator) < 0.3,
    )
    assert roc_auc(scores, positive).value == pytest.approx(roc_auc_score(positive.numpy(), scores.numpy()))


def test_weighted_areas_are_those_of_scikit_learn_for_drawn_images():
    random = np.random.default_rng(0)
    scores, positive = torch.from_numpy(random.integers(0, 8, 40)), torch.from_numpy(random.random(40) < 0.4)
    counts = random.multinomial(40, np.full(40, 1 / 40), size=6)
    expected = [roc_auc_score(positive.numpy(), scores.numpy(), sample_weight=row) for row in counts]
    areas = weighted_areas(scores, positive)
    assert areas(counts.astype(float)) == pytest.approx(expected)
    assert np.isnan(areas(positive.numpy()[None].astype(float))).all()


def test_perfect_order_is_one_and_its_reverse_zero():
    scores, positive = torch.arange(10.0), torch.arange(10) >= 5
    assert roc_auc(scores, positive).value == 1
    assert roc_auc(-scores, positive).value == 0


@pytest.mark.slow
def test_interval_covers_chance_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    positive = torch.arange(60) < 25
    intervals = [roc_auc(torch.randn(60, generator=generator), positive, resamples=400) for _ in range(200)]
    covered = sum(auc.low <= 0.5 <= auc.high for auc in intervals)
    assert 0.88 <= covered / 200 <= 0.99


def test_one_kind_of_image_is_refused():
    with pytest.raises(ValueError, match="3 positive, 0 negative"):
        roc_auc(torch.zeros(3), torch.ones(3, dtype=torch.bool))


@pytest.mark.slow
def test_labels_of_an_obedient_generator_are_told_and_of_a_deaf_one_are_not(datamodule, network):
    class Deaf(DotGenerator):
        def _sample(self, label, noise, *, steps=1):
            return super()._sample(None, noise, steps=steps)

    train = real_features(RealImages(datamodule, "train"), [network])
    values = {}
    for model in (DotGenerator(), Deaf()):
        generated, real = compare(model, datamodule, [network], n=400)
        scores = label_aucs(LabelReaders(train, network, datamodule.label_space), generated, real)
        values[type(model)] = scores["label_auc_generated"]
        assert scores["label_auc_real"].value > 0.95
    assert values[DotGenerator].low > 0.95
    assert values[Deaf].value == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
def test_each_finding_has_a_number_of_its_own(separable, network):
    train, generated, real = separable("train", 200, 0), separable("generated", 60, 1), separable("test", 60, 2)
    scores = label_aucs(LabelReaders(train, network, LabelSpace("multi", ("Edema", "Effusion"))), generated, real)
    assert set(scores) == {
        f"label_auc_{kind}:{name}" for kind in ("generated", "real") for name in ("Edema", "Effusion")
    }
    assert all(score.value > 0.99 for score in scores.values())
    assert (scores["label_auc_real:Edema"].generated, scores["label_auc_real:Edema"].real) == ("test", "train")


@pytest.mark.slow
def test_images_with_unknown_labels_are_left_out(separable, network):
    train = separable("train", 200, 0)
    train.labels[:100] = torch.nan
    train.features["quarters"][:100] = 1e6
    other = separable("test", 60, 2)
    scores = label_aucs(LabelReaders(train, network, LabelSpace("multi", ("Edema", "Effusion"))), other, other)
    assert scores["label_auc_real:Edema"].value > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("where", ["train", "generated", "test"])
def test_a_finding_that_a_set_lacks_is_left_out_with_a_warning(separable, network, where, caplog):
    sets = [separable("train", 200, 0), separable("generated", 60, 1), separable("test", 60, 2)]
    (lacking,) = (part for part in sets if part.name == where)
    lacking.labels[:, 0] = 0
    scores = label_aucs(LabelReaders(sets[0], network, LabelSpace("multi", ("Hernia", "Effusion"))), *sets[1:])
    assert set(scores) == {"label_auc_generated:Effusion", "label_auc_real:Effusion"}
    assert f"the label check of Hernia is left out: {where} has too few images" in caplog.text


def test_sets_without_labels_are_refused_by_name(separable, network):
    train, unlabelled = separable("train", 20, 0), feature_set("some folder", torch.zeros(4, 3), None)
    with pytest.raises(ValueError, match="some folder has no labels"):
        label_aucs(LabelReaders(train, network, LabelSpace("multi", ("Edema", "Effusion"))), unlabelled, train)


def test_continuous_labels_are_refused(separable, network):
    train = separable("train", 20, 0)
    with pytest.raises(ValueError, match="'continuous'"):
        LabelReaders(train, network, LabelSpace("continuous", ("age", "dose")))


@pytest.mark.slow
def test_a_dropped_finding_is_seen_less_often_than_in_real_images(separable, network):
    train, real, dropping = separable("train", 200, 0), separable("test", 100, 1), separable("dropping", 100, 2)
    dropping.features["quarters"][:, 0] -= 6 * dropping.labels[:, 0]  # asked for, but never shown
    readers = LabelReaders(train, network, LabelSpace("multi", ("Edema", "Effusion")))
    scores = label_prevalences(readers, dropping, real)
    assert scores["prevalence_generated:Edema"].value < 0.05
    assert scores["prevalence_real:Edema"].value == pytest.approx(float(real.labels[:, 0].mean()), abs=0.03)
    assert scores["prevalence_difference:Edema"].high < -0.3
    effusion = scores["prevalence_difference:Effusion"]
    assert effusion.low < 0 < effusion.high
    assert (effusion.generated, effusion.real) == ("dropping", "test")


@pytest.mark.slow
def test_inception_score_is_the_number_of_classes_for_clear_and_even_images_and_one_for_one_class():
    space = LabelSpace("single", ("a", "b", "c"))
    network = SimpleNamespace(name="quarters", resize="none")

    def make(name, classes, seed):
        labels = torch.as_tensor(classes)
        noise = 0.1 * torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(seed))
        return feature_set(name, 10 * torch.nn.functional.one_hot(labels, 3).float() + noise, labels)

    train = make("train", [0, 1, 2] * 40, 0)
    even, real = inception_scores(train, make("even", [0, 1, 2] * 30, 1), train, network, space)
    collapsed, _ = inception_scores(train, make("collapsed", [1] * 90, 2), train, network, space)
    assert even.value > 2.6  # a regularised classifier is never quite certain
    assert 2.5 < even.low < even.high <= 3
    assert real.generated == "train"
    assert collapsed.value == pytest.approx(1, abs=0.01)
