"""The records of the families: what they name exists, and nothing outside a family's folder names a family."""

import ast
import dataclasses
import re
from inspect import Parameter, signature
from pathlib import Path

import pytest

import medgen
from medgen.commands.main import VERBS
from medgen.families import FAMILIES, family_class, family_names, find_family
from medgen.families.family import Component, imported

PACKAGE = Path(medgen.__file__).parent
NAMED_BY = {
    "families/__init__.py": "the registry",
    "zoo.py": "the checkpoints by name",
    "nn/vqvae2.py": "the network that has this name",
}
"""Files outside a family's folder that name one, and what for."""

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@every_family
def test_what_a_record_names_exists(family):
    assert FAMILIES[family.name] is family
    assert family.package == f"medgen.families.{family.name}"
    assert family.config_class().tiny()
    for stage, module in zip(family.stages, family.stage_classes(), strict=True):
        assert stage == f"{family.package}.modules:{module.__name__}"
        assert "config" in signature(module).parameters
    if family.stages:
        assert family.stage_classes()[-1].published_weights
    assert all(isinstance(part, Component) for part in family.official_networks().values())


@pytest.mark.parametrize("family", family_names())
def test_a_generator_has_the_name_of_its_family(family):
    assert family_class(family).family == family


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.official])
def test_options_of_official_files_are_explained_and_understood(name):
    official = find_family(name).official
    parameters = signature(imported(official.convert)).parameters
    assert {"image_size", "label_names"} <= parameters.keys()
    for option in official.fields():
        assert option.metadata["help"]
        assert option.default is parameters[option.name].default is not dataclasses.MISSING
    taken = [name for name, parameter in parameters.items() if parameter.default is not Parameter.empty]
    assert {*taken} == {"image_size", "label_names", *official.defaults()}


@every_family
def test_verbs_of_a_family_are_those_of_the_command_line(family):
    assert {name: VERBS[name] for name in family.verbs} == family.verbs


def test_an_unknown_family_is_named():
    with pytest.raises(ValueError, match="family 'dalle' is unknown; this medgen has medfusion, "):
        find_family("dalle")


def test_nothing_else_names_a_family():
    assert [path for path in NAMED_BY if not (PACKAGE / path).is_file()] == []
    name = re.compile("|".join(FAMILIES), flags=re.IGNORECASE)
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE)
        if where.as_posix() in NAMED_BY or (where.parts[0] == "families" and where.parts[1] in FAMILIES):
            continue
        tree = ast.parse(path.read_text())
        documents = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if id(node) not in documents:  # sources of what is done are named there
                words = [value for _, value in ast.iter_fields(node) if isinstance(value, str)]
                found += [f"{where}:{node.lineno}: {word}" for word in words if name.search(word)]
    assert found == []
