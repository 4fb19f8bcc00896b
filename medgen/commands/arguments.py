"""Arguments that several verbs share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medgen.published import PublishedModel


def parser_of(verb: str, about: str) -> Any:
    """The parser of a verb."""
    from jsonargparse import ArgumentParser

    return ArgumentParser(prog=f"medgen {verb}", description=about)


def split_options(args: Sequence[str], known: set[str]) -> tuple[list[str], dict[str, Any]]:
    """Divide ``--steps 50 --out d`` into the verb's own arguments and the family's sampling options."""
    from jsonargparse import ArgumentParser

    own: list[str] = []
    options: dict[str, Any] = {}
    items = iter(args)
    for item in items:
        name, equals, value = item.partition("=")
        if not name.startswith("--") or name[2:].split(".")[0] in known:
            own.append(item)
            continue
        options[name[2:].replace("-", "_")] = value if equals else next(items, "true")
    values = ArgumentParser()
    for name in options:
        values.add_argument(f"--{name}", type=Any)
    parsed = values.parse_args([f"--{name}={value}" for name, value in options.items()])
    return own, {name: parsed[name] for name in options}


def move_to_device(model: PublishedModel, device: str | None) -> None:
    """Move a model to a device, by default the best there is: of several GPUs that of this process.

    Raises:
        ValueError: If there is no such device here.
    """
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def process() -> tuple[int, int]:
    """Number of this process and of all, as torchrun tells them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
