"""The command line: ``medgen VERB ...``. Help and ``medgen list`` answer without importing torch."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import medgen
from medgen.families import FAMILIES

if TYPE_CHECKING:
    from medgen.checkpoint import About, CheckpointInfo
    from medgen.published import PublishedModel

_FAMILY_VERBS = {name: verb for family in FAMILIES.values() for name, verb in family.verbs.items()}
_VERBS_OF_FAMILIES = "".join(
    f"  {f'{name} {verb.arguments}':27}  {verb.help}\n" for name, verb in _FAMILY_VERBS.items()
)

USAGE = f"""\
usage: medgen VERB [arguments]

Generative models for 2-D medical images.

  list                         the checkpoints medgen knows by name
  info NAME                    what a checkpoint is, and its licence
  sample NAME -n N --out DIR   write synthetic images as PNG with a table; resumes if run again
  translate NAME FOLDER        show every image of a folder as one of another domain; --to DOMAIN --out DIR
{_VERBS_OF_FAMILIES}\
  evaluate NAME --data FILE    measure synthetic images against real ones
  study make | serve | score   let people tell synthetic images from real ones
  fit --config FILE            train from a recipe; --ckpt_path last goes on where it stopped
  validate, test               the loss of a trained recipe on the val or test split; --ckpt_path last
  convert CKPT DIR             turn an official or a training checkpoint into a medgen checkpoint
  push DIR ORG/NAME            publish a checkpoint folder on the Hugging Face Hub

medgen VERB --help shows the arguments of a verb; medgen --version the version.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if args[0] == "--version":
        print(medgen.__version__)
        return 0
    verb, rest = args[0], args[1:]
    if verb in ("fit", "validate", "test"):
        return _train(verb, rest)
    if verb not in VERBS:
        print(f"medgen: no verb {verb!r}; see medgen --help", file=sys.stderr)
        return 2
    try:
        VERBS[verb](rest)
    except _USER_ERRORS as error:
        return _fail(verb, error)
    except KeyboardInterrupt:
        return 130
    return 0


_USER_ERRORS = (ValueError, OSError, ImportError)


def _fail(verb: str, error: BaseException) -> int:
    """Say what was wrong in one line; returns the exit status."""
    print(f"medgen {verb}: {error}", file=sys.stderr)
    return 1


def _parser(verb: str, about: str) -> Any:
    from jsonargparse import ArgumentParser

    return ArgumentParser(prog=f"medgen {verb}", description=about)


def _list(args: Sequence[str]) -> None:
    from medgen.zoo import ZOO

    _parser("list", "Show the checkpoints medgen knows by name.").parse_args(args)
    width = max(map(len, ZOO))
    for name, entry in ZOO.items():
        where = "bundled" if entry.where == "bundled" else "download"
        print(f"{name:{width}}  {where:8}  {entry.description}")


def _checkpoint_info(name: str) -> CheckpointInfo:
    """The description of a bundled checkpoint or of one in a folder."""
    from medgen.checkpoint import read_info
    from medgen.zoo import ZOO, bundled_folder

    entry = ZOO.get(name)
    if not entry and not Path(name).is_dir():
        raise ValueError(f"no checkpoint {name!r}: it is neither one of {', '.join(ZOO)} nor a folder")
    return read_info(bundled_folder(name) if entry else Path(name))


def _info(args: Sequence[str]) -> None:
    from medgen.zoo import ZOO

    parser = _parser("info", "Show what a checkpoint is.")
    parser.add_argument("name", help="a name of medgen list, or a checkpoint folder")
    name = parser.parse_args(args).name
    entry = ZOO.get(name)
    if entry and entry.where != "bundled":
        print(f"{name}: {entry.description}\nfamily: {entry.family}\nlicence: {entry.licence}\nsource: {entry.where}")
        return
    info = _checkpoint_info(name)
    about = info.about
    print(f"{about.title or name}\nfamily: {info.family}\nlicence: {about.licence}\ndata: {about.data}")
    print(f"intended use: {about.intended_use}")
    for failure in about.known_failures:
        print(f"known failure: {failure}")
    print(json.dumps(info.config, indent=2))


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


_SAMPLE_ARGUMENTS = {"n", "label", "seed", "out", "batch_size", "precision", "device", "grid", "quiet", "help"}


