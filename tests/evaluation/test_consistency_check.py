"""The check of a report: painters of squares who keep to their masks, or miss them, or move them with the style."""

import json
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import nn

from medgen.cli import main
from medgen.data import TableDataModule
from medgen.evaluation.checks.consistency import map_classes
from medgen.evaluation.report.page import meaning
from medgen.evaluation.report.report import report as full_report
from medgen.families.spade.generator import SPADEConfig, SPADEGenerator
from medgen.generator import Generator, GeneratorConfig, PerImage
from medgen.images import save_images, save_png
from tests.data.fakes import write_csv
from tests.evaluation.test_segmentation import RECIPE, squares

NAMES = ("background", "bright", "dim")
ROUGH = replace(RECIPE, steps=1)
STYLE = {"style_dice", "style_intensity"}
report = partial(full_report, metrics=["consistency"], device="cpu", segmenter=RECIPE)


@dataclass(frozen=True, kw_only=True)
class PainterConfig(GeneratorConfig):
    image_size: tuple[int, int] = (32, 32)
    label_kind: str = "single"
    label_names: tuple[str, ...] = ("ill", "healthy")
    mask_names: tuple[str, ...] = NAMES
    style: str = "drawn"
    dont_care: bool = False
    shift: int = 0


class Painter(Generator, family="painter"):
    """Paints masks in the grey levels of the data, `shift` pixels too low; a style is a contrast."""

    config_class = PainterConfig

    def __init__(self, restless=False, **changes):
        super().__init__(PainterConfig(**changes))
        self.weight = nn.Parameter(torch.ones(1))
        self.restless = restless  # styles move what is painted
        self.asked = []

    def _prepare(self, options, indices):
        mask = options.get("mask")
        return {
            **options,
            "mask": PerImage(mask if isinstance(mask, torch.Tensor) else torch.zeros(len(indices), 32, 32)),
        }

    def _sample(self, label, noise, *, mask=None, style=None):
        self.asked.append(label)
        contrast, grain = noise.normal(1, 1, 1).tanh(), noise.normal(1, 32, 32).tanh().abs()
        if style is not None:
            contrast = torch.zeros_like(contrast)
        mask = mask.long().roll(self.config.shift, 1)
        if self.restless:
            mask = torch.stack([m.roll(round(8 * float(c)), 0) for m, c in zip(mask, contrast, strict=True)])
        levels = torch.tensor([0.1, 0.7, 0.4])[mask][:, None]
        return 2 * (levels * (1 + 0.1 * contrast) + 0.1 * grain) - 1


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two images of each patient: 24 to train, 8 to test, ill and healthy in turns."""
    folder, rows = tmp_path_factory.mktemp("squares"), []
    for split, n, seed in (("train", 24, 0), ("test", 8, 5)):
        part = squares(n, seed)
        for i, (image, mask) in enumerate(zip(part.images, part.masks, strict=True)):
            names = f"{split}{i}.png", f"{split}{i}_mask.png"
            save_png(image, folder / names[0])
            save_png(mask[None] / 255, folder / names[1])
            rows.append((*names, ("healthy", "ill")[i % 2], f"{split}-{i // 2}", split))
    csv = write_csv(folder / "table.csv", ("image", "mask", "label", "patient", "split"), rows)
    return partial(
        TableDataModule,
        csv=str(csv),
        label_column="label",
        label_names=["healthy", "ill"],
        patient_column="patient",
        split_column="split",
        mask_column="mask",
        mask_classes=3,
        image_size=32,
        cache_folder=str(folder / "cache"),
    )


@pytest.fixture
def judge(network, tmp_path, monkeypatch):
    """Scores by name and warnings about a generator."""

    def run(generator, datamodule, **options):
        monkeypatch.setattr("medgen.evaluation.report.report.open_source", lambda source, channels: generator)
        scores = report("painter", datamodule, tmp_path / "out", network=network, **options)
        written = json.loads((tmp_path / "out" / "metrics.json").read_text())
        return {score.name: score for score in scores}, written["warnings"][type(generator).__name__]

    return run


def about_masks(warnings):
    return [text for text in warnings if "mask" in text]


@pytest.mark.slow
def test_images_of_their_masks_are_found_as_good_as_real_ones(judge, data, tmp_path):
    scores, warnings = judge(Painter(), data(), n=4)
    measures = [f"consistency_{measure}" for measure in ("dice", "hausdorff")]
    wholes = {f"{name}{side}" for name in measures for side in ("", "_real")} | {"consistency_dice_ratio"}
    assert set(scores) == wholes | {f"{name}:{label}" for name in wholes for label in NAMES[1:]} | STYLE
    assert scores["consistency_hausdorff_real"].value == 0  # which is why there is no ratio of distances
    assert scores["consistency_dice"].value > 0.85
    assert scores["consistency_dice_ratio"].value == pytest.approx(1, abs=0.1)
    assert scores["style_dice"].value > 0.95
    assert 0.001 < scores["style_intensity"].value < 0.05
    assert [text for text in warnings if "images are few" not in text] == []
    assert {(score.generated, score.n_generated) for score in scores.values()} == {
        ("Painter", 8),  # an image of each mask, whatever n is
        ("Painter", 16),  # in two styles
        ("test", 8),
    }
    assert {score.generated for name, score in scores.items() if "_real" in name} == {"test"}
    assert {score.network for score in scores.values()} == {"segmentation U-Net"}
    assert {meaning(name).section for name in scores} == {"labels"}
    assert (tmp_path / "out" / "consistency.png").is_file()


@pytest.mark.slow
def test_images_that_miss_their_masks_are_warned_of(judge, data):
    scores, warnings = judge(Painter(shift=4), data())
    assert scores["consistency_dice_ratio"].high < 0.9
    assert scores["consistency_hausdorff"].value > scores["consistency_hausdorff_real"].high
    assert scores["style_dice"].value > 0.95  # styles do not move what is in the wrong place
    (warning,) = about_masks(warnings)
    ratio = scores["consistency_dice_ratio"].value
    assert "images show their masks less clearly than real ones do" in warning
    assert f"(ratio {ratio:.2f}, below 0.9)" in warning


@pytest.mark.slow
def test_styles_that_move_the_anatomy_are_warned_of(judge, data):
    scores, warnings = judge(Painter(restless=True), data())
    assert scores["style_dice"].high < 0.95
    texts = about_masks(warnings)
    assert any(f"a Dice of {scores['style_dice'].value:.2f}" in text and "change the anatomy" in text for text in texts)


class Blind:
    classes = 3

    def masks(self, images):
        return torch.zeros(len(images), 32, 32, dtype=torch.int64)


def test_a_network_that_sees_nothing_in_real_images_gives_no_ratio(judge, data, monkeypatch):
    monkeypatch.setattr("medgen.evaluation.checks.consistency.train_segmenter", lambda *args, **options: Blind())
    scores, warnings = judge(Painter(), data())
    assert scores["consistency_dice"].value == scores["consistency_dice_real"].value == 0
    assert not {"consistency_dice_ratio", "style_dice"} & set(scores)
    (warning,) = about_masks(warnings)
    assert "finds nothing of the masks in real images: train it longer" in warning


@pytest.mark.slow
def test_a_network_that_sees_little_in_real_images_is_no_judge(judge, data, monkeypatch):
    monkeypatch.setattr("medgen.evaluation.checks.consistency.REAL_LEAST", 1.1)
    _, warnings = judge(Painter(), data())
    assert any("too little to judge others by: train it longer (--segmenter.steps)" in text for text in warnings)


@pytest.mark.slow
def test_images_are_asked_for_with_the_labels_of_their_masks(judge, data):
    painter = Painter()
    judge(painter, data(), segmenter=ROUGH, batch_size=5)
    assert torch.cat(painter.asked[-4:]).tolist() == [1, 0] * 8  # ill and healthy have other numbers there; two styles
    datamodule = data()
    datamodule.table.labels[datamodule.table.rows("test")[3]] = -1
    judge(painter, datamodule, segmenter=ROUGH)
    assert painter.asked[-1] is None


@pytest.mark.slow
def test_intervals_are_those_of_patients_not_of_images(judge, data):
    by_patient, _ = judge(Painter(), data(), segmenter=ROUGH)
    by_image, _ = judge(Painter(), data(patient_column=None), segmenter=ROUGH)
    name = "style_intensity"
    assert by_patient[name].value == pytest.approx(by_image[name].value)
    assert by_patient[name].low != by_image[name].low


@pytest.mark.slow
def test_masks_that_the_report_was_drawn_of_are_not_those_of_the_check(judge, data):
    with_others, _ = judge(Painter(), data(), mask="a folder", segmenter=ROUGH)
    without, _ = judge(Painter(), data(), segmenter=ROUGH)
    assert with_others == without


@pytest.mark.parametrize(("changes", "options"), [({"style": "none"}, {}), ({}, {"style": "one for all"})])
def test_without_styles_to_draw_there_are_no_numbers_of_styles(judge, data, changes, options):
    scores, _ = judge(Painter(**changes), data(), segmenter=ROUGH, **options)
    assert "consistency_dice" in scores
    assert not STYLE & set(scores)


def test_the_picture_is_left_out_of_a_report_that_shows_no_patients(judge, data, tmp_path):
    judge(Painter(), data(), segmenter=ROUGH, patients=False)
    assert (tmp_path / "out" / "examples.png").is_file()
    assert not (tmp_path / "out" / "consistency.png").exists()


@pytest.mark.slow
def test_it_is_part_of_a_report_by_default(judge, data):
    painter, unlabelled = Painter(label_kind="none", label_names=()), data(label_column=None, label_names=None)
    scores, _ = judge(painter, unlabelled, metrics=None, segmenter=ROUGH)
    assert {"consistency_dice", "seconds_per_image"} <= set(scores)


def test_where_it_cannot_be_it_is_refused(judge, data, generator):
    unlabelled = {"image_size": 8, "label_column": None, "label_names": None}
    for thing, datamodule, text in (
        (Painter(), data(mask_column=None, mask_classes=None), "the data have no masks; give mask_classes, and for a "),
        (generator, data(**unlabelled), "DotGenerator takes no masks"),
        (Painter(dont_care=True), data(), r"the data's masks have 3 classes, the generator's 4 \(.*dim, don't care\)"),
    ):
        with pytest.raises(
            ValueError, match=f"consistency needs masks that the generator can be asked for, but {text}"
        ):
            judge(thing, datamodule)
    with pytest.raises(ValueError, match=r"split is 'test\+train'; consistency compares with training images"):
        judge(Painter(), data(), split="test+train")


@pytest.mark.slow
def test_images_are_refused_or_where_nobody_asked_left_out_with_the_reason(data, network, tmp_path, caplog):
    save_images(torch.rand(8, 1, 32, 32), tmp_path / "images")
    reason = "consistency needs a generator, but images were given"
    with pytest.raises(ValueError, match=reason):
        report(tmp_path / "images", data(), tmp_path / "out")
    scores = report(tmp_path / "images", data(), tmp_path / "out", metrics=None, network=network)
    assert f"consistency is left out: {reason}" in caplog.text
    assert not [score for score in scores if score.name.startswith("consistency")]


@pytest.mark.slow
def test_the_command_judges_a_published_spade(data, tmp_path, capsys):
    torch.manual_seed(0)
    config = replace(SPADEConfig.tiny(), image_size=(32, 32), label_names=("healthy", "ill"), mask_names=NAMES)
    SPADEGenerator(config).save_pretrained(tmp_path / "model")
    out, table = tmp_path / "out", tmp_path / "data.yaml"
    table.write_text(json.dumps({"class_path": "medgen.data.TableDataModule", "init_args": data.keywords}))
    recipe = {"steps": 1, "width": 4, "levels": 2}
    where = ["evaluate", str(tmp_path / "model"), "--data", str(table), "--out", str(out), "--device", "cpu"]
    options = [item for name, value in recipe.items() for item in (f"--segmenter.{name}", str(value))]
    assert main([*where, "--metrics", "consistency", "--network", "pixels", *options, "--truncation_psi", "0"]) == 0
    printed = capsys.readouterr().out
    assert {"consistency_dice", "consistency_hausdorff_ratio", "consistency_hausdorff_real:dim"} <= set(printed.split())
    # At truncation 0, all styles are the mean one.
    assert "style_dice 1 [1, 1]" in printed
    assert "style_intensity 0 [0, 0]" in printed


def test_what_nobody_named_is_a_class_of_its_own():
    assert map_classes(Painter()) == NAMES
    assert map_classes(Painter(dont_care=True)) == (*NAMES, "don't care")
