"""One adapter that makes a sampler of any diffusers scheduler: DPM-Solver++, UniPC, Heun and the rest."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from medgen.diffusion.denoiser import Denoiser
from medgen.diffusion.samplers import SAMPLERS, Sampler
from medgen.diffusion.schedule import NoiseSchedule
from medgen.noise import Noise, stream_seed

TimestepSpacing = Literal["linspace", "leading", "trailing"]


class SchedulerEntry(NamedTuple):
    """A diffusers class and what it is built with."""

    class_name: str
    options: Mapping[str, object] = MappingProxyType({})


SHORT_NAMES: Mapping[str, SchedulerEntry] = {
    "dpm++": SchedulerEntry("DPMSolverMultistepScheduler"),
    "dpm++_sde": SchedulerEntry("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++_single": SchedulerEntry("DPMSolverSinglestepScheduler"),
    "unipc": SchedulerEntry("UniPCMultistepScheduler"),
    "deis": SchedulerEntry("DEISMultistepScheduler"),
    "heun": SchedulerEntry("HeunDiscreteScheduler"),
    "euler": SchedulerEntry("EulerDiscreteScheduler"),
    "euler_ancestral": SchedulerEntry("EulerAncestralDiscreteScheduler"),
    "kdpm2": SchedulerEntry("KDPM2DiscreteScheduler"),
    "kdpm2_ancestral": SchedulerEntry("KDPM2AncestralDiscreteScheduler"),
    "lms": SchedulerEntry("LMSDiscreteScheduler"),
    "pndm": SchedulerEntry("PNDMScheduler", {"skip_prk_steps": True}),
    "sa": SchedulerEntry("SASolverScheduler"),
}
"""Short names, taken in any case; the name of a diffusers class works as well."""

REFUSED: Mapping[str, str] = {
    "DDIMInverseScheduler": "runs from the image to the noise",
    "DPMSolverMultistepInverseScheduler": "runs from the image to the noise",
    "DPMSolverSDEScheduler": "draws one random stream for a whole batch, so an image would depend on its neighbours",
    "CogVideoXDDIMScheduler": "changes the noise schedule for one video model",
    "CogVideoXDPMScheduler": "changes the noise schedule for one video model",
    "LCMScheduler": "is made for distilled models",
    "TCDScheduler": "is made for distilled models",
}

# Whatever the class has of these: clipping belongs to the denoiser, and the last step ends at the clean image.
_FIXED: Mapping[str, object] = {"clip_sample": False, "set_alpha_to_one": True, "prediction_type": "epsilon"}


def diffusers_sampler(name: str, *, timestep_spacing: TimestepSpacing = "trailing", **options: object) -> Sampler:
    """A sampler with the signature of `medgen.diffusion.samplers.ddim` that runs a diffusers scheduler.

    Stochastic schedulers draw every image's noise from that image's own stream. Second-order schedulers call the
    denoiser more often than ``steps`` times.

    Args:
        name: A name of `SHORT_NAMES` or of a diffusers class, such as "dpm++" or "DPMSolverMultistepScheduler".
        timestep_spacing: How the times spread over the schedule (Lin et al. 2023, "Common diffusion noise schedules and
            sample steps are flawed", table 2). "trailing" starts at the last one and stays on whole steps.
        **options: More arguments of the diffusers class, such as ``solver_order=3`` or ``use_karras_sigmas=True``.

    Raises:
        ValueError: If there is no such scheduler, it cannot serve here, or it has no such option.
        ImportError: If diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            f"sampler {name!r} needs diffusers; run: pip install \"medgen[diffusers]\", "
            f"or use one of {', '.join(map(repr, SAMPLERS))}"
        ) from error
    entry = SHORT_NAMES.get(name.lower(), SchedulerEntry(name))
    if entry.class_name in REFUSED:
        raise ValueError(f"sampler {name!r} cannot be used: it {REFUSED[entry.class_name]}; {_choices()}")
    scheduler_class = getattr(diffusers, entry.class_name, None) if entry.class_name.endswith("Scheduler") else None
    accepted = set(inspect.signature(scheduler_class.__init__).parameters) if scheduler_class else set()
    if not {"trained_betas", "prediction_type"} <= accepted:
        why = "does not run on a table of betas" if scheduler_class else "is unknown"
        raise ValueError(f"sampler {name!r} {why}; {_choices()}")
    if unknown := set(options) - accepted:
        raise ValueError(f"{entry.class_name} has no option {', '.join(sorted(unknown))}; it takes {sorted(accepted)}")
    settings = {**_FIXED, "timestep_spacing": timestep_spacing}
    settings = {key: value for key, value in settings.items() if key in accepted} | dict(entry.options) | options

    def sample(
        denoise: Denoiser, noise: Noise, shape: Sequence[int], schedule: NoiseSchedule, *, steps: int = 20
    ) -> Tensor:
        if not 1 <= steps <= len(schedule):
            raise ValueError(f"steps is {steps}; this schedule allows 1 to {len(schedule)}")
        betas = schedule.betas.cpu().numpy()
        scheduler = scheduler_class(num_train_timesteps=len(schedule), trained_betas=betas, **settings)
        x = noise.normal(*shape)
        random = {}
        if "generator" in inspect.signature(scheduler.step).parameters:
            random["generator"] = _generators(noise)
        scheduler.set_timesteps(steps, device=x.device)
        x = x * scheduler.init_noise_sigma
        for time in scheduler.timesteps:
            x_t = scheduler.scale_model_input(x, time)
            t = torch.full((x.shape[0],), round(float(time)), device=x.device, dtype=torch.int64)
            # The noise that agrees with x_0, so that clipping in the denoiser reaches the scheduler
            eps = schedule.eps_from_x_0(x_t, denoise(x_t, t).x_0, t)
            x = scheduler.step(eps, time, x, return_dict=False, **random)[0]
        return x

    return sample


def _generators(noise: Noise) -> list[torch.Generator]:
    """One generator per image, each seeded from that image's stream."""
    words = noise.normal(4).cpu().view(torch.int32).tolist()  # the bits of four floats: plenty for a seed
    return [torch.Generator().manual_seed(stream_seed("diffusers", *row)) for row in words]


def _choices() -> str:
    return f"use {', '.join(map(repr, [*SAMPLERS, *SHORT_NAMES]))} or a diffusers class that takes trained_betas"
