"""Samplers that run diffusers schedulers: DPM-Solver++, UniPC, Heun and others."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from medgen.diffusion.denoiser import Denoiser
from medgen.diffusion.samplers import SAMPLERS, Sampler
from medgen.diffusion.schedule import NoiseSchedule
from medgen.noise import Noise, stream_seed

TimestepSpacing = Literal["linspace", "leading", "trailing"]


class SchedulerEntry(NamedTuple):
    """A diffusers class and its arguments."""

    class_name: str
    options: Mapping[str, object] = MappingProxyType({})


# Steps uniform in the log signal-to-noise ratio (Lu et al. 2022, "DPM-Solver", section 3.4) instead of in time: under
# the published schedule, the last of 20 steps uniform in time loses a third of a small standard deviation.
_EVEN_LOG_SNR: Mapping[str, object] = MappingProxyType({"use_exponential_sigmas": True})

SHORT_NAMES: Mapping[str, SchedulerEntry] = {
    "dpm++": SchedulerEntry("DPMSolverMultistepScheduler", _EVEN_LOG_SNR),
    "dpm++_sde": SchedulerEntry("DPMSolverMultistepScheduler", {**_EVEN_LOG_SNR, "algorithm_type": "sde-dpmsolver++"}),
    "unipc": SchedulerEntry("UniPCMultistepScheduler", _EVEN_LOG_SNR),
    "deis": SchedulerEntry("DEISMultistepScheduler", _EVEN_LOG_SNR),
    "heun": SchedulerEntry("HeunDiscreteScheduler", _EVEN_LOG_SNR),
    "euler": SchedulerEntry("EulerDiscreteScheduler", _EVEN_LOG_SNR),
    "euler_ancestral": SchedulerEntry("EulerAncestralDiscreteScheduler"),
    "kdpm2": SchedulerEntry("KDPM2DiscreteScheduler", _EVEN_LOG_SNR),
    "kdpm2_ancestral": SchedulerEntry("KDPM2AncestralDiscreteScheduler", _EVEN_LOG_SNR),
    "lms": SchedulerEntry("LMSDiscreteScheduler"),
    "pndm": SchedulerEntry("PNDMScheduler", {"skip_prk_steps": True}),
    "sa": SchedulerEntry("SASolverScheduler"),
}
"""Short names, in any case; the name of a diffusers class works as well, with the defaults of that class."""

REFUSED: Mapping[str, str] = {
    "DDIMInverseScheduler": "runs from the image to the noise",
    "DPMSolverMultistepInverseScheduler": "runs from the image to the noise",
    "DPMSolverSDEScheduler": "draws one random stream for a whole batch, so an image would depend on its neighbours",
    "CogVideoXDDIMScheduler": "changes the noise schedule for one video model",
    "CogVideoXDPMScheduler": "changes the noise schedule for one video model",
    "LCMScheduler": "is made for distilled models",
    "TCDScheduler": "is made for distilled models",
}

# Set where the class has them: clipping belongs to the denoiser, and the last step ends at the clean image.
_FIXED: Mapping[str, object] = {"clip_sample": False, "set_alpha_to_one": True, "prediction_type": "epsilon"}


def diffusers_sampler(name: str, *, timestep_spacing: TimestepSpacing = "linspace", **options: object) -> Sampler:
    """Make a sampler with the signature of `medgen.diffusion.samplers.ddim` that runs a diffusers scheduler.

    Stochastic schedulers draw the noise of every image from its own random stream. Second-order schedulers call the
    denoiser more often than ``steps`` times.

    Args:
        name: A name of `SHORT_NAMES` or of a diffusers class, such as "dpm++" or "DPMSolverMultistepScheduler".
        timestep_spacing: Spacing of the times (Lin et al. 2023, "Common diffusion noise schedules and sample steps are
            flawed", table 2). "linspace" goes from the last to the first, as in `ddim`.
        **options: More arguments of the diffusers class, such as ``solver_order=3``.

    Raises:
        ValueError: If the scheduler or an option is unknown, or the scheduler cannot be used here.
        ImportError: If diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            f'sampler {name!r} needs diffusers; run: pip install "medgen[diffusers]", '
            f"or use one of {', '.join(map(repr, SAMPLERS))}"
        ) from error
    entry = SHORT_NAMES.get(name.lower(), SchedulerEntry(name))
    if entry.class_name in REFUSED:
        raise ValueError(f"sampler {name!r} cannot be used: it {REFUSED[entry.class_name]}; {_choices()}")
    known = entry.class_name.endswith("Scheduler") and hasattr(diffusers, entry.class_name)
    scheduler_class: Any = getattr(diffusers, entry.class_name) if known else object
    accepted = set(inspect.signature(scheduler_class.__init__).parameters)
    if not {"trained_betas", "prediction_type"} <= accepted:
        why = "does not turn predicted noise into images by a table of betas" if known else "is unknown"
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
        x: Tensor = noise.normal(*shape)
        random = {}
        if "generator" in inspect.signature(scheduler.step).parameters:
            random["generator"] = _generators(noise)
        scheduler.set_timesteps(steps, device=x.device)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # a search by time fails where two steps round to the same time
        x = x * scheduler.init_noise_sigma
        for time in scheduler.timesteps:
            x_t = scheduler.scale_model_input(x, time)
            t = torch.full((x.shape[0],), round(float(time)), device=x.device, dtype=torch.int64)
            # Noise computed from x_0, so that clipping in the denoiser reaches the scheduler
            eps = schedule.eps_from_x_0(x_t, denoise(x_t, t).x_0, t)
            x = scheduler.step(eps, time, x, return_dict=False, **random)[0]
        return x

    return sample


def _generators(noise: Noise) -> list[torch.Generator]:
    """One generator per image, seeded from its random stream."""
    words = noise.normal(4).cpu().view(torch.int32).tolist()  # the bits of four floats
    return [torch.Generator().manual_seed(stream_seed("diffusers", *row)) for row in words]


def _choices() -> str:
    return f"use {', '.join(map(repr, [*SAMPLERS, *SHORT_NAMES]))} or such a diffusers class by name"
