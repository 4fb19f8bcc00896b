"""The object users load: a network that samples images, and the frozen description it is rebuilt from."""

from __future__ import annotations

import dataclasses
import inspect
import secrets
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import wraps
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Literal, ParamSpec, Self, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from medgen.checkpoint import About, read_checkpoint, write_checkpoint
from medgen.config import Config
from medgen.labels import Label, LabelKind, LabelSpace
from medgen.nn.modes import evaluating
from medgen.noise import NoiseSource, whole_number

Precision = Literal["float32", "bf16"]
_P = ParamSpec("_P")
_T = TypeVar("_T")

_PLAIN_TYPES: Mapping[str, type] = {"int": int, "float": Real, "str": str, "None": NoneType}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig(Config):
    """Everything needed to rebuild and describe a generator: what its images are, and the configs of its parts.

    Attributes:
        image_size: Height and width in pixels.
        channels: 1 for greyscale, 3 for RGB.
        label_kind: What the model is conditioned on, see `medgen.labels.LabelSpace`.
        label_names: Classes, findings or conditions in the order of the label vector.
        intensity_window: The physical values that 0 and 1 of the images stand for.
        intensity_unit: Unit of the window, such as ``HU`` or ``stored value``.
    """

    image_size: tuple[int, int]
    channels: int = 1
    label_kind: LabelKind = "none"
    label_names: tuple[str, ...] = ()
    intensity_window: tuple[float, float] = (0.0, 255.0)
    intensity_unit: str = "stored value"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.image_size) != 2 or any(side < 1 for side in self.image_size):
            raise ValueError(f"image_size is {self.image_size}; expected (height, width) in pixels")
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}; use 1 for greyscale or 3 for RGB")
        if self.intensity_window[0] >= self.intensity_window[1]:
            raise ValueError(f"intensity_window is {self.intensity_window}; expected (low, high) with low < high")
        LabelSpace(self.label_kind, self.label_names)

    @property
    def label_space(self) -> LabelSpace:
        """The labels the generator can be asked for."""
        return LabelSpace(self.label_kind, self.label_names)

    @classmethod
    def tiny(cls) -> Self:
        """A model so small that tests and documentation train and sample it in a second."""
        raise NotImplementedError(f"{cls.__name__} has no tiny()")


@dataclasses.dataclass(frozen=True)
class PerImage:
    """A sampling option with a value for each image, of which every batch gets its part.

    Attributes:
        values: One row per image.
    """

    values: Tensor


