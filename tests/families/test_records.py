"""The records of the families: what they name exists and fits together."""

import dataclasses
from inspect import Parameter, signature

import pytest

from medgen.commands.main import VERBS
from medgen.families import FAMILIES, family_class, find_family
from medgen.families.family import Component, imported

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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_has_the_name_of_its_family(family):
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
