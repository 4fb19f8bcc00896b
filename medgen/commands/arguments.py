"""Arguments shared by several verbs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medgen.published import PublishedModel


def parser_of(verb: str, about: str) -> Any:
    """Make the parser of a verb."""
    from jsonargparse import ArgumentParser

    return ArgumentParser(prog=f"medgen {verb}", description=about)


def add_device(parser: Any) -> None:
    """Add the argument of `move_to_device`."""
    parser.add_argument("--device", type=str | None, help="cpu, cuda, mps; default: the best there is")


def add_run_arguments(parser: Any, *, batch: str, grid: str) -> None:
    """Add the arguments of a run that writes images to a folder, with help on batch size and grid."""
    parser.add_argument("--out", type=str, required=True, help="folder to write to")
    parser.add_argument("--batch_size", type=int, default=16, help=batch)
    parser.add_argument("--precision", type=str, default="float32", help="float32 or bf16")
    add_device(parser)
    parser.add_argument("--grid", type=bool, default=False, help=grid)
    parser.add_argument("--quiet", type=bool, default=False, help="no progress bar")


def run_options(cfg: Any) -> dict[str, Any]:
    """Collect the arguments of such a run that functions share."""
    rank, world_size = process()
    return {"batch_size": cfg.batch_size, "rank": rank, "world_size": world_size, "progress": not cfg.quiet}


def finish_run(cfg: Any, table: Path, message: str) -> None:
    """Write the grid of a run, if it is asked for, and print a message."""
    from medgen.run_folder import write_grid

    if cfg.grid and table.exists():
        write_grid(table)
    if process()[0] == 0 and not cfg.quiet:
        print(message)


def split_options(args: Sequence[str], known: set[str]) -> tuple[list[str], dict[str, Any]]:
    """Split ``--steps 50 --out d`` into the verb's own arguments and the family's sampling options."""
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
    """Move a model to a device, by default the best one, or the GPU of this process among several.

    Raises:
        ValueError: If the device is missing.
    """
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises the latter
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def process() -> tuple[int, int]:
    """Get the number of this process and the number of all, as torchrun sets them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
