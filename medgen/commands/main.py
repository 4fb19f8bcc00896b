"""The command line: ``medgen VERB ...``. Help and ``medgen list`` answer without importing torch."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from pathlib import Path

import medgen
from medgen.families import FAMILIES
from medgen.families.family import Verb


def _verb(run: str, arguments: str, about: str) -> Verb:
    return Verb(arguments=arguments, help=about, run=f"medgen.commands.{run}")


VERBS: Mapping[str, Verb] = {
    "list": _verb("info:show_list", "", "the checkpoints medgen knows by name"),
    "info": _verb("info:show_info", "NAME", "what a checkpoint is, and its licence"),
    "sample": _verb(
        "sample:main", "NAME -n N --out DIR", "write synthetic images as PNG with a table; resumes if run again"
    ),
    "translate": _verb(
        "translate:main", "NAME FOLDER", "translate the images of a folder to another domain; --to DOMAIN --out DIR"
    ),
    **{name: verb for family in FAMILIES.values() for name, verb in family.verbs.items()},
    "evaluate": _verb("evaluate:main", "NAME --data FILE", "measure synthetic images against real ones"),
    "study": _verb("study:main", "make | serve | score", "let people tell synthetic images from real ones"),
    "convert": _verb("convert:main", "CKPT DIR", "turn an official or a training checkpoint into a medgen checkpoint"),
    "push": _verb("push:main", "DIR ORG/NAME", "publish a checkpoint folder on the Hugging Face Hub"),
}
_LINES = {f"{name} {verb.arguments}": verb.help for name, verb in VERBS.items()} | {
    "fit --config FILE": "train from a recipe; --ckpt_path last goes on where it stopped",
    "validate, test": "the loss of a trained recipe on the val or test split; --ckpt_path last",
}
USAGE = f"""\
usage: medgen VERB [arguments]

Generative models for 2-D medical images.

{"".join(f"  {left:27}  {right}{chr(10)}" for left, right in _LINES.items())}
medgen VERB --help shows the arguments of a verb; medgen --version the version.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb, and return the exit status."""
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
    """Print an error in one line, and return the exit status."""
    print(f"medgen {verb}: {error}", file=sys.stderr)
    return 1


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
            raise  # an error of another library needs its traceback
        return _fail(verb, refusal)
    return 0


def _refusal(error: BaseException | None) -> BaseException | None:
    """Find an error that medgen itself raised; the parser of recipes wraps it in its own."""
    while error is not None:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        where = Path(frame.tb_frame.f_code.co_filename) if frame else Path()
        if isinstance(error, _USER_ERRORS) and where.is_relative_to(Path(medgen.__file__).parent):
            return error
        error = error.__cause__ or error.__context__
    return None
