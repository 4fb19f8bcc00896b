import json
import re
from dataclasses import replace
from functools import partial
from html import unescape

import pytest
import torch

from medgen.cli import main
from medgen.evaluation import METRICS
from medgen.evaluation.checks import CHECKS, load_check
from medgen.evaluation.judges.classifier import ClassifierRecipe
from medgen.evaluation.report.page import meaning
from medgen.evaluation.report.report import report as full_report
from medgen.evaluation.scores import SECTIONS
from medgen.evaluation.sets import RealImages
from medgen.images import save_images
from medgen.labels import LabelSpace

report = partial(full_report, recipe=ClassifierRecipe(steps=2, checks=1), folds=2)


@pytest.fixture
def folder(datamodule, tmp_path):
    """Half of them test images, half copies of training images."""
    images = torch.cat([RealImages(datamodule, "test")[0:6], RealImages(datamodule, "train")[0:6]])
    save_images(images, tmp_path / "images")
    return tmp_path / "images"


@pytest.mark.slow
def test_report_holds_metrics_checks_and_controls(folder, datamodule, network, tmp_path):
    scores = report(folder, datamodule, tmp_path / "out", network=network, device="cpu")
    judged = {score.name for score in scores if score.generated == str(folder)}
    assert {"fd_quarters", "precision", "recall", "f1", "near_train_share_pixels"} <= judged
    assert {score.generated for score in scores} == {
        str(folder),
        "test",
        "train",
        "train, blurred by 1 pixel",
        "half of the real images against the other",
        f"test, as many as {folder}",
    }
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert len(written["scores"]) == len(scores)
    assert (tmp_path / "out" / "metrics.csv").is_file()
    assert (tmp_path / "out" / "nearest_train_quarters.png").is_file()


@pytest.mark.slow
def test_every_check_runs_on_a_generator_with_labels(generator, datamodule, network, tmp_path, monkeypatch):
    monkeypatch.setattr("medgen.evaluation.report.report.open_source", lambda source, channels: generator)
    # Two folds are too few for a test.
    monkeypatch.setattr("medgen.evaluation.statistics.comparisons.signed_rank_p", lambda *runs: 0.04)
    scores = report("dots", datamodule, tmp_path, network=network, device="cpu", n=60)
    sections = {meaning(score.name).section for score in scores}
    assert sections == set(SECTIONS)
    assert not [score.name for score in scores if not meaning(score.name).text]
    values = {score.name: score.value for score in scores}
    assert values["evaluations_per_image"] == 1  # its one layer is called once for all eight images
    assert values["parameters_million"] == pytest.approx(1e-6)
    assert {score.name for score in scores} >= {
        "inception_score",
        "prevalence_difference",
        "utility_augmentation:real + 1 x synthetic",
        "utility_gan_test:synthetic images",
        "p_of_gan_train:synthetic only against real",
        "p_of_features_without_borders:synthetic features against real features",
        "border_saliency_generated:bright",
        "seconds_per_image",
        "steps_fd_quarters:20 steps",
        "mean_image_jpeg_bytes:dark",
    }
    figures = {path.stem for path in tmp_path.iterdir() if path.suffix in (".svg", ".png")}
    assert figures >= {"examples", "steps", "saliency", "utility_augmentation", "mean_images"}


def test_each_score_is_explained_in_one_place():
    tables = [*(metric.meanings for metric in METRICS.values()), *(load_check(name).meanings for name in CHECKS)]
    names = [name for table in tables for name in table]
    assert len(names) == len(set(names))
    assert {item.section for table in tables for item in table.values()} == set(SECTIONS)


def test_calls_of_networks_that_are_not_called_whole_are_left_out(
    generator, datamodule, network, tmp_path, monkeypatch
):
    monkeypatch.setattr("medgen.evaluation.report.report.open_source", lambda source, channels: generator)
    monkeypatch.setattr(type(generator), "_sample", lambda self, label, noise: noise.normal(1, 8, 8))
    scores = report("dots", datamodule, tmp_path, ["efficiency"], network=network, device="cpu", n=20)
    names = {score.name for score in scores}
    assert "seconds_per_image" in names
    assert "evaluations_per_image" not in names


