"""Augmentation against the official one, at fixed percentiles and with its own random numbers."""

import pytest
import torch

from medgen.training.ada import CORRUPTION, PIPES, AugmentPipe
from tests.parity.conftest import Case, cases

CASES = [case for case in cases("stylegan2_augment") if "_r1_" not in str(case.id)]


@pytest.mark.parametrize("case", CASES)
def test_filters_are_the_official_ones(case: Case) -> None:
    pipe = AugmentPipe()
    torch.testing.assert_close(pipe.smooth, case.weights["Hz_geom"], rtol=0, atol=1e-6)
    torch.testing.assert_close(pipe.bands, case.weights["Hz_fbank"], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_transform_at_every_percentile(case: Case) -> None:
    compared = 0
    for name, expected in case.outputs.items():
        stage, _, percentile = name.partition("/q")
        if not percentile:
            continue
        pipe = AugmentPipe(case.meta["constructor"][stage])
        changed = pipe(case.inputs["img"], percentile=float(percentile))
        torch.testing.assert_close(changed, expected, rtol=0, atol=3e-5, msg=lambda text, at=name: f"{at}: {text}")
        compared += 1
    assert compared >= 20


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("stage", "transforms", "seed", "p"),
    [("bgc_seed1234_p06", PIPES["bgc"], 1234, 0.6), ("bgcfnc_seed77_p1", PIPES["bgc"] + CORRUPTION, 77, 1.0)],
)
def test_random_numbers_are_drawn_in_the_official_order(case: Case, stage, transforms, seed, p) -> None:
    if stage not in case.outputs:
        pytest.skip(f"{case} has no {stage}")
    pipe = AugmentPipe(dict.fromkeys(transforms, 1.0))
    pipe.p.fill_(p)
    torch.manual_seed(seed)
    torch.testing.assert_close(pipe(case.inputs["img"]), case.outputs[stage], rtol=0, atol=3e-5)
