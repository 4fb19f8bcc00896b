"""The verb ``medgen convert``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medgen.commands.arguments import parser_of
from medgen.families import FAMILIES

if TYPE_CHECKING:
    from medgen.checkpoint import About

StorageType = Literal["float32", "float16", "bfloat16"]


def main(args: Sequence[str]) -> None:
    """Run ``medgen convert`` with its arguments."""
    parser = parser_of("convert", "Turn an official file or a training checkpoint into a medgen checkpoint folder.")
    official = {family.title: family.official for family in FAMILIES.values() if family.official}
    kinds = ", ".join(files.expects for files in official.values())
    parser.add_argument("checkpoint", help=f"{kinds}, or a checkpoint of medgen fit (.ckpt)")
    parser.add_argument("out", help="folder to write")
    options: dict[str, list[tuple[str, dataclasses.Field[Any]]]] = {}
    for title, files in official.items():
        for option in files.fields():
            options.setdefault(option.name, []).append((f"of an official {title}: {option.metadata['help']}", option))
    for name, meanings in options.items():
        (_, option), text = meanings[0], "; ".join(meaning for meaning, _ in meanings)
        names = [name, *(old for files in official.values() for old, new in files.renamed.items() if new == name)]
        parser.add_argument(*(f"--{n}" for n in names), type=option.type, default=option.default, help=text)
    parser.add_argument("--image_size", type=int, nargs=2, help="height and width, for files that do not state them")
    parser.add_argument("--label_names", type=str, nargs="+", default=[], help="classes, for the same files")
    parser.add_argument("--about", type=str | None, help="YAML file with the fields of medgen.checkpoint.About")
    parser.add_argument("--dtype", type=StorageType, default="float32", help="how weights are stored")
    parser.add_argument(
        "--files", type=str, nargs="+", default=[], help="more files to put beside, such as metrics.json"
    )
    cfg = parser.parse_args(args)
    import torch

    from medgen.foreign.convert import convert

    folder = convert(
        cfg.checkpoint,
        cfg.out,
        image_size=tuple(cfg.image_size) if cfg.image_size else None,
        label_names=cfg.label_names,
        about=_read_about(cfg.about) if cfg.about else None,
        dtype=getattr(torch, cfg.dtype),
        extra_files={Path(name).name: Path(name) for name in cfg.files},
        **{name: cfg[name] for name in options},
    )
    print(folder)


def _read_about(path: str) -> About:
    import yaml

    from medgen.checkpoint import About

    fields = ", ".join(field.name for field in dataclasses.fields(About))
    try:
        return About(**yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except (TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"--about {path} is not a YAML file of {fields}: {error}") from error
