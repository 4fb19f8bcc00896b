"""Whole sampling runs, step by step, against those of the official DiffusionPipeline."""

from typing import Any

import pytest
import torch
from torch import Tensor

from medgen.diffusion.denoiser import Estimate, NetworkDenoiser, guided
from medgen.diffusion.samplers import ancestral, ddim
from tests.parity.conftest import Case, cases
from tests.parity.medfusion_pipeline import OBJECTIVES, build_schedule, load_autoencoder, load_unet

IMAGES_AFTER_A_RUN = 1e-4  # the README's bound, relative to the largest value


class StoredNoise:
    """Hands out the draws that the official run used, in its order."""

    def __init__(self, start: Tensor, draws: Tensor, *, every_second: bool) -> None:
        self.draws = [start, *(draws[1::2] if every_second else draws)]

    def normal(self, *shape: int) -> Tensor:
        draw = self.draws.pop(0)
        assert draw.shape[1:] == torch.Size(shape)
        return draw


class Recorder:
    """A denoiser that remembers what went through it."""

    def __init__(self, denoise: NetworkDenoiser) -> None:
        self.denoise = denoise
        self.trace: dict[str, list[Tensor]] = {"x_t_in": [], "x_0": [], "x_T": [], "t": []}

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        estimate = self.denoise(x_t, t)
        for name, value in zip(self.trace, (x_t, estimate.x_0, estimate.eps, t[0]), strict=True):
            self.trace[name].append(value)
        return estimate


def run(case: Case, name: str, call: dict[str, Any]) -> tuple[Tensor, Recorder]:
    """One call of the official `sample` with our parts: its result before decoding, and what happened on the way."""
    pipeline, start = case.kwargs, case.inputs["x_T"]
    schedule, unet = build_schedule(case.meta["constructor"]["noise_scheduler_kwargs"]), load_unet(case)
    label = case.inputs.get("condition") if call.get("use_cond", True) else None
    negative = None if label is None or call.get("un_cond") is None else 1 - label  # "flip"
    denoise = Recorder(
        NetworkDenoiser(
            guided(unet, label, weight=call.get("guidance_scale", 1.0), negative=negative),
            schedule,
            prediction_type=OBJECTIVES[pipeline["estimator_objective"]],
            clip=pipeline["clip_x0"],
            self_conditioning=pipeline["use_self_conditioning"],
        )
    )
    steps, use_ddim = call.get("steps") or len(schedule), call.get("use_ddim", True)
    noise = StoredNoise(start, case.inputs[f"noise_{name}"], every_second=use_ddim)
    if use_ddim:
        return ddim(denoise, noise, start.shape[1:], schedule, steps=steps), denoise
    # The official ancestral sampler takes the last n times of the schedule, not n spread over it
    return ancestral(denoise, noise, start.shape[1:], schedule, times=range(steps - 1, -1, -1)), denoise


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("case", cases("medfusion_sampler"))
def test_every_step_and_the_final_image_equal_the_official_ones(case: Case) -> None:
    autoencoder = load_autoencoder(case)
    for name, call in case.meta["calls"].items():
        sample, denoise = run(case, name, call)
        for quantity, values in denoise.trace.items():
            case.check(f"{name}/trace_{quantity}", torch.stack(values), IMAGES_AFTER_A_RUN)
        final = sample if autoencoder is None else autoencoder.decode(sample)
        case.check(f"{name}/final", final, IMAGES_AFTER_A_RUN)
