"""The base class: configs and strict loading. What every family must do is in tests/contracts."""

from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medgen.generator import Generator, GeneratorConfig
from medgen.loading import from_pretrained
from medgen.published import load_strictly


@dataclass(frozen=True, kw_only=True)
class GreyConfig(GeneratorConfig):
    image_size: tuple[int, int] = (4, 4)
    levels: tuple[int, ...] = (1, 2)


class GreyGenerator(Generator, family="grey"):
    config_class = GreyConfig

    def __init__(self, config: GreyConfig) -> None:
        super().__init__(config)
        self.level = nn.Parameter(torch.tensor(3.0))

    def _sample(self, label, noise, *, steps=5, sharpness=1.0):
        if sharpness == 0:
            return noise.normal(self.config.channels, *self.config.image_size)
        return self.level.expand(len(noise), self.config.channels, *self.config.image_size)


def test_values_beyond_the_range_of_the_network_are_clipped():
    images = GreyGenerator(GreyConfig()).sample(2)
    assert images.unique().tolist() == [1.0]


def test_a_seed_of_numpy_is_the_same_seed():
    generator = GreyGenerator(GreyConfig())
    assert torch.equal(generator.sample(2, seed=np.int64(0), sharpness=0), generator.sample(2, seed=0, sharpness=0))
    with pytest.raises(ValueError, match=r"seed is 0\.5; use a whole number"):
        generator.sample(1, seed=0.5)


def test_lists_of_yaml_and_json_become_tuples():
    config = GreyConfig(image_size=[8, 16], levels=[1])
    assert (config.image_size, config.levels) == ((8, 16), (1,))


def test_a_config_goes_through_a_dictionary_and_back():
    config = GreyConfig(label_kind="multi", label_names=("a", "b"), intensity_window=(-1000.0, 400.0))
    assert config.to_dict()["label_names"] == ["a", "b"]
    assert GreyConfig.from_dict(config.to_dict()) == config


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        GreyConfig().channels = 3


def test_a_config_comes_through_a_training_checkpoint(tmp_path):
    torch.save({"config": GreyConfig()}, tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["config"] == GreyConfig()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": (4,)}, r"image_size is \(4,\); expected \(height, width\)"),
        ({"image_size": (4, 0)}, "image_size is"),
        ({"channels": 2}, "channels is 2; use 1 for greyscale or 3 for RGB"),
        ({"intensity_window": (5, 5)}, "intensity_window is .* low < high"),
        ({"label_kind": "single"}, "label_kind 'single' does not go with label_names"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GreyConfig(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, r"config has fields GreyConfig does not know: \['colour'\]; a newer medgen"),
        ({"levels": None}, r"config lacks fields of GreyConfig: \['levels'\]"),
    ],
)
def test_nothing_is_guessed_where_fields_are_unknown_or_missing(change, message):
    values = GreyConfig().to_dict() | change
    with pytest.raises(ValueError, match=message):
        GreyConfig.from_dict({name: value for name, value in values.items() if value is not None})


def test_an_unknown_option_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match="option guidence is unknown to grey; it has steps, sharpness"):
        GreyGenerator(GreyConfig()).sample(1, guidence=2)


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config.json, so it is not a medgen checkpoint"):
        from_pretrained(tmp_path)


def test_a_path_is_a_folder_and_never_goes_to_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr("medgen.loading.pull", lambda *args, **options: pytest.fail("went to the Hub"))
    with pytest.raises(FileNotFoundError, match="no checkpoint folder runs/nowhere"):
        from_pretrained(Path("runs/nowhere"))


@pytest.mark.parametrize("error", [FileNotFoundError, ConnectionError])
def test_a_mistyped_folder_that_looks_like_a_repository_is_named_as_both(monkeypatch, error):
    def fail(repo, revision):
        raise error(f"no repository {repo}")

    monkeypatch.setattr("medgen.loading.pull", fail)
    with pytest.raises(error, match=r"no repository runs/nowhere\. There is no folder runs/nowhere here either"):
        from_pretrained("runs/nowhere")


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_has_no_revisions(tmp_path, kind):
    with pytest.raises(ValueError, match=r"revision is 'v1', but .* is a folder, which has none; leave revision out"):
        from_pretrained(kind(tmp_path), revision="v1")


def test_weights_that_do_not_fit_are_counted_and_the_first_five_named():
    wanted = nn.Linear(2, 3)
    state = {"weight": torch.zeros(3, 3)} | {f"extra{i}": torch.zeros(1) for i in range(6)}
    with pytest.raises(
        ValueError, match=r"weights of x.ckpt do not fit Linear \(8 differences\): bias is missing; "
    ) as e:
        load_strictly(wanted, state, where="x.ckpt")
    assert "extra3" in str(e.value)
    assert "extra4" not in str(e.value)


def test_loaded_weights_stay_trainable_or_frozen():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(requires_grad=False)
    load_strictly(layer, nn.Linear(2, 2).state_dict(), where="test")
    assert (layer.weight.requires_grad, layer.bias.requires_grad) == (True, False)
