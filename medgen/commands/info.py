"""The verbs ``medgen list`` and ``medgen info``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medgen.commands.arguments import parser_of

if TYPE_CHECKING:
    from medgen.checkpoint import CheckpointInfo


def show_list(args: Sequence[str]) -> None:
    """Run ``medgen list``."""
    from medgen.zoo import ZOO

    parser_of("list", "Show the checkpoints medgen knows by name.").parse_args(args)
    width = max(map(len, ZOO))
    for name, entry in ZOO.items():
        where = "bundled" if entry.where == "bundled" else "download"
        print(f"{name:{width}}  {where:8}  {entry.description}")


def checkpoint_info(name: str) -> CheckpointInfo:
    """Read the description of a bundled checkpoint or of one in a folder."""
    from medgen.checkpoint import read_info
    from medgen.zoo import ZOO, bundled_folder

    entry = ZOO.get(name)
    if not entry and not Path(name).is_dir():
        raise ValueError(f"no checkpoint {name!r}: it is neither one of {', '.join(ZOO)} nor a folder")
    return read_info(bundled_folder(name) if entry else Path(name))


def show_info(args: Sequence[str]) -> None:
    """Run ``medgen info``."""
    from medgen.zoo import ZOO

    parser = parser_of("info", "Show what a checkpoint is.")
    parser.add_argument("name", help="a name of medgen list, or a checkpoint folder")
    name = parser.parse_args(args).name
    entry = ZOO.get(name)
    if entry and entry.where != "bundled":
        print(f"{name}: {entry.description}\nfamily: {entry.family}\nlicence: {entry.licence}\nsource: {entry.where}")
        return
    info = checkpoint_info(name)
    about = info.about
    print(f"{about.title or name}\nfamily: {info.family}\nlicence: {about.licence}\ndata: {about.data}")
    print(f"intended use: {about.intended_use}")
    for failure in about.known_failures:
        print(f"known failure: {failure}")
    print(json.dumps(info.config, indent=2))
