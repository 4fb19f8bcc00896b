"""The table of named checkpoints, and the recipes of those that come with the repository."""

from pathlib import Path

import pytest
import torch

import medgen
from medgen.checkpoint import read_info
from medgen.families import FAMILIES
from medgen.loading import load
from medgen.zoo import ZOO, ModelEntry, OfficialEntry, bundled_folder, list_models
from tests.tiny import generator

REPOSITORY = Path(__file__).parents[1]
RECIPES = [path for path in sorted((REPOSITORY / "checkpoints").glob("*/*.yaml")) if "\ntrainer:" in path.read_text()]
BUNDLED = [name for name, entry in ZOO.items() if isinstance(entry, ModelEntry) and not entry.repo]


@pytest.mark.parametrize("name", ZOO)
def test_every_name_is_described(name):
    entry = ZOO[name]
    family, _, data = name.partition("-")
    assert entry.family == family
    assert family in FAMILIES
    assert data
    assert 20 < len(entry.description) < 100
    assert entry.licence
    assert entry.where


def test_every_repository_is_pinned_to_a_commit():
    pinned = {name: entry for name, entry in ZOO.items() if isinstance(entry, ModelEntry) and entry.repo}
    assert [name for name, entry in pinned.items() if len(entry.revision) < 7] == []


@pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if isinstance(entry, OfficialEntry)])
def test_every_official_file_states_what_the_file_does_not(name):
    entry = ZOO[name]
    assert all(pattern.endswith(".ckpt") for pattern in entry.patterns)
    assert entry.label_names
    assert entry.data


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_checkpoint_loads_and_samples_offline(name, monkeypatch):
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("went to the network"))
    loaded = medgen.load(name)
    assert loaded.source == name
    label = loaded.label_space.names[-1] if loaded.label_space.names else None
    images = loaded.sample(2, label=label, seed=0, **({"steps": 5} if loaded.family == "medfusion" else {}))
    assert images.shape == (2, loaded.config.channels, *loaded.config.image_size)
    assert images.std() > 0.05


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_checkpoint_is_small_and_has_a_card(name):
    bundled = bundled_folder(name)
    about = read_info(bundled).about
    assert sum(file.stat().st_size for file in bundled.glob("*.safetensors")) <= 10e6
    assert about.licence != "unknown"
    assert "Not stated" not in about.data
    assert about.known_failures
    assert (bundled / "README.md").is_file()


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_checkpoint_has_the_shape_of_its_recipes(name):
    yaml = pytest.importorskip("yaml")
    config = read_info(bundled_folder(name)).config
    shape = yaml.safe_load((REPOSITORY / "checkpoints" / name / "model.yaml").read_text())
    assert picked(config, shape) == shape


def picked(config, shape):
    """The values of a config that a recipe states, as YAML has them."""
    if isinstance(shape, dict):
        return {key: picked(config[key], value) for key, value in shape.items()}
    return [picked(value, None) for value in config] if isinstance(config, tuple) else config


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_parses(recipe, monkeypatch, capsys):
    from medgen.cli import main

    monkeypatch.chdir(REPOSITORY)  # as the recipe says
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(recipe), "--print_config"])
    assert stop.value.code in (0, None)
    assert "class_path: medgen.families" in capsys.readouterr().out


def test_names_are_listed_in_the_order_of_the_table():
    assert list_models() == medgen.list_models() == list(ZOO)


def test_a_folder_loads(tmp_path):
    made = generator()
    made.save_pretrained(tmp_path / "mine")
    for name in (tmp_path / "mine", str(tmp_path / "mine")):
        loaded = load(name)
        assert loaded.source == str(tmp_path / "mine")
        assert torch.equal(loaded.sample(1, seed=0), made.sample(1, seed=0))


@pytest.mark.parametrize(
    ("name", "repo", "revision"),
    [
        ("org/name", "org/name", None),
        ("org/name@v1", "org/name", "v1"),
        ("my.org/a-b_c@3f2c9ab", "my.org/a-b_c", "3f2c9ab"),
    ],
)
def test_names_of_the_hub_are_taken_apart(monkeypatch, name, repo, revision):
    asked = {}
    monkeypatch.setattr(
        "medgen.loading.from_pretrained", lambda source, revision=None: asked.update(source=source, revision=revision)
    )
    load(name)
    assert asked == {"source": repo, "revision": revision}
    load(name, revision=revision)
    assert asked == {"source": repo, "revision": revision}


def test_two_revisions_that_differ_are_refused():
    with pytest.raises(ValueError, match="revision is 'v2', but 'org/name@v1' names another one; give one of them"):
        load("org/name@v1", revision="v2")


@pytest.mark.parametrize("name", ["mine", Path("mine"), "medfusion-cxr"])
def test_folders_and_bundled_weights_have_no_revision(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    generator().save_pretrained("mine")
    with pytest.raises(ValueError, match=r"revision is 'v1', but .* is a folder, which has none; leave revision out"):
        load(name, revision="v1")


def test_the_revision_of_an_official_file_is_the_one_asked_for(monkeypatch, tmp_path):
    asked = []

    def fetch(*args, revision=None, **options):
        asked.append(revision)
        return generator().save_pretrained(tmp_path / "converted")

    monkeypatch.setattr("medgen.foreign.published.fetch_official", fetch)
    assert load("medfusion-chexpert", revision="abc123").source == "medfusion-chexpert"
    assert asked == ["abc123"]


@pytest.mark.parametrize("name", ["medfusion-cxr", "org/name"])
def test_a_path_that_is_no_folder_is_nothing_else(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("medgen.loading.pull", lambda *args, **options: pytest.fail("went to the Hub"))
    with pytest.raises(FileNotFoundError, match=f"no checkpoint folder {name}"):
        load(Path(name))


@pytest.mark.parametrize("name", ["medfusion-cxt", "no/such/folder", "", "../model"])
def test_a_name_that_is_nothing_lists_the_choices(name):
    with pytest.raises(ValueError, match=r"neither one of medfusion-cxr, .*, nor a folder, nor org/repo on the Hub"):
        load(name)


def test_an_installation_without_the_weights_says_so(monkeypatch, tmp_path):
    import medgen.zoo

    monkeypatch.setattr(medgen.zoo, "_PACKAGE", tmp_path / "medgen")
    with pytest.raises(FileNotFoundError, match="checkpoint 'medfusion-cxr' is not in this installation of medgen"):
        load("medfusion-cxr")
