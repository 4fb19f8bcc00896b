"""Configs hold the configs of their parts, and read what older versions wrote."""

import json
import pickle
import re
from typing import Any

import pytest
import torch

from medgen.families import family_class
from medgen.families.medfusion.generator import MedfusionConfig
from medgen.families.vqvae2.generator import VQVAE2Config
from medgen.training.stages import check_shape
from tests.stored import VERSION_1
from tests.tiny import changed

NESTED = ["medfusion", "vqvae2"]


def flat(family: str) -> dict[str, Any]:
    """A config as version 1 had it, lists as tuples."""
    config = json.loads((VERSION_1 / family / "config.json").read_text())["config"]
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}


@pytest.mark.parametrize("family", NESTED)
def test_a_config_of_version_1_is_the_tiny_one_it_was_made_of(family):
    config = family_class(family).config_class
    assert config.from_dict(flat(family)) == config.tiny()


@pytest.mark.parametrize("family", NESTED)
def test_json_holds_everything(family):
    config = family_class(family).config_class.tiny()
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("family", NESTED)
def test_a_training_checkpoint_with_the_state_of_version_1_is_read_safely(family, tmp_path, monkeypatch):
    config = family_class(family).config_class
    old = config.tiny()
    # Objects are pickled as their attributes, which version 1 had all in one.
    monkeypatch.setattr(config, "__getstate__", lambda self: flat(family), raising=False)
    torch.save({"hyper_parameters": {"config": old}}, tmp_path / "last.ckpt")
    monkeypatch.undo()
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]["config"] == old


@pytest.mark.parametrize("family", NESTED)
def test_a_pickled_config_comes_back(family):
    config = family_class(family).config_class.tiny()
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_field_of_version_1_may_have_the_name_of_a_part():
    assert MedfusionConfig.relocate({"autoencoder": "vq", "schedule": "cosine"}) == {
        "autoencoder": {"kind": "vq"},
        "schedule": {"shape": "cosine"},
    }


def test_what_is_moved_into_a_part_leaves_its_other_fields_at_the_defaults_of_the_whole():
    whole = MedfusionConfig(channels=1)
    values = {**whole.to_dict(), "timesteps": 10}
    del values["schedule"]
    assert MedfusionConfig.migrate(values)["schedule"] == changed(whole.schedule, timesteps=10)
    values = {**VQVAE2Config().to_dict(), "prior_blocks": 7}
    del values["top"], values["bottom"]
    found = VQVAE2Config.migrate(values)
    assert [found[level] for level in ("top", "bottom")] == [
        changed(getattr(VQVAE2Config(), level), blocks=7) for level in ("top", "bottom")
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unet": {"hiden": 3}}, r"unet: config has fields UNetConfig does not know: \['hiden'\]"),
        ({"schedule": {"timesteps": 3}}, r"schedule: config lacks fields of ScheduleConfig: \['beta_end'"),
    ],
)
def test_a_wrong_field_of_a_part_is_named_with_the_part(change, message):
    values = MedfusionConfig.tiny().to_dict()
    for name, fields in change.items():
        values[name] = {**values[name], **fields} if name == "unet" else fields
    with pytest.raises(ValueError, match=message):
        MedfusionConfig.from_dict(values)


def test_shapes_are_compared_field_by_field():
    mine = MedfusionConfig.tiny()
    other = changed(mine, unet={"hidden": (8, 16, 16), "dropout": 0.5}, autoencoder={"num_codes": 4})
    fields = {"unet", "autoencoder"}
    with pytest.raises(
        ValueError, match=r"unet.dropout is 0.0 here and 0.5 there; .*autoencoder.num_codes is 16 here and 4 there"
    ) as refused:
        check_shape(mine, other, "it", fields)
    assert "unet.hidden is (8, 8, 16) here and (8, 16, 16) there" in str(refused.value)
    with pytest.raises(ValueError, match=r"model.config: unet.hidden is [^;]* there\. Set"):
        check_shape(mine, other, "it", {"unet"}, {"unet.dropout"})
    check_shape(mine, changed(mine, unet={"dropout": 0.5}), "it", fields, {"unet.dropout"})


def version_1(**changes):
    """The flat fields of a version-1 Medfusion."""
    return json.loads((VERSION_1 / "medfusion" / "config.json").read_text())["config"] | changes


def test_a_config_of_version_1_that_lacks_a_field_is_refused_and_not_completed():
    values = version_1()
    del values["timesteps"]
    with pytest.raises(ValueError, match=r"config lacks fields of MedfusionConfig: \['timesteps'\]"):
        MedfusionConfig.from_dict(values)


@pytest.mark.parametrize(
    ("values", "old", "new"),
    [
        ({"objective": "v"}, "objective", "prediction_type"),
        ({"unet_blocks": 7}, "unet_blocks", "unet.blocks_per_level"),
    ],
)
def test_a_setting_by_its_old_and_its_current_name_is_refused(values, old, new):
    message = f"{old} and {re.escape(new)} are given, but they are the same; leave out {old}"
    with pytest.raises(ValueError, match=message):
        MedfusionConfig.relocate(MedfusionConfig.tiny().to_dict() | values)


@pytest.mark.parametrize("value", [3, None, [], "x"])
def test_a_part_that_is_no_group_of_settings_is_refused(value):
    values = MedfusionConfig.tiny().to_dict() | {"unet": value}
    with pytest.raises(ValueError, match=r"unet is .*; it is a group of settings: .*hidden"):
        MedfusionConfig.from_dict(values)
