"""Base of generators, which sample images, and of their configs."""

from __future__ import annotations

import dataclasses
import inspect
import secrets
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from numbers import Real
from types import NoneType
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from medgen.config import ModelConfig
from medgen.labels import Label
from medgen.nn.modes import evaluating
from medgen.noise import NoiseSource, whole_number
from medgen.published import PublishedModel
from medgen.renamed import current_arguments

Precision = Literal["float32", "bf16"]

_PLAIN_TYPES: Mapping[str, type] = {"int": int, "float": Real, "str": str, "None": NoneType}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig(ModelConfig):
    """Base of the configs of generators."""


@dataclasses.dataclass(frozen=True)
class PerImage:
    """A sampling option with a value for each image; every batch gets its part.

    Attributes:
        values: One row per image.
    """

    values: Tensor


@dataclasses.dataclass(frozen=True)
class Session:
    """Images to draw in a call, with their conditions and random streams.

    Attributes:
        rows: Numbers of the images within the call.
        condition: Their conditions, (B,) or (B, K), on the model's device, or None.
        seed: Seed of the run.
        first_index: Number of the call's first image in the run.
        device: Device of the model.
    """

    rows: range
    condition: Tensor | None
    seed: int
    first_index: int
    device: torch.device

    @cached_property
    def noise(self) -> NoiseSource:
        """One random stream per image, from its start."""
        indices = range(self.first_index + self.rows.start, self.first_index + self.rows.stop)
        return NoiseSource(self.seed, indices, self.device)

    def batches(self, size: int) -> Iterator[Session]:
        """Split the images into batches of at most `size`."""
        for start in range(0, len(self.rows), size):
            rows = self.rows[start : start + size]
            part = None if self.condition is None else self.condition[start : start + size]
            yield dataclasses.replace(self, rows=rows, condition=part)


class Generator(PublishedModel):
    """Base of the generators: a `PublishedModel` that samples images.

    A family names itself (``class DDPMGenerator(Generator, family="ddpm")``), sets `config_class` and writes `_sample`.
    Networks work in [-1, 1]; `sample` returns images in [0, 1].

    Attributes:
        renamed_options: New names of sampling options by their old names, which still work in this release.
    """

    renamed_options: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def _sample(self, label: Tensor | None, noise: NoiseSource, *args: Any, **options: Any) -> Tensor:
        """Draw a batch of images (B, C, H, W) in [-1, 1] from conditions (B,) or (B, K) and B random streams."""

    @classmethod
    def sampling_options(cls) -> dict[str, inspect.Parameter]:
        """List the sampling options of this family, with their types and defaults."""
        parameters = inspect.signature(cls._sample).parameters
        return {name: parameter for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}

    def check_options(self, options: Mapping[str, object]) -> None:
        """Refuse sampling options that are unknown, of another type or out of range.

        Raises:
            ValueError: Naming the option, and the known ones or its type or range.
        """
        options = current_arguments(options, self.renamed_options)
        known = {name: str(option.annotation) for name, option in self.sampling_options().items()}
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(
                f"sampling option {', '.join(unknown)} is unknown to {self.family}; it has {', '.join(known) or 'none'}"
            )
        for name, value in options.items():
            kinds = [_PLAIN_TYPES.get(part, object) for part in known[name].split(" | ")]
            if not any(isinstance(value, kind) for kind in kinds):
                raise ValueError(f"sampling option {name} is {value!r}; it is of type {known[name]}")
        self._check_values(**options)

    def _check_values(self, **options: Any) -> None:
        """Raise a ValueError for options out of range for any image, at the start of a run; families override it."""

    def _prepare(self, options: Mapping[str, Any], indices: range) -> dict[str, Any]:
        """Convert options for `_sample` of images with these numbers, or raise a ValueError; see also `PerImage`."""
        return dict(options)

    def masks_for(
        self, n: int, label: Label = None, *, seed: int = 0, first_index: int = 0, **options: Any
    ) -> Tensor | None:
        """Get the label maps (n, H, W) of the images that `sample` draws with equal arguments; None without maps."""
        return None

    @contextmanager
    def session(
        self, n: int, label: Label = None, *, seed: int | None = None, first_index: int = 0
    ) -> Iterator[Session]:
        """Check arguments of a method that draws, see `sample`, and run it in evaluation mode without gradients.

        Raises:
            ValueError: If an argument is out of range or unknown to this model.
        """
        if whole_number("n", n) < 1:
            raise ValueError(f"n is {n}; ask for at least one image")
        if first_index < 0:
            raise ValueError(f"first_index is {first_index}; images are numbered from 0")
        condition = self.label_space.resolve(label, n)
        condition = None if condition is None else condition.to(self.device)
        seed = secrets.randbits(31) if seed is None else whole_number("seed", seed)
        with evaluating(self), torch.no_grad():
            yield Session(range(n), condition, seed, first_index, self.device)

    def sample(
        self,
        n: int,
        label: Label = None,
        *,
        seed: int | None = None,
        first_index: int = 0,
        batch_size: int = 16,
        precision: Precision = "float32",
        **options: Any,
    ) -> Tensor:
        """Draw images.

        Image ``first_index + i`` of a seed is the same whatever the batch size, the number of processes and ``n``.

        Args:
            n: Number of images.
            label: Class or finding by name or number, for all images or one per image, or None for no condition; see
                `medgen.labels.LabelSpace.resolve`.
            seed: Seed of the run; None draws a new one each time.
            first_index: Number of the first image in the run, for drawing a long run in parts.
            batch_size: Images drawn together; changes memory and speed, not the images (in bf16: up to rounding).
            precision: ``bf16`` runs the networks in bfloat16, faster on GPUs and recent CPUs.
            **options: Options of the family, such as ``steps`` and ``guidance`` of a diffusion model.

        Returns:
            Float32 images in [0, 1], (n, C, H, W), on the CPU.

        Raises:
            ValueError: If an argument is out of range or unknown to this model.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; use at least 1")
        check_precision(precision)
        options = current_arguments(options, self.renamed_options)
        self.check_options(options)
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
        batches = []
        with torch.inference_mode(), self.session(n, label, seed=seed, first_index=first_index) as session, autocast:
            prepared = self._prepare(options, range(first_index, first_index + n))
            for part in session.batches(batch_size):
                own = dict(prepared)
                for name, value in prepared.items():
                    if isinstance(value, PerImage):
                        own[name] = value.values[part.rows.start : part.rows.stop].to(part.device)
                images = self._sample(part.condition, part.noise, **own)
                batches.append(images.float().add(1).div(2).clamp(0, 1).cpu())
        return torch.cat(batches).clone()  # outside inference mode, so that users may train on it


def check_precision(precision: str) -> None:
    """Raise a ValueError for an unknown `Precision`."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}; use {' or '.join(map(repr, get_args(Precision)))}")