class Generator(nn.Module, ABC):
    """Base of every family's generator: `sample`, `save_pretrained`, `from_pretrained`, `push_to_hub`.

    A family names itself (``class MedfusionGenerator(Generator, family="medfusion")``), sets `config_class` and writes
    `_sample`. Networks work in [-1, 1]; this class converts to the [0, 1] that users meet.

    Attributes:
        renamed_options: Sampling options by their names in the release before, which still work for this one.
        renamed_weights: Names in the state dict by those in older checkpoints.
    """

    family: ClassVar[str]
    config_class: ClassVar[type[GeneratorConfig]]
    renamed_options: ClassVar[Mapping[str, str]] = {}
    renamed_weights: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, family: str = "") -> None:
        super().__init_subclass__()
        if family:
            cls.family = family

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.about = About()
        self.source = ""  # where the weights came from, for file lists: a path, a zoo name or org/repo
        self.revision = ""  # which weights: sha256 of the file, or the Hub's commit
        self.folder: Path | None = None  # where the checkpoint's further files are

    @property
    def label_space(self) -> LabelSpace:
        """The labels this generator can be asked for."""
        return self.config.label_space

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @abstractmethod
    def _sample(self, label: Tensor | None, noise: NoiseSource, *args: Any, **options: Any) -> Tensor:
        """One batch of images, (B, C, H, W) in [-1, 1], from conditions (B,) or (B, K) and B random streams."""

    @classmethod
    def sampling_options(cls) -> dict[str, inspect.Parameter]:
        """The options of this family that `sample` takes beside its own arguments, with their types and defaults."""
        parameters = inspect.signature(cls._sample).parameters
        return {name: parameter for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}

    def check_options(self, options: Mapping[str, object]) -> None:
        """Refuse sampling options that this family does not have, or that are of another type or out of range.

        Raises:
            ValueError: Naming the option, and those there are or what it may be.
        """
        options = current_arguments(options, self.renamed_options)
        known = {name: str(option.annotation) for name, option in self.sampling_options().items()}
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(
                f"sampling option {', '.join(unknown)} is unknown to {self.family}; it has {', '.join(known)}"
            )
        for name, value in options.items():
            kinds = [_PLAIN_TYPES.get(part, object) for part in known[name].split(" | ")]
            if not any(isinstance(value, kind) for kind in kinds):
                raise ValueError(f"sampling option {name} is {value!r}; it is of type {known[name]}")
        self._check_values(**options)

    def _check_values(self, **options: Any) -> None:
        """Refuse values of options that are out of range whatever the images; for families to override.

        Runs begin with it, so that a mistake costs neither a progress bar nor, in training, the epochs before the first
        samples.

        Raises:
            ValueError: Naming the option and what it may be.
        """

    def _prepare(self, options: Mapping[str, Any], indices: range) -> dict[str, Any]:
        """Options as `_sample` takes them, for images with these numbers; what differs between them as `PerImage`.

        Raises:
            ValueError: If they do not fit this generator.
        """
        return dict(options)

    def masks_for(
        self, n: int, label: Label = None, *, seed: int = 0, first_index: int = 0, **options: Any
    ) -> Tensor | None:
        """The label maps (n, H, W) of the images that `sample` draws with the same arguments; None without maps."""
        return None

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
            label: What to show: a class or finding by name or number, one per image, or None for no condition; see
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
        if whole_number("n", n) < 1:
            raise ValueError(f"n is {n}; ask for at least one image")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; use at least 1")
        if first_index < 0:
            raise ValueError(f"first_index is {first_index}; images are numbered from 0")
        check_precision(precision)
        options = current_arguments(options, self.renamed_options)
        self.check_options(options)
        condition = self.label_space.resolve(label, n)
        prepared = self._prepare(options, range(first_index, first_index + n))
        seed = secrets.randbits(31) if seed is None else whole_number("seed", seed)
        device = self.device
        autocast = torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
        batches = []
        with evaluating(self), torch.inference_mode(), autocast:
            for start in range(0, n, batch_size):
                stop = min(start + batch_size, n)
                noise = NoiseSource(seed, range(first_index + start, first_index + stop), device)
                part = None if condition is None else condition[start:stop].to(device)
                parts = {
                    name: value.values[start:stop].to(device) if isinstance(value, PerImage) else value
                    for name, value in prepared.items()
                }
                images = self._sample(part, noise, **parts)
                batches.append(images.float().add(1).div(2).clamp(0, 1).cpu())
        return torch.cat(batches).clone()  # out of inference mode, so that users may train on it

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for old, new in self.renamed_weights.items():  # of a training run that began with an older medgen
            if prefix + old in state_dict:
                state_dict[prefix + new] = state_dict.pop(prefix + old)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        about: About | None = None,
        dtype: torch.dtype | None = None,
        extra_files: Mapping[str, str | bytes | Path] | None = None,
    ) -> Path:
        """Write ``config.json``, ``model.safetensors`` and a model card, whole or not at all.

        Args:
            folder: Folder of the checkpoint; made if missing.
            about: Data, licence, intended use and known failures; default: those the generator was loaded with.
            dtype: Store floating-point weights in this type to save space; loading always gives float32.
            extra_files: Further files by name, see `medgen.checkpoint.write_checkpoint`.

        Returns:
            The folder.
        """
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        return write_checkpoint(
            folder,
            family=self.family,
            config=self.config.to_dict(),
            state=state,
            about=about or self.about,
            dtype=dtype,
            extra_files=extra_files,
        )

    @staticmethod
    def from_pretrained(source: str | Path, *, revision: str | None = None) -> Generator:
        """Load a generator from a checkpoint folder or a Hub repository.

        Args:
            source: A folder with ``config.json`` and ``model.safetensors``, or ``org/repo`` on the Hub. A `Path` is
                always a folder.
            revision: Commit, tag or branch on the Hub.

        Returns:
            The generator in evaluation mode, on the CPU, in float32.

        Raises:
            FileNotFoundError: If there is no checkpoint at ``source``.
            ValueError: If a file is damaged, foreign or of a newer format, a weight is missing or left over, or a
                revision of a folder is asked for.
        """
        from medgen.families import family_class
        from medgen.hub import pull

        folder = Path(source)
        pulled = isinstance(source, str) and not folder.is_dir()
        if pulled:
            try:
                folder = pull(str(source), revision=revision)
            except (FileNotFoundError, ConnectionError) as error:  # a mistyped folder looks like a repository
                raise type(error)(f"{error}. There is no folder {source} here either") from error
        elif revision is not None:
            raise ValueError(f"revision is {revision!r}, but {source} is a folder, which has none; leave revision out")
        checkpoint = read_checkpoint(folder)
        family = family_class(checkpoint.family)
        with _SkipInitialisation():
            generator = family(family.config_class.from_dict(checkpoint.config))
        load_strictly(generator, checkpoint.state, where=str(folder), assign=True)
        generator.about = checkpoint.about
        generator.source = str(source)
        generator.folder = folder
        # A branch or tag moves on, so it does not say which weights these are; the Hub's cache names folders by commit.
        generator.revision = folder.name if pulled else checkpoint.files["model.safetensors"][:12]
        return generator.eval()

    def push_to_hub(self, repo: str, *, private: bool = False, message: str = "Upload medgen checkpoint") -> str:
        """Publish on the Hugging Face Hub.

        Args:
            repo: ``org/name``; made if it does not exist.
            private: Whether a new repository is private.
            message: Commit message.

        Returns:
            The commit's hash, to be used as ``org/name@hash``.
        """
        from medgen.hub import push

        return push(self, repo, private=private, message=message)


