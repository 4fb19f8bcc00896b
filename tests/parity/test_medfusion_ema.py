"""Medfusion's moving average of weights against the official one."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from medgen.training.ema import ema_decay
from tests.parity.conftest import Case, cases

pytestmark = pytest.mark.parametrize("case", cases("medfusion_ema"))

STEPS = (0, 1, 2, 10, 100, 1000, 31600, 1000000)


def test_decay_equals_the_official_one(case: Case):
    def decays(steps) -> torch.Tensor:
        return torch.tensor([ema_decay(step, **case.kwargs) for step in steps])

    case.check("decay_at", decays(STEPS))
    case.check("decay_seq", decays(range(len(case.outputs["decay_seq"]))))


def test_averaged_weights_equal_the_official_ones_after_every_step(case: Case):
    def average(averaged: list[torch.Tensor], current: list[torch.Tensor], step: torch.Tensor) -> None:
        torch._foreach_lerp_(averaged, current, 1 - ema_decay(int(step), **case.kwargs))

    linear = torch.nn.Linear(4, 3)
    ema = AveragedModel(linear, multi_avg_fn=average)
    history = []
    for weight in case.inputs["weights_seq"]:
        linear.weight.data.copy_(weight)
        ema.update_parameters(linear)
        history.append(ema.module.weight.detach().clone())
    case.check("averaged_weight_seq", torch.stack(history))
