import pytest
import torch
from sklearn.metrics import roc_auc_score

from medgen.evaluation.conditional import label_aucs, roc_auc
from medgen.evaluation.run import compare, real_features
from medgen.evaluation.sets import FeatureSet, RealImages
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


def test_perfect_order_is_one_and_its_reverse_zero():
    scores, positive = torch.arange(10.0), torch.arange(10) >= 5
    assert roc_auc(scores, positive).value == 1
    assert roc_auc(-scores, positive).value == 0


def test_interval_covers_chance_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    positive = torch.arange(60) < 25
    intervals = [roc_auc(torch.randn(60, generator=generator), positive, resamples=400) for _ in range(200)]
    covered = sum(auc.low <= 0.5 <= auc.high for auc in intervals)
    assert 0.88 <= covered / 200 <= 0.99


def test_one_kind_of_image_is_refused():
    with pytest.raises(ValueError, match="3 positive, 0 negative"):
        roc_auc(torch.zeros(3), torch.ones(3, dtype=torch.bool))


def test_labels_of_an_obedient_generator_are_told_and_of_a_deaf_one_are_not(datamodule, network):
    class Deaf(DotGenerator):
        def _sample(self, label, noise, *, steps=1):
            return super()._sample(None, noise, steps=steps)

    train = real_features(RealImages(datamodule, "train"), [network])
    values = {}
    for model in (DotGenerator(), Deaf()):
        generated, real = compare(model, datamodule, [network], n=400)
        scores = label_aucs(train, generated, real, network, datamodule.label_space)
        values[type(model)] = scores["label_auc_generated"]
        assert scores["label_auc_real"].value > 0.95
    assert values[DotGenerator].low > 0.95
    assert values[Deaf].value == pytest.approx(0.5, abs=0.1)


def test_each_finding_has_a_number_of_its_own(separable, network):
    train, generated, real = separable("train", 200, 0), separable("generated", 60, 1), separable("test", 60, 2)
    scores = label_aucs(train, generated, real, network, LabelSpace("multi", ("Edema", "Effusion")))
    assert set(scores) == {
        f"label_auc_{kind}:{name}" for kind in ("generated", "real") for name in ("Edema", "Effusion")
    }
    assert all(score.value > 0.99 for score in scores.values())
    assert (scores["label_auc_real:Edema"].generated, scores["label_auc_real:Edema"].real) == ("test", "train")


def test_images_with_unknown_labels_are_left_out(separable, network):
    train = separable("train", 200, 0)
    train.labels[:100] = torch.nan
    train.features["quarters"][:100] = 1e6
    other = separable("test", 60, 2)
    scores = label_aucs(train, other, other, network, LabelSpace("multi", ("Edema", "Effusion")))
    assert scores["label_auc_real:Edema"].value > 0.99


@pytest.mark.parametrize("where", ["train", "generated", "test"])
def test_a_finding_that_a_set_lacks_is_left_out_with_a_warning(separable, network, where, caplog):
    sets = [separable("train", 200, 0), separable("generated", 60, 1), separable("test", 60, 2)]
    (lacking,) = (part for part in sets if part.name == where)
    lacking.labels[:, 0] = 0
    scores = label_aucs(*sets, network, LabelSpace("multi", ("Hernia", "Effusion")))
    assert set(scores) == {"label_auc_generated:Effusion", "label_auc_real:Effusion"}
    assert f"label_auc of Hernia is left out: {where} has too few images" in caplog.text


def test_sets_without_labels_are_refused_by_name(separable, network):
    train, unlabelled = separable("train", 20, 0), feature_set("some folder", torch.zeros(4, 3), None)
    with pytest.raises(ValueError, match="some folder has no labels"):
        label_aucs(train, unlabelled, train, network, LabelSpace("multi", ("Edema", "Effusion")))


def test_continuous_labels_are_refused(separable, network):
    train = separable("train", 20, 0)
    with pytest.raises(ValueError, match="'continuous'"):
        label_aucs(train, train, train, network, LabelSpace("continuous", ("age", "dose")))
