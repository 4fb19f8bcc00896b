import numpy as np
import pytest
import torch
from torch import Tensor

from medgen.losses.perceptual import VGGPerceptualLoss
from tests.parity.conftest import Case, cases


def vgg_weights(case: Case) -> dict[str, Tensor]:
    """The weights by the recipe in the json, because VGG16 is too large to store."""
    weights = {}
    for tensor in case.meta["weight_recipe_tensors"]:
        numbers = np.random.RandomState(tensor["seed"]).standard_normal(tensor["shape"])
        weights[tensor["key"]] = torch.from_numpy(numbers.astype(np.float32) * np.float32(tensor["scale"]))
        assert weights[tensor["key"]].flatten()[:3].tolist() == tensor["first3"]
    return weights


@pytest.mark.slow
@pytest.mark.parametrize("case", cases("medfusion_lpips"))
def test_distances_equal_the_official_ones(case: Case) -> None:
    weights = vgg_weights(case)
    for name, expected in case.outputs.items():  # lpips_(un)calibrated_<inputs>
        _, calibration, images = name.split("_", 2)
        suffix = "" if images == "rgb" else f"_{images}"
        loss = VGGPerceptualLoss(weights, case.weights if calibration == "calibrated" else None)
        pair = [case.inputs[f"{role}{suffix}"] for role in ("pred", "target")]
        if case.kwargs.get("normalize"):  # the official class is given [0, 1] and moves it to [-1, 1]
            pair = [2 * image - 1 for image in pair]
        with torch.no_grad():
            distance = loss(*pair)
        case.check(name, distance.reshape(expected.shape))