@pytest.mark.slow
def test_page_needs_nothing_from_elsewhere_and_shows_every_number(folder, datamodule, network, tmp_path):
    scores = report(folder, datamodule, tmp_path / "out", network=network, device="cpu", command="medgen evaluate x")
    page = (tmp_path / "out" / "index.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "medgen evaluate x" in page
    for score in scores:
        assert meaning(score.name).title in page
        assert f"{score.value:.3g}" in page or f"{score.value:.0f}" in page


def test_names_of_folders_cannot_inject_markup(datamodule, network, tmp_path):
    folder = tmp_path / "<script>alert(1)<"
    save_images(torch.rand(8, 1, 8, 8), folder)
    report(folder, datamodule, tmp_path / "out", ["precision_recall"], network=network, device="cpu")
    assert "<script>" not in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.slow
def test_a_report_to_be_shared_shows_no_real_image(folder, datamodule, network, tmp_path):
    out = tmp_path / "out"
    report(folder, datamodule, out, network=network, device="cpu")
    assert {"near_copies.png", "nearest_train_quarters.png", "mean_images.png"} <= {path.name for path in out.iterdir()}
    report(folder, datamodule, out, network=network, device="cpu", patients=False)
    # Twelve images are too few for a mean, and half of them are copies of patients themselves.
    assert not list(out.glob("*.png"))
    page = (out / "index.html").read_text()
    assert "data:image/png" not in page
    assert "Pictures of real images were left out" in page


def test_a_mean_of_few_images_is_a_picture_of_patients(datamodule, network, tmp_path):
    """However many real images there are: as many of them are averaged as there are generated ones."""
    save_images(torch.rand(23, 1, 8, 8), tmp_path / "images")
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    for bright, shown in ((3, False), (0, True)):
        lines = ["file,label", *(f"{name},{'bright' if i < bright else 'dark'}" for i, name in enumerate(names))]
        (tmp_path / "images" / "samples.csv").write_text("\n".join(lines))
        options = {"network": network, "device": "cpu", "patients": False, "split": "train", "metrics": ["variety"]}
        report(tmp_path / "images", datamodule, tmp_path / "out", **options)
        assert (tmp_path / "out" / "mean_images.png").is_file() == shown
        assert (tmp_path / "out" / "examples.png").is_file()  # nothing was found to be copied


def test_numbers_of_a_part_of_the_images_say_so(folder, datamodule, network, tmp_path):
    scores = report(folder, datamodule, tmp_path, ["variety"], network=network, device="cpu")
    sizes = [score for score in scores if score.name == "mean_image_png_bytes"]
    assert {(score.generated, score.n_generated) for score in sizes} == {
        (str(folder), 12),
        (f"test, as many as {folder}", 12),
    }


def test_frechet_distances_of_different_numbers_of_images_have_no_best(folder, datamodule, network, tmp_path):
    save_images(torch.rand(8, 1, 8, 8), tmp_path / "noise")
    report([folder, tmp_path / "noise"], datamodule, tmp_path / "out", ["frechet_distance"], network=network)
    assert "✓</td>" not in (tmp_path / "out" / "index.html").read_text()


def test_what_cannot_be_is_refused_before_anything_is_drawn_or_written(folder, datamodule, tmp_path):
    out = tmp_path / "out"
    run = partial(full_report, folder, datamodule, out, network="no such network")
    for options, text in (
        ({"folds": 1}, "folds is 1; use at least 2"),
        ({"seeds": 0}, "seeds is 0; use at least 1"),
        ({"batch_size": 0}, "batch_size is 0; use at least 1"),
        ({"device": "no-such-device"}, "device is 'no-such-device', which is not there"),
        ({"metrics": ["utility"]}, "no labels, which utility needs; .* samples.csv with the columns file and label"),
        ({"steps": 7}, "sampling options steps are for generators, but images were given"),
    ):
        with pytest.raises(ValueError, match=text):
            run(**options)
    with pytest.raises(ValueError, match="which is also what is judged"):
        full_report(folder, datamodule, folder)
    assert not out.exists()


def test_warnings_are_kept_with_the_numbers_and_a_broken_file_is_no_obstacle(folder, datamodule, network, tmp_path):
    for broken in ("{", "[]", '{"pictures": 3}'):
        (tmp_path / "metrics.json").write_text(broken)
        report(folder, datamodule, tmp_path, ["precision_recall"], network=network, device="cpu")
        written = json.loads((tmp_path / "metrics.json").read_text())
        assert "12 images are few" in written["warnings"][str(folder)][0]


def test_several_sources_share_one_table_with_the_best_marked(folder, datamodule, network, tmp_path):
    save_images(torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)), tmp_path / "noise")
    sources = [folder, tmp_path / "noise"]
    scores = report(sources, datamodule, tmp_path / "out", ["frechet_distance"], network=network, device="cpu")
    values = {score.generated: score.value for score in scores}
    assert values[str(folder)] < values[str(tmp_path / "noise")]
    page = (tmp_path / "out" / "index.html").read_text()
    assert re.findall(r'class="judged best">([^ <]*) ✓', page) == [f"{values[str(folder)]:.3g}"]
    with pytest.raises(ValueError, match="is given twice"):
        report([folder, folder], datamodule, tmp_path / "out", network=network)


