"""The prior against the official PixelSNAIL: logits, blocks within, and gradients."""

import pytest
import torch
from torch.nn import functional as F

from medgen.foreign.convert import load_official
from tests.parity.conftest import Case, cases

CASES = [case for case in [*cases("pixelsnail_top"), *cases("pixelsnail_bottom")] if "sample" not in str(case.id)]
pytestmark = pytest.mark.parametrize("case", CASES)

_PARAMETERS = {
    "horizontal.conv.conv.weight_g": "above.weight_g",
    "blocks.0.resblocks.0.conv1.conv.conv.weight_v": "blocks.0.residual.0.first.weight_v",
    "cond_resnet.blocks.0.conv.weight_g": "condition.stem.weight_g",
    "out.1.conv.bias": "to_logits.bias",
    "out.1.conv.weight_v": "to_logits.weight_v",
}


@pytest.fixture
def network(case: Case):
    return load_official("pixelsnail", case.weights, case.kwargs)


@torch.no_grad()
def test_logits_are_those_of_the_official_network(case: Case, network) -> None:
    codes, condition = case.inputs["codes"], case.inputs.get("condition")
    case.check("logits", network(codes, condition))
    rows = case.outputs["logits_first_rows"].shape[2]
    case.check("logits_first_rows", network(codes[:, :rows], condition))
    if condition is not None:
        case.check("cache_condition", network.condition_map(condition))


@torch.no_grad()
def test_stem_and_first_blocks_are_those_of_the_official_network(case: Case, network) -> None:
    codes = case.inputs["codes"]
    moved = network.condition_map(case.inputs.get("condition"))
    stem = network.stem(codes)
    case.check("stem", stem)
    block = network.blocks[0]
    case.check("block0_resblock0", block.residual[0](stem, condition=moved))
    case.check("block0", block(stem, network.place(stem).expand(len(stem), -1, -1, -1), moved, None))


def test_gradients_are_those_of_the_official_network(case: Case, network) -> None:
    codes = case.inputs["codes"]
    loss = F.cross_entropy(network(codes, case.inputs.get("condition")), codes)
    loss.backward()
    case.check("cross_entropy", loss)
    parameters = dict(network.named_parameters())
    for name in case.outputs:
        if name.startswith("grad/"):
            found = parameters[_PARAMETERS[name.removeprefix("grad/")]].grad
            if "resblocks" in name:  # weights that are not seen: the official code has a gradient, then sets them to 0
                seen = network.blocks[0].residual[0].first.seen
                found = torch.where(seen == 1, found, case.outputs[name])
            case.check(name, found, relative=1e-4)
