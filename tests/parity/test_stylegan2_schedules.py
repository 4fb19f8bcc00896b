"""Settings that the official launcher derives, and the numbers it derives from them while it trains."""

import inspect
import json

import pytest
import torch

from medgen.families.stylegan2.generator import StyleGAN2Config
from medgen.families.stylegan2.modules import StyleGAN2Module, adam_settings, adapted, ema_decay
from medgen.families.stylegan2.presets import PRESETS, auto
from medgen.training.ada import PIPES
from tests.parity.conftest import PARITY

FILE = PARITY / "stylegan2_schedules.json"
OFFICIAL = json.loads(FILE.read_text()) if FILE.is_file() else None
pytestmark = pytest.mark.skipif(OFFICIAL is None, reason=f"no {FILE}; set MEDGEN_PARITY")
RUNS = (OFFICIAL or {"training_kwargs": {}})["training_kwargs"]


@pytest.mark.parametrize("name", RUNS)
def test_presets(name: str) -> None:
    official = RUNS[name]
    preset_name, side = name.split("_")[0], int(name.split("_res")[1].split("_")[0])
    if preset_name == "cifar":
        pytest.skip("the discriminator of that preset has no skip connections, which ours always has")
    preset = auto(side, official["num_gpus"]) if preset_name == "auto" else PRESETS[preset_name]
    generator, discriminator = official["G_kwargs"], official["D_kwargs"]
    assert preset.batch_size == official["batch_size"]
    assert preset.network == {
        "channel_base": generator["synthesis_kwargs"]["channel_base"],
        "mapping_layers": generator["mapping_kwargs"]["num_layers"],
    }
    assert preset.training == pytest.approx(
        {
            "lr": official["G_opt_kwargs"]["lr"],
            "gamma": official["loss_kwargs"]["r1_gamma"],
            "ema_kimg": official["ema_kimg"],
            "ema_rampup": official["ema_rampup"],
            "group": discriminator["epilogue_kwargs"]["mbstd_group_size"],
        }
    )
    # What all presets share are our defaults.
    defaults = inspect.signature(StyleGAN2Module).parameters
    network = StyleGAN2Config()
    assert (generator["z_dim"], generator["w_dim"]) == (network.z_dim, network.w_dim)
    assert generator["synthesis_kwargs"]["channel_max"] == network.channel_max
    assert generator["synthesis_kwargs"]["conv_clamp"] == network.clamp
    assert official["ada_target"] == defaults["ada_target"].default
    assert official["augment_kwargs"].keys() - {"class_name"} == set(PIPES[defaults["augment"].default])


def test_the_average_forgets_as_fast() -> None:
    for row in OFFICIAL["ema_beta_table"]:
        found = ema_decay(row["cur_nimg"], row["batch_size"], row["ema_kimg"], row["ema_rampup"])
        assert found == pytest.approx(row["ema_beta"], abs=1e-9)


def test_lazy_regularisation_changes_the_optimisers() -> None:
    for row in OFFICIAL["lazy_regularisation"]:
        settings = adam_settings(row["lr"], row["interval"])
        assert settings["lr"] == pytest.approx(row["lr_used"])
        assert settings["betas"] == pytest.approx(tuple(row["betas_used"]))


def test_augmentation_moves_as_far() -> None:
    for row in OFFICIAL["ada"]:
        most = row["batch_size"] * row["ada_interval"] / (1000 * row["ada_kimg"])
        assert most == pytest.approx(row["step"])
        assert adapted(torch.tensor(0.5), torch.tensor(1.0), 0.6, most) == pytest.approx(0.5 + row["step"])
