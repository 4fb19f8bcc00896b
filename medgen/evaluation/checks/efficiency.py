"""Cost of sampling: time, memory, calls of the network, and quality with fewer steps."""

from __future__ import annotations

import inspect
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from medgen.evaluation.checks.case import Case, Check, Figure, Findings
from medgen.evaluation.report.plots import curve_plot
from medgen.evaluation.run import compare, measure, opened
from medgen.evaluation.scores import Meaning, Score, score
from medgen.evaluation.sets import RealImages
from medgen.generator import Generator

TIMED = 8
"""Images drawn for the timing."""
SWEEP = (5, 10, 20, 50)
"""Numbers of steps of the sweep, for families with steps."""


def efficiency(case: Case) -> Findings:
    """Measure seconds per image, peak memory, calls of the costliest network and size, and sweep over steps."""
    generator = case.generator
    found = Findings()
    has_steps = "steps" in inspect.signature(generator._sample).parameters
    timed = min(TIMED, case.opened.n)
    label = case.opened.conditions(slice(0, timed))
    generator.sample(
        1, None if label is None else label[:1], seed=0, **(case.options | ({"steps": 2} if has_steps else {}))
    )  # warm up
    calls = _Calls(generator)
    if generator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(generator.device)
    with calls:
        start = time.perf_counter()
        generator.sample(timed, label, seed=case.settings.seed, batch_size=timed, **case.options)
        seconds = (time.perf_counter() - start) / timed
    numbers = {
        "seconds_per_image": seconds,
        "peak_memory_mb": _peak_megabytes(generator.device),
        "parameters_million": sum(p.numel() for p in generator.parameters()) / 1e6,
    }
    if calls.most:  # autoregressive sampling may not call networks as a whole
        numbers["evaluations_per_image"] = float(calls.most)
    found.scores += [score(name, value, case.generated, case.real) for name, value in numbers.items()]
    if has_steps:
        figure, scores = sweep(case, generator, SWEEP)
        found.figures.append(figure)
        found.scores += scores
    return found


def sweep(case: Case, generator: Generator, steps: Sequence[int]) -> tuple[Figure, list[Score]]:
    """Measure the Fréchet distance against the number of steps, with images of the same seed."""
    scores = []
    real = RealImages(case.datamodule, case.settings.split)
    for count in steps:
        part = opened(
            generator,
            case.datamodule,
            real,
            n=case.generated.n,
            seed=case.settings.seed,
            options=case.options | {"steps": count},
        )
        sets = compare(
            part, case.datamodule, [case.judge], split=case.settings.split, batch_size=case.settings.batch_size
        )
        (distance,) = measure(*sets, case.judge, ["frechet_distance"]).values()
        scores.append(replace(distance, name=f"steps_{distance.name}:{count} steps"))
    sampler = case.options.get("sampler", "default sampler")
    figure = Figure(
        name="steps",
        title="Fewer steps",
        caption=f"Fréchet distance in {case.judge.name} against the number of steps, n = {case.generated.n}.",
        image=curve_plot(
            {str(sampler): (list(steps), [score.value for score in scores])}, x="steps", y="Fréchet distance"
        ),
    )
    return figure, scores


class _Calls:
    """Counts calls of the child modules; `most` is the largest count."""

    def __init__(self, generator: Generator) -> None:
        self.counts: Counter[torch.nn.Module] = Counter()
        self.generator = generator

    @property
    def most(self) -> int:
        return max(self.counts.values(), default=0)

    def __enter__(self) -> None:
        def count(module: torch.nn.Module, inputs: object) -> None:
            self.counts[module] += 1

        self.handles = [child.register_forward_pre_hook(count) for child in self.generator.children()]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def _peak_megabytes(device: torch.device) -> float:
    """Peak of the GPU while sampling; on a CPU, of the process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


MEANINGS = {
    "seconds_per_image": Meaning("efficiency", "Seconds per image", -1, "Wall clock on the device of the report."),
    "peak_memory_mb": Meaning(
        "efficiency", "Peak memory (MB)", -1, "Of the GPU while sampling, or of the whole process."
    ),
    "steps_fd": Meaning(
        "efficiency", "Fréchet distance with fewer steps", -1, "Of equally many images of the same seed."
    ),
    "evaluations_per_image": Meaning(
        "efficiency", "Network evaluations per image", -1, "Calls of the sampled network."
    ),
    "parameters_million": Meaning("efficiency", "Parameters (million)", -1, "Of the whole generator."),
}

CHECK = Check(run=efficiency, train=False, generator=True, packages=("matplotlib",), meanings=MEANINGS)
