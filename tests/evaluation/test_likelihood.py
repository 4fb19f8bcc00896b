import pytest
import torch

from medgen.evaluation.checks.likelihood import ODD
from medgen.evaluation.report.report import report as full_report
from tests.evaluation.conftest import DotGenerator


class Bright(DotGenerator):
    """Finds images less likely the brighter they are."""

    def bits_of(self, images):
        return images.mul(255).round().double().flatten(1).sum(1)


@pytest.fixture
def likelihood(datamodule, network, tmp_path, monkeypatch):
    def run(generator):
        monkeypatch.setattr("medgen.evaluation.report.report.open_source", lambda source, channels: generator)
        found = full_report("dots", datamodule, tmp_path, ["likelihood"], network=network, device="cpu", n=20)
        return {score.name: score for score in found}

    return run


def bits(datamodule, split):
    dataset = datamodule.dataset(split)
    return Bright().bits_of(torch.stack([dataset[i]["image"] for i in range(len(dataset))]))


def test_bits_are_means_over_held_out_training_and_generated_images(likelihood, datamodule):
    scores = likelihood(Bright())
    for name, split in (("bits_per_dimension", "test"), ("bits_per_dimension_train", "train")):
        assert scores[name].value == pytest.approx(float(bits(datamodule, split).mean()))
        assert scores[name].low < scores[name].value < scores[name].high
        assert scores[name].real == split
    assert scores["bits_per_dimension_generated"].n_generated == 20


@pytest.mark.slow
def test_odd_images_are_told_by_their_bits(likelihood, datamodule):
    scores = likelihood(Bright())
    assert scores["outlier_auc:upside down"].value == 0.5  # as bright as before
    real = bits(datamodule, "test")
    negative = 255 * 64 - real
    pairs = (negative[:, None] > real).double() + 0.5 * (negative[:, None] == real).double()
    assert scores["outlier_auc:negative"].value == pytest.approx(float(pairs.mean()))
    assert 0.6 < scores["outlier_auc:negative"].value < 1
    assert {name for name in scores if name.startswith("outlier")} == {f"outlier_auc:{name}" for name in ODD}


def test_a_generator_without_likelihood_has_no_such_numbers(likelihood):
    assert not any("bits" in name or "outlier" in name for name in likelihood(DotGenerator()))