@pytest.mark.slow
def test_what_a_reader_must_know_is_said(datamodule, network, tmp_path):
    train = RealImages(datamodule, "train")
    dark = [i for i in range(60) if train.labels[i] == 0]
    save_images(torch.cat([train[i : i + 1] for i in dark[:20]]), tmp_path / "dark")
    lines = ["file,label", *(f"{path.name},dark" for path in sorted((tmp_path / "dark").iterdir()))]
    (tmp_path / "dark" / "samples.csv").write_text("\n".join(lines))
    save_images(train[0:8], tmp_path / "few")
    report([tmp_path / "dark", tmp_path / "few"], datamodule, tmp_path / "out", network=network, device="cpu")
    page = unescape((tmp_path / "out" / "index.html").read_text())
    assert "20 images are few" in page
    assert "there is no image of bright among the" in page
    assert "20 generated images are near copies of training images" in page
    assert "8 images beside 20 of" in page


@pytest.mark.slow
def test_bias_hides_the_boxes_that_are_given(generator, datamodule, network, tmp_path, monkeypatch):
    monkeypatch.setattr("medgen.evaluation.report.report.open_source", lambda source, channels: generator)
    hide = partial(report, "dots", datamodule, tmp_path, ["bias"], network=network, device="cpu", n=60)
    names = {score.name for score in hide(hide=[(0, 0, 0.5, 0.25)])}
    assert "utility_gan_train_without_boxes:synthetic only" in names
    assert not [name for name in names if "without_borders" in name]
    assert "The given boxes were hidden." in (tmp_path / "index.html").read_text()
    with pytest.raises(ValueError, match=r"box \(0, 0, 64, 64\) is not left < right"):
        hide(hide=[(0, 0, 64, 64)])


@pytest.mark.slow
def test_copies_in_a_folder_are_counted(folder, datamodule, network, tmp_path):
    found = report(folder, datamodule, tmp_path, ["privacy"], network=network, device="cpu")
    scores = {score.name: score.value for score in found}
    assert scores["near_train_share_pixels"] >= 0.5
    assert scores["near_copies"] == 0.5
    assert (tmp_path / "near_copies.png").is_file()


def test_checks_that_need_other_training_images_are_left_out_by_default(folder, datamodule, network, tmp_path, caplog):
    scores = report(folder, datamodule, tmp_path / "out", network=network, split="train", device="cpu")
    assert not [score for score in scores if meaning(score.name).section in ("privacy", "labels")]
    assert "privacy is left out: split is 'train'; privacy compares with training images" in caplog.text


@pytest.mark.slow
def test_metrics_that_need_more_images_are_left_out_or_refused(folder, datamodule, network, tmp_path, caplog):
    report(folder, datamodule, tmp_path / "out", network=network, n=10, device="cpu")
    text = "frechet_distance_to_infinity needs at least 20 images in each set; there are 10"
    assert text in caplog.text
    with pytest.raises(ValueError, match=text):
        report(folder, datamodule, tmp_path / "out", ["frechet_distance_to_infinity"], n=10)


def test_checks_that_the_data_do_not_allow_are_refused_before_anything_is_drawn(folder, datamodule, tmp_path):
    with pytest.raises(ValueError, match=r"split is 'val\+train'; controls compares with training images"):
        report(folder, datamodule, tmp_path, ["controls"], network="no such network", split="val+train")
    datamodule.__dict__["table"] = replace(datamodule.table, label_space=LabelSpace("none"), labels=None)
    with pytest.raises(ValueError, match="the data's labels are 'none'; label_auc asks for classes"):
        report(folder, datamodule, tmp_path, ["label_auc"], network="no such network")


@pytest.mark.slow
def test_an_error_in_a_check_loses_no_score(folder, datamodule, network, tmp_path, monkeypatch):
    monkeypatch.setattr("medgen.evaluation.checks.privacy.nearest_training", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report(folder, datamodule, tmp_path / "out", network=network, device="cpu")
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {"fd_quarters", "precision", "recall", "f1"} <= {row["name"] for row in written["scores"]}


def test_an_unknown_metric_is_refused_with_all_names(folder, datamodule, tmp_path):
    with pytest.raises(
        ValueError, match=r"'fid' is unknown; use frechet_distance.*label_auc, prevalence, consistency, privacy"
    ):
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
