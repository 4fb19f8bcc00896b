"""The README and the documentation say what is true: their code runs, and what they name exists."""

import re
import shutil
import tomllib
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest
import torch
import yaml

import medgen
from medgen.checkpoint import About
from medgen.commands.main import VERBS, main
from medgen.families import FAMILIES, family_class, family_names
from medgen.families.medfusion.generator import MedfusionConfig
from medgen.zoo import ZOO
from tests.data.fakes import write_csv, write_picture
from tests.tiny import MODULES, TRAINER, changed, fit, nudge

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "_build" not in path.parts
}
LABELS = {"cyclegan": ("stained_light", "stained_dark"), "spade": ("DCM", "HCM", "MINF", "NOR", "RV")}
"""Labels of the models that pages name, by family, where they are not those of chest X-rays."""

TINY = changed(MedfusionConfig.tiny(), schedule={"timesteps": 50}).to_dict()

OPTIONS = {f"--{name}" for family in family_names() for name in signature(family_class(family)._sample).parameters}
"""Options of sampling that belong to a family, which the command line passes on."""

every_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)


def commands(page: str, program: str) -> list[list[str]]:
    """The words of every call of a program in a page's shell blocks and inline code."""
    shell = [line.partition(" #")[0] for block in blocks(page, "bash") for line in block.splitlines()]
    found = [*shell, *re.findall(r"`([^`\n]+)`", page)]
    return [line.split()[1:] for line in found if line.split()[:1] == [program]]


def with_python() -> list[str]:
    return [name for name, page in PAGES.items() if blocks(page, "python")]


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder with the README's files at 16 pixels, and tiny models in the place of the bundled ones."""
    for number in range(24):
        write_picture(tmp_path / "scans" / f"{number:04d}.png", number)
    rows = [(f"scans/{n:04d}.png", ("Pneumonia", "No finding")[n % 2], f"p{n // 2}") for n in range(24)]
    write_csv(tmp_path / "images.csv", ("image", "diagnosis", "patient"), rows)
    for block in blocks(README, "yaml"):
        (tmp_path / block.split()[1].rstrip(":")).write_text(block)
    data = yaml.safe_load((tmp_path / "data.yaml").read_text())
    data["init_args"] |= {"image_size": 16, "batch_size": 4}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(data))
    model = yaml.safe_load((tmp_path / "model.yaml").read_text())
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({**TINY, **model, "image_size": [16, 16]}))
    for family in FAMILIES:
        torch.manual_seed(0)
        kind = family_class(family)
        tiny = TINY if family == "medfusion" else kind.config_class.tiny().to_dict()
        config = kind.config_class.from_dict({**tiny, "label_names": LABELS.get(family, ("No Finding", "Pneumonia"))})
        folder = nudge(kind(config)).save_pretrained(tmp_path / "bundled" / family, about=About(licence="CC0-1.0"))
        shutil.copytree(folder, tmp_path / "runs" / family / "published")
    monkeypatch.setattr("medgen.loading.bundled_folder", lambda name: tmp_path / "bundled" / ZOO[name].family)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", with_python())
def test_the_python_of_a_page_runs(name, workplace):
    names: dict[str, object] = {}
    for block in blocks(PAGES[name], "python"):
        exec(compile(block, name, "exec"), names)
    if name == "README.md":
        images, later = names["images"], names["later"]
        assert (images.shape, images.dtype) == ((4, 1, 16, 16), torch.float32)
        assert 0 <= images.min() < images.max() <= 1
        torch.testing.assert_close(later, images[2:])
        assert names["generator"].label_space.names == ("No Finding", "Pneumonia")


@pytest.mark.slow
def test_the_recipes_of_the_readme_train_a_model_that_samples(workplace):
    options = [f"--trainer.{name}={value}" for name, value in {**TRAINER, "max_epochs": 1}.items()]
    fit(Path("autoencoder.yaml"), "--model.init_args.discriminator_channels=[8,8]", *options)
    fit(Path("diffusion.yaml"), *options)
    sample = [words for words in commands(README, "medgen") if words[:2] == ["sample", "runs/diffusion/published"]]
    assert main([*sample[0], "--device", "cpu", "--quiet", "true"]) == 0
    assert len(list(Path("samples").glob("*.png"))) == 16