def _sample(args: Sequence[str]) -> None:
    parser = _parser(
        "sample",
        "Write synthetic images. Options of the family, such as --steps 50, come through as they are; "
        "medgen sample NAME --help lists them.",
    )
    parser.add_argument("name", help="a name of medgen list, a checkpoint folder, or org/repo[@revision]")
    parser.add_argument("-n", "--n", type=int, default=16, help="number of images")
    parser.add_argument(
        "--label", type=str | None, default=None, help="class or finding; several, with commas, take turns"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the run")
    parser.add_argument("--out", type=str, required=True, help="folder to write to")
    parser.add_argument("--batch_size", type=int, default=16, help="images drawn together")
    parser.add_argument("--precision", type=str, default="float32", help="float32 or bf16")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, mps; default: the best there is")
    parser.add_argument("--grid", type=bool, default=False, help="also write grid.png, all images with their labels")
    parser.add_argument("--quiet", type=bool, default=False, help="no progress bar")
    own, options = split_options(args, _SAMPLE_ARGUMENTS)
    if {"-h", "--help"} & set(own) and not own[0].startswith("-"):
        parser.epilog = _options_help(own[0])
    cfg = parser.parse_args(own)

    from medgen.loading import load_generator
    from medgen.run_folder import write_grid
    from medgen.sampling import SamplingRun, sample_to_folder

    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    generator = load_generator(cfg.name)
    move_to_device(generator, cfg.device)
    labels = tuple(part.strip() for part in cfg.label.split(",")) if cfg.label else ()
    run = SamplingRun(seed=cfg.seed, labels=labels, precision=cfg.precision, options=options)
    table = sample_to_folder(
        generator,
        cfg.n,
        cfg.out,
        run,
        batch_size=cfg.batch_size,
        rank=rank,
        world_size=world_size,
        progress=not cfg.quiet,
    )
    if cfg.grid and table.exists():
        write_grid(table)
    if rank == 0 and not cfg.quiet:
        print(f"{cfg.n} images in {cfg.out}")


def _options_help(name: str) -> str:
    """What can be asked of the family of a checkpoint, beside the arguments of every family."""
    from medgen.families import family_class
    from medgen.generator import Generator
    from medgen.zoo import ZOO

    family = family_class(ZOO[name].family if name in ZOO else _checkpoint_info(name).family)
    if not issubclass(family, Generator):
        return f"{family.family} models translate images: see medgen translate --help"
    options = [f"--{o.name} ({o.annotation}, default: {o.default})" for o in family.sampling_options().values()]
    return f"options of {family.family}: {', '.join(options)}"


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


def _convert(args: Sequence[str]) -> None:
    parser = _parser("convert", "Turn an official file or a training checkpoint into a medgen checkpoint folder.")
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
    parser.add_argument("--label_names", type=str, nargs="+", default=[], help="classes, likewise")
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


def _push(args: Sequence[str]) -> None:
    parser = _parser("push", "Publish a checkpoint on the Hugging Face Hub.")
    parser.add_argument("folder", help="a checkpoint folder, such as published/ of a training run")
    parser.add_argument("repo", help="org/name")
    parser.add_argument("--private", type=bool, default=False, help="make a new repository private")
    cfg = parser.parse_args(args)
    from medgen.hub import push

    print(f"{cfg.repo}@{push(cfg.folder, cfg.repo, private=cfg.private)}")


def _evaluate(args: Sequence[str]) -> None:
    from medgen.evaluation.command import main as evaluate

    evaluate(args)


def _translate(args: Sequence[str]) -> None:
    from medgen.commands.translate import main as translate

    translate(args)


def _study(args: Sequence[str]) -> None:
    from medgen.evaluation.study.command import main as study

    study(args)


def _train(verb: str, args: Sequence[str]) -> int:
    from medgen.training.recipes import run

    try:
        run(verb, args)
    except ArgumentError as error:
        print(f"medgen {verb}: {error}\n`medgen {verb} --help` lists all arguments", file=sys.stderr)
        return 2
    except _USER_ERRORS as error:
        refusal = _refusal(error)
        if refusal is None:
            raise  # gone wrong deep in another library: the trace is needed
        return _fail(verb, refusal)
    return 0


def _refusal(error: BaseException | None) -> BaseException | None:
    """The error with which medgen itself refused something; what builds the parts of a recipe wraps it in its own."""
    while error is not None:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        where = Path(frame.tb_frame.f_code.co_filename) if frame else Path()
        if isinstance(error, _USER_ERRORS) and where.is_relative_to(Path(medgen.__file__).parent):
            return error
        error = error.__cause__ or error.__context__
    return None


StorageType = Literal["float32", "float16", "bfloat16"]

VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "list": _list,
    "info": _info,
    "sample": _sample,
    "translate": _translate,
    **_FAMILY_VERBS,
    "evaluate": _evaluate,
    "study": _study,
    "convert": _convert,
    "push": _push,
}
