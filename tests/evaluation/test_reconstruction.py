import math

import pytest
import torch

from medgen.evaluation.checks.controls import controls
from medgen.evaluation.report.report import report as full_report
from tests.evaluation.conftest import DotGenerator


class Perfect(DotGenerator):
    """Has an autoencoder that loses nothing."""

    def reconstruct(self, images):
        return images


class Shifted(DotGenerator):
    """Has one that makes images darker by ten grey levels, or brighter where they are black."""

    def reconstruct(self, images):
        return torch.where(images >= 10 / 255, images - 10 / 255, images + 10 / 255)


@pytest.fixture
def reconstruct(datamodule, network, tmp_path, monkeypatch):
    def run(generator, **options):
        monkeypatch.setattr("medgen.evaluation.report.report.open_source", lambda source, channels: generator)
        found = full_report(
            "dots", datamodule, tmp_path, ["reconstruction"], network=network, device="cpu", n=20, **options
        )
        return {(score.generated, score.name): score for score in found}

    return run


def test_a_perfect_autoencoder_loses_nothing_and_copies_score_as_training_images(reconstruct, datamodule, network):
    scores = reconstruct(Perfect())
    own = {name: score.value for (generated, name), score in scores.items() if "autoencoder" not in generated}
    assert own["reconstruction_mse"] == own["reconstruction_mse_train"] == 0
    assert own["reconstruction_psnr"] == 100  # of the smallest error there is
    expected = controls(datamodule, network, ["frechet_distance"], n=20)["train"]["fd_quarters"].value
    (copies,) = [
        score for (generated, name), score in scores.items() if "autoencoder" in generated and name == "fd_quarters"
    ]
    assert copies.value == pytest.approx(expected, abs=1e-9)


def test_known_errors_are_measured(reconstruct):
    scores = {name: score for (_, name), score in reconstruct(Shifted()).items()}
    mse = (10 / 255) ** 2
    assert scores["reconstruction_mse"].value == pytest.approx(mse, rel=1e-4)
    assert scores["reconstruction_psnr"].value == pytest.approx(-10 * math.log10(mse), rel=1e-4)
    assert (scores["reconstruction_mse"].real, scores["reconstruction_mse_train"].real) == ("test", "train")


@pytest.mark.slow
def test_the_picture_of_real_images_is_left_out_where_they_must_not_be_shown(reconstruct, tmp_path):
    reconstruct(Perfect())
    assert (tmp_path / "reconstructions.png").is_file()
    reconstruct(Perfect(), patients=False)
    assert not (tmp_path / "reconstructions.png").is_file()
