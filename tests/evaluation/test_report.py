import json
from dataclasses import replace

import pytest
import torch

from medgen.cli import main
from medgen.evaluation.report import report
from medgen.evaluation.sets import RealImages
from medgen.images import save_images
from medgen.labels import LabelSpace


@pytest.fixture
def folder(datamodule, tmp_path):
    """Half of them test images, half copies of training images."""
    images = torch.cat([RealImages(datamodule, "test")[0:6], RealImages(datamodule, "train")[0:6]])
    save_images(images, tmp_path / "images")
    return tmp_path / "images"


def test_report_holds_metrics_checks_and_controls(folder, datamodule, network, tmp_path):
    scores = report(folder, datamodule, tmp_path / "out", network=network, device="cpu")
    judged = {score.name for score in scores if score.generated == str(folder)}
    assert {"fd_quarters", "precision", "recall", "f1", "near_train_share_pixels"} <= judged
    assert {score.generated for score in scores} == {str(folder), "train", "train, blurred by 1 pixel"}
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert len(written["scores"]) == len(scores)
    assert (tmp_path / "out" / "metrics.csv").is_file()
    assert (tmp_path / "out" / "nearest_train_quarters.png").is_file()


def test_copies_in_a_folder_are_counted(folder, datamodule, network, tmp_path):
    found = report(folder, datamodule, tmp_path, ["memorisation"], network=network, device="cpu")
    scores = {score.name: score.value for score in found}
    assert scores["near_train_share_pixels"] >= 0.5


def test_checks_that_need_other_training_images_are_left_out_by_default(folder, datamodule, network, tmp_path, caplog):
    scores = report(folder, datamodule, tmp_path / "out", network=network, split="train", device="cpu")
    assert {score.name for score in scores} == {"fd_quarters", "precision", "recall", "f1"}
    assert "memorisation is left out: split is 'train'; memorisation compares with training images" in caplog.text


def test_checks_that_the_data_do_not_allow_are_refused_before_anything_is_drawn(folder, datamodule, tmp_path):
    with pytest.raises(ValueError, match=r"split is 'val\+train'; controls compares with training images"):
        report(folder, datamodule, tmp_path, ["controls"], network="no such network", split="val+train")
    datamodule.__dict__["table"] = replace(datamodule.table, label_space=LabelSpace("none"), labels=None)
    with pytest.raises(ValueError, match="the data's labels are 'none'; label_auc asks for classes"):
        report(folder, datamodule, tmp_path, ["label_auc"], network="no such network")


def test_an_error_in_a_check_loses_no_score(folder, datamodule, network, tmp_path, monkeypatch):
    monkeypatch.setattr("medgen.evaluation.report.nearest_training", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report(folder, datamodule, tmp_path / "out", network=network, device="cpu")
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {row["name"] for row in written["scores"]} == {"fd_quarters", "precision", "recall", "f1"}


def test_an_unknown_metric_is_refused_with_all_names(folder, datamodule, tmp_path):
    with pytest.raises(ValueError, match=r"'fid' is unknown; use frechet_distance.*label_auc, memorisation, controls"):
        report(folder, datamodule, tmp_path, ["fid"])


def test_command_writes_and_prints_the_numbers(folder, datamodule, tmp_path, capsys):
    data = tmp_path / "data.yaml"
    data.write_text(
        "class_path: medgen.data.TableDataModule\n"
        f"init_args: {{csv: {datamodule.csv}, label_column: label, split_column: split, image_size: 8, "
        f"cache_folder: {tmp_path / 'cache'}}}\n"
    )
    out = tmp_path / "out"
    where = [str(folder), "--data", str(data), "--out", str(out), "--device", "cpu"]
    assert main(["evaluate", *where, "--metrics", "precision_recall", "--network", "pixels", "--n", "10"]) == 0
    printed = capsys.readouterr().out
    for row in json.loads((out / "metrics.json").read_text())["scores"]:
        assert row["n_generated"] == 10
        assert f"{row['name']} {row['value']:.4g}" in printed


def test_command_refuses_a_name_that_is_nothing(datamodule, tmp_path, capsys):
    data = tmp_path / "data.yaml"
    data.write_text(f"class_path: medgen.data.TableDataModule\ninit_args: {{csv: {datamodule.csv}, image_size: 8}}\n")
    where = ["--data", str(data), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["evaluate", "no-such-model", *where]) == 1
    assert "no-such-model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
