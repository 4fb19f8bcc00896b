"""Recipes reach every field of a config, those of older versions too."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from medgen.cli import main
from medgen.families import family_class
from medgen.training.settings import load_settings
from tests.stored import VERSION_1
from tests.tiny import AUTOENCODER, CONFIG, DIFFUSION, FIRST_STAGE, data_arguments, fit, write_recipe

MODULES = "medgen.families.vqvae2.modules"
FLAT: dict[str, Any] = {
    "image_size": [16, 16],
    "channels": 1,
    "label_kind": "single",
    "label_names": ["healthy", "ill"],
    "latent_channels": 4,
    "autoencoder": "vq",
    "num_codes": 16,
    "autoencoder_channels": [8, 16],
    "autoencoder_strides": [1, 2],
    "autoencoder_groups": 4,
    "unet_channels": [8, 8],
    "unet_strides": [1, 2],
    "unet_groups": 4,
    "embedding_dim": 16,
    "objective": "v",
    "timesteps": 10,
}
STEP = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1}


def edited(recipe: Path, config: object, **arguments: Any) -> Path:
    """The recipe with another config and further arguments of the module."""
    content = yaml.safe_load(recipe.read_text())
    content["model"]["init_args"] |= {"config": config, **arguments}
    recipe.write_text(yaml.safe_dump(content))
    return recipe


def trained_config(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]["config"]


@pytest.mark.parametrize("place", ["inline", "file"])
def test_a_recipe_of_version_1_trains_what_it_says(place, table, tmp_path):
    recipe = write_recipe(tmp_path / "run.yaml", AUTOENCODER, table, trainer=STEP, **FIRST_STAGE)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(FLAT))
    edited(recipe, FLAT if place == "inline" else "model.yaml", critic_lead=1)
    folder = fit(recipe)
    settings = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert settings["discriminator_warmup"] == 1
    found = trained_config(folder)
    assert (found["prediction_type"], found["schedule"]["timesteps"]) == ("v", 10)
    assert found["schedule"]["shape"] == "scaled_linear"  # what is left out has Medfusion's default, not the part's
    assert (found["autoencoder"]["kind"], found["autoencoder"]["num_codes"]) == ("vq", 16)
    assert [*found["unet"]["hidden"]] == [8, 8]
    assert tuple(found["unet"]["norm"]) == ("group", {"num_groups": 4})


def test_a_recipe_of_version_1_gives_both_priors_what_they_shared(table, tmp_path):
    flat = yaml.safe_load((VERSION_1 / "vqvae2" / "config.json").read_text())["config"]
    flat["label_names"] = ["healthy", "ill"]
    recipe = write_recipe(tmp_path / "run.yaml", f"{MODULES}.VQVAE2AutoencoderModule", table, trainer=STEP)
    found = trained_config(fit(edited(recipe, flat)))
    assert (found["top"]["hidden_channels"], found["bottom"]["hidden_channels"]) == (16, 16)
    assert (found["top"]["attention"], found["bottom"]["attention"]) == (True, False)


@pytest.mark.parametrize("place", ["inline", "file"])
def test_a_command_changes_one_nested_field_and_keeps_the_others(place, table, tmp_path):
    recipe = write_recipe(tmp_path / "run.yaml", AUTOENCODER, table, trainer=STEP, **FIRST_STAGE)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(CONFIG.to_dict()))
    if place == "file":
        edited(recipe, "model.yaml")
    option = "--model.init_args.config"
    folder = fit(recipe, f"{option}.autoencoder.hidden", "[8,16,24]", f"{option}.unet.norm", "[group, {num_groups: 8}]")
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state["autoencoder.encoder.levels.1.block.first.conv.weight"].shape[0] == 24
    found = trained_config(folder)
    assert [*found["autoencoder"]["strides"]] == [*CONFIG.autoencoder.strides]
    assert [*found["unet"]["hidden"]] == [*CONFIG.unet.hidden]
    assert found["schedule"] == CONFIG.schedule.to_dict()


@pytest.mark.parametrize("family", sorted(folder.name for folder in VERSION_1.iterdir() if folder.is_dir()))
def test_every_stored_config_of_version_1_is_read_as_its_folder_is(family):
    flat = yaml.safe_load((VERSION_1 / family / "config.json").read_text())["config"]
    config = family_class(family).config_class
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = load_settings(yaml.safe_dump(flat))
        module = {"class_path": f"medgen.families.{family}.modules.Any", "init_args": {"config": flat}}
        recipe = load_settings(yaml.safe_dump({"model": module}))
    assert bare == config.relocate(flat)
    assert recipe["model"]["init_args"]["config"] == bare


def test_older_settings_are_warned_of_by_both_names():
    with pytest.warns(FutureWarning, match="unet_blocks are settings of an older medgen; write unet.blocks_per_level"):
        assert load_settings("{channels: 1, unet_blocks: 1}") == {"channels": 1, "unet": {"blocks_per_level": 1}}
    module = {"class_path": AUTOENCODER, "init_args": {"critic_lead": 3}}
    with pytest.warns(FutureWarning, match="critic_lead of .*AutoencoderModule is now discriminator_warmup"):
        assert load_settings(yaml.safe_dump(module))["init_args"] == {"discriminator_warmup": 3}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "value",
    [
        CONFIG.to_dict(),
        data_arguments(Path("a.csv")),
        {"objective": "v", "no_field": 1},
        {"class_path": DIFFUSION, "init_args": {"config": "model.yaml"}},
        {"class_path": "medgen.no.module.Thing", "init_args": {"config": {"a": 1}}},
        [1, {"a": None}],
        "text",
        None,
    ],
    ids=str,
)
def test_all_else_is_read_as_it_is(value):
    assert load_settings(yaml.safe_dump(value)) == value


def test_a_field_that_no_version_had_is_refused(table, tmp_path, capsys):
    recipe = write_recipe(tmp_path / "run.yaml", AUTOENCODER, table, **FIRST_STAGE)
    assert main(["fit", "--config", str(recipe), "--model.init_args.config.unet.hiden", "[8]"]) == 2
    assert "hiden" in capsys.readouterr().err
