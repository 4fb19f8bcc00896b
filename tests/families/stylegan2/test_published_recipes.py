"""The recipes of published settings hold the numbers of the presets and can be trained from."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

import medgen
from medgen.families.stylegan2.generator import StyleGAN2Config
from medgen.families.stylegan2.presets import PRESETS, auto
from tests.tiny import data_arguments, fit

FOLDER = Path(__file__).parents[3] / "docs" / "extra" / "recipes"
OF_PRESET = {
    "auto256": auto(256),
    "auto512": auto(512),
    "paper256": PRESETS["paper256"],
    "histology": PRESETS["paper256"],
    "paper512": PRESETS["paper512"],
    "chest-xray": PRESETS["paper512"],
    "stylegan2": PRESETS["stylegan2"],
}


def test_every_recipe_belongs_to_a_preset():
    assert {path.stem.removeprefix("stylegan2-") for path in FOLDER.glob("stylegan2-*.yaml")} == set(OF_PRESET)


@pytest.mark.parametrize("name", OF_PRESET)
def test_a_recipe_has_the_numbers_of_its_preset(name):
    text = (FOLDER / f"stylegan2-{name}.yaml").read_text()
    arguments, preset = yaml.safe_load(text)["model"]["init_args"], OF_PRESET[name]
    config = StyleGAN2Config(**arguments.pop("config"))
    assert {field: asdict(config)[field] for field in preset.network} == dict(preset.network)
    assert {field: arguments[field] for field in preset.training} == pytest.approx(dict(preset.training))
    assert f"batch_size {preset.batch_size} " in text
    micro = arguments["micro_batch"] or preset.batch_size
    assert preset.batch_size % micro == 0
    assert micro % preset.training["group"] == 0


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*stylegan2*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_watches_for_mode_collapse(path):
    listed = yaml.safe_load(path.read_text())["trainer"]["callbacks"]
    callbacks = {entry["class_path"].removeprefix("medgen.callbacks."): entry["init_args"] for entry in listed}
    assert "precision_recall" in callbacks["EvaluateGenerator"]["metrics"]
    assert "LogVariety" in callbacks


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_recipe_trains_with_data_of_ones_own(table, tmp_path):
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump({"class_path": "medgen.data.TableDataModule", "init_args": data_arguments(table)}))
    recipe = tmp_path / "run.yaml"
    recipe.write_text((FOLDER / "stylegan2-auto256.yaml").read_text())
    config = "--model.init_args.config"
    smaller = [f"{config}.image_size", "[16,16]", f"{config}.channels", "1", f"{config}.channel_base", "64"]
    smaller += [f"{config}.z_dim", "8", f"{config}.w_dim", "8", "--model.init_args.label_layers", "1"]
    labels = [f"{config}.label_kind", "single", f"{config}.label_names", "[healthy, ill]"]
    brief = ["--trainer.limit_train_batches", "1", "--trainer.max_epochs", "1", "--trainer.logger", "false"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", str(recipe.with_suffix(""))]
    size = ["--data.init_args.batch_size", "8"]
    folder = fit(recipe, "--data", str(data), *size, *labels, *smaller, *brief, *quiet)
    assert (folder / "published" / "discriminator.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_bundled_model_is_fine_tuned_with_images_of_ones_own(table, tmp_path):
    data = tmp_path / "data.yaml"
    arguments = data_arguments(table, image_size=64, batch_size=8)
    data.write_text(yaml.safe_dump({"class_path": "medgen.data.TableDataModule", "init_args": arguments}))
    recipe = tmp_path / "run.yaml"
    text = (FOLDER / "fine-tune-stylegan2.yaml").read_text()
    recipe.write_text(text.replace("every_n_epochs: 20", "every_n_epochs: 1"))
    brief = ["--trainer.limit_train_batches", "1", "--trainer.max_epochs", "1"]
    brief += ["--trainer.check_val_every_n_epoch", "1", "--trainer.logger", "lightning.pytorch.loggers.CSVLogger"]
    brief += ["--trainer.logger.save_dir", str(tmp_path)]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", str(recipe.with_suffix(""))]
    folder = fit(recipe, "--data", str(data), *brief, *quiet)
    tuned, start = medgen.load(folder / "published"), medgen.load("stylegan2-cxr")
    assert tuned.label_space.names == ("healthy", "ill")
    torch.testing.assert_close(tuned.synthesis.start, start.synthesis.start, rtol=0, atol=0.02)
    (metrics,) = tmp_path.rglob("metrics.csv")
    logged = set(metrics.read_text().splitlines()[0].split(","))
    sizes = {f"train/mean_image_bytes{kind}:{name}" for kind in ("", "_real") for name in ("healthy", "ill")}
    assert {"val/recall", "val/fd_efficientnet_lite0", "val/logit_real"} | sizes <= logged