def check_precision(precision: str) -> None:
    """Refuse what is no `Precision`.

    Raises:
        ValueError: Naming those there are.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}; use {' or '.join(map(repr, get_args(Precision)))}")


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, where: str, assign: bool = False) -> None:
    """Load weights into a module; every name and shape must agree.

    Args:
        module: What to load into.
        state: The weights.
        where: What errors call their source.
        assign: Take the tensors as they are instead of copying them, which saves the time; only for a module that is
            new, since its device and what an optimizer holds of it are lost. A module without memory, on the device
            "meta", always takes them.

    Raises:
        ValueError: Naming the first few weights that are missing, left over or of another shape.
    """
    if isinstance(module, Generator):
        state = with_current_names(state, type(module))
    own = module.state_dict()
    problems = [
        *(f"{name} is missing" for name in own.keys() - state.keys()),
        *(f"{name} is not part of this model" for name in state.keys() - own.keys()),
        *(
            f"{name} is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
            for name in own.keys() & state.keys()
            if own[name].shape != state[name].shape
        ),
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        raise ValueError(
            f"weights of {where} do not fit {type(module).__name__} ({len(problems)} differences): {shown}"
        )
    empty = any(weight.is_meta for weight in own.values())
    module.load_state_dict(dict(state), strict=True, assign=assign or empty)


def with_current_names(state: Mapping[str, Tensor], kind: type[Generator]) -> dict[str, Tensor]:
    """The weights of a generator from any release, by the names they have now."""
    return {kind.renamed_weights.get(name, name): weight for name, weight in state.items()}


def current_arguments(given: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Arguments by their current names, with a `FutureWarning` for each that is given by its old name.

    Raises:
        ValueError: If an argument is given by both names.
    """
    found = dict(given)
    for old in [name for name in renamed if name in given]:
        new = renamed[old]
        if new in given:
            raise ValueError(f"{old} and {new} are given, but they are the same; leave out {old}, the old name")
        warnings.warn(f"{old} is now {new}; the old name goes with the next release", FutureWarning, stacklevel=3)
        found[new] = found.pop(old)
    return found


def renamed_arguments(**renamed: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Let a function take keyword arguments by their old names too, see `current_arguments`."""

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        @wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            return function(*args, **current_arguments(kwargs, renamed))

        return call

    return decorate


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}


class _SkipInitialisation(TorchFunctionMode):
    """Leaves out the random initialisation of weights that are about to be replaced; it costs more than loading."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
