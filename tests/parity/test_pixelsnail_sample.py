"""Codes drawn at stored uniform numbers against the official sampling loop, which computes every row anew."""

import pytest
import torch

from medgen.foreign.convert import load_official
from medgen.nn.pixelsnail_sampling import Choice, draw_codes
from tests.parity.conftest import PARITY, Case, cases

CASES = [*cases("pixelsnail_top_sample"), *cases("pixelsnail_bottom_sample")]


@pytest.mark.parametrize("case", CASES)
def test_codes_are_those_of_the_official_loop(case: Case) -> None:
    without_sample = Case(PARITY / f"{case.path.stem.replace('_sample', '')}.json")
    prior = load_official("pixelsnail", without_sample.weights, case.kwargs)
    for call, temperature in case.meta["temperature"].items():
        uniform = case.inputs[f"uniform_{call}"].T.unflatten(1, prior.size)
        condition = case.inputs.get("condition")
        codes = draw_codes(prior, uniform, condition=condition, choice=Choice(temperature))
        assert torch.equal(codes, case.outputs[f"{call}/codes"])