def test_the_settings_of_the_readme_are_the_recipes_own():
    """The files above are shrunk; as they stand in the README, they must describe the same model and data."""
    data, model, *stages = (yaml.safe_load(block) for block in blocks(README, "yaml"))
    config = MedfusionConfig(**model)
    assert config.image_size == (data["init_args"]["image_size"],) * 2
    assert config.channels == data["init_args"]["channels"]
    assert list(config.label_names) == data["init_args"]["label_names"]
    assert [stage["model"]["class_path"] for stage in stages] == [
        f"{MODULES}.AutoencoderModule",
        f"{MODULES}.LatentDiffusionModule",
    ]


@every_page
def test_every_verb_and_option_of_a_page_exists(page, capsys):
    for verb, *words in (words for words in commands(page, "medgen") if words):
        if verb in ("VERB", "--help", "--version"):
            continue
        assert verb in {*VERBS, "fit", "validate", "test"}
        options = [word.partition("=")[0] for word in words if word.startswith("-")]
        if verb not in VERBS:
            options = [option for option in options if not option.startswith(("--trainer.", "--model.", "--data."))]
            assert set(options) <= {"--config", "--ckpt_path", "--print_config", "--help"}
            continue
        with pytest.raises(SystemExit):
            main([verb, *words[: verb == "study"], "--help"])  # its steps have options of their own
        text = capsys.readouterr().out + " --help " + " ".join(OPTIONS)
        assert [option for option in options if not re.search(rf"(?<![\w-]){option}\b", text)] == []


@every_page
def test_every_make_target_of_a_page_exists(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {words[0] for words in commands(page, "make")} <= targets


@every_page
def test_every_yaml_of_a_page_is_yaml(page):
    for block in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(block), dict)


@every_page
def test_every_name_of_a_page_exists(page):
    for name in {*re.findall(r"`(medgen(?:\.\w+)+)`", page), *re.findall(r"class_path: (\S+)", page)}:
        home, _, attribute = name.rpartition(".")
        assert hasattr(import_module(home), attribute) or import_module(name), name


@every_page
def test_every_file_of_the_repository_that_a_page_names_exists(page):
    named = re.findall(r"[`\s]((?:medgen|tests|docs|checkpoints|benchmarks)/[\w/.-]+)(?=[`\s,;:)])", page)
    of_runs = (".ckpt", ".safetensors")
    assert [name for name in named if not name.endswith(of_runs) and not (ROOT / name).exists()] == []


def test_the_readme_lists_the_families():
    listed = README.partition("The families so far:")[2].partition("**Research")[0]
    assert sorted(re.findall(r"\*\*([^*]+)\*\*", listed)) == sorted(family.title for family in FAMILIES.values())


def test_every_family_has_its_pages():
    guide, reference = (
        re.findall(r"^[\w/]+$", PAGES[f"docs/{name}.md"], re.MULTILINE) for name in ("index", "api/index")
    )
    assert [name for name in FAMILIES if f"families/{name}" not in guide] == []
    assert [name for name in FAMILIES if name not in reference] == []


def test_the_readme_lists_the_zoo():
    assert re.findall(r"^\| `([\w-]+)` \|.*(?:bundled|authors)", README, flags=re.MULTILINE) == list(ZOO)


@pytest.mark.parametrize("name", ["README.md", "docs/guide/installation.md"])
def test_every_extra_is_listed(name):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = PAGES[name].partition("| extra |")[2].partition("\n\n")[0]
    assert {*extras} <= set(re.findall(r"`([\w-]+)`", table))


def test_the_citation_has_the_version_of_the_package():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == medgen.__version__
