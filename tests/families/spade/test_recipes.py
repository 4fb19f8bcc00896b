"""The recipes of published settings hold these and can be trained from; so does the one that fine-tunes."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import medgen
from medgen.families.spade.generator import SPADEConfig
from medgen.families.spade.modules import SPADEModule
from tests.tiny import data_arguments, fit

FOLDER = Path(__file__).parents[3] / "docs" / "extra" / "recipes"


def arguments_of(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["model"]["init_args"]


def test_the_recipe_for_256_px_has_the_published_settings():
    arguments = arguments_of("spade-paper256")
    config = SPADEConfig(**arguments["config"])
    assert config == SPADEConfig(mask_names=config.mask_names)  # the defaults are the published ones
    assert arguments["lr"] == 2e-4
    assert {name: arguments[f"{name}_weight"] for name in ("feature", "perceptual", "kl")} == {
        "feature": 10,
        "perceptual": 10,
        "kl": 0.05,
    }
    assert (arguments["scales"], arguments["discriminator_width"], arguments["discriminator_layers"]) == (2, 64, 4)


def test_the_recipe_for_cardiac_mr_has_the_published_settings():
    arguments = arguments_of("spade-cardiac128")
    config = SPADEConfig(**arguments["config"])
    assert (config.image_size, config.channels, config.width, config.num_upsamplings) == ((128, 128), 1, 32, 4)
    assert (config.style, config.style_dim) == ("inside", config.base_width)
    assert arguments["pixel_weight"] == 100
    assert (arguments["lr"], arguments["feature_weight"]) == (2e-4, 10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["spade-paper256", "spade-cardiac128"])
def test_a_recipe_trains_with_data_of_ones_own(name, table, tmp_path):
    config = arguments_of(name)["config"]
    data = data_arguments(table, "none", image_size=32, mask_column="mask", mask_classes=3)
    (tmp_path / "data.yaml").write_text(
        yaml.safe_dump({"class_path": "medgen.data.TableDataModule", "init_args": data})
    )
    recipe = tmp_path / "run.yaml"
    recipe.write_text((FOLDER / f"{name}.yaml").read_text())
    sizes = {"image_size": "[32,32]", "channels": "1", "mask_names": "[background, wall, cavity]", "width": "2"}
    sizes |= {"hidden": "4", "style_size": "32", "style_dim": "32" if config["style"] == "inside" else "4"}
    options = [part for key, value in sizes.items() for part in (f"--model.init_args.config.{key}", value)]
    options += ["--model.init_args.perceptual", "null", "--model.init_args.discriminator_width", "4"]
    options += ["--trainer.limit_train_batches", "1", "--trainer.max_epochs", "1", "--trainer.logger", "false"]
    options += ["--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false"]
    options += ["--trainer.default_root_dir", str(tmp_path / "run")]
    folder = fit(recipe, "--data", str(tmp_path / "data.yaml"), *options)
    assert medgen.load(folder / "published").config.width == 2


def test_the_fine_tuning_recipe_has_the_shape_of_the_bundled_model():
    arguments = arguments_of("fine-tune-spade")
    config, start = SPADEConfig(**arguments["config"]), medgen.load(arguments["init_from"]).config
    free = ("label_kind", "label_names", "intensity_window", "intensity_unit")  # see `start_from`
    assert config == replace(start, **{name: getattr(config, name) for name in free})
    SPADEModule(config, **{name: value for name, value in arguments.items() if name != "config"})
