"""The verb ``medgen study``: make, serve and score a reader study."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from medgen.commands.arguments import parser_of, split_options
from medgen.evaluation.study.design import DESIGNS, IMAGES_PER_TRIAL, Candidates, check_plan, make_study

USAGE = """\
usage: medgen study make SOURCE --data FILE --out DIR   draw a blinded study of real and synthetic images
       medgen study serve DIR                           let readers answer it in a browser on this machine
       medgen study score DIR                           who could tell them apart, with intervals

medgen study make --help shows the arguments of a step.
"""


def main(args: Sequence[str]) -> None:
    """Run one step with its arguments."""
    steps = {"make": _make, "serve": _serve, "score": _score}
    if not args or args[0] not in steps:
        helped = bool(args) and args[0] in ("-h", "--help")
        print(USAGE, end="", file=sys.stdout if helped else sys.stderr)
        raise SystemExit(0 if helped else 2)
    steps[args[0]](args[1:])


def _make(args: Sequence[str]) -> None:
    from medgen.data.base import ImageDataModule
    from medgen.evaluation.run import check_size, opened
    from medgen.evaluation.sets import RealImages, StoredImages, open_source
    from medgen.generator import Generator

    parser = parser_of("study make", "Draw a blinded study of real and synthetic images.")
    parser.add_argument("source", type=str, help="a name of medgen list, a checkpoint folder, or a folder of images")
    parser.add_subclass_arguments(ImageDataModule, "data", required=True, help="YAML file of the data, or its class")
    parser.add_argument("--out", type=str, required=True, help="folder to write")
    parser.add_argument("--design", type=str, default="single", help=", ".join(DESIGNS))
    parser.add_argument("--trials", type=int, default=40, help="number of questions")
    parser.add_argument("--split", type=str, default="test", help="real images: train, val, test, or val+test")
    parser.add_argument("--n", type=int | None, help="synthetic images to draw from")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images")
    known = {"source", "data", "out", "design", "trials", "split", "n", "seed", "help"}
    own, options = split_options(args, known)
    cfg = parser.parse_args(own)
    check_plan(cfg.out, cfg.design, cfg.trials)
    datamodule = parser.instantiate(cfg).data
    real = RealImages(datamodule, cfg.split)
    source, n = open_source(cfg.source, channels=datamodule.channels), cfg.n
    if n is None and isinstance(source, Generator) and cfg.design in IMAGES_PER_TRIAL:
        n = min(len(real), cfg.trials * IMAGES_PER_TRIAL[cfg.design])  # twice what is shown: classes are to be even
    found = opened(source, datamodule, real, n=n, seed=cfg.seed, options=options)
    single = datamodule.label_space.kind == "single"
    with tempfile.TemporaryDirectory(prefix="medgen-study-") as temporary:
        check = partial(check_size, datamodule=datamodule, name=found.name)
        drawn = StoredImages(found.images, found.n, Path(temporary) / "images.raw", check=check)
        folder = make_study(
            Candidates(images=real, labels=real.labels if single else None, origin=cfg.split),
            Candidates(images=drawn, labels=found.labels if single else None, origin=found.name),
            cfg.out,
            design=cfg.design,
            trials=cfg.trials,
            seed=cfg.seed,
        )
    print(f"{folder}: {cfg.trials} questions; next: medgen study serve {folder}")


def _serve(args: Sequence[str]) -> None:
    from medgen.evaluation.study.server import make_server

    parser = parser_of("study serve", "Let readers answer a study in a browser.")
    parser.add_argument("folder", type=str, help="what medgen study make wrote")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="0.0.0.0 lets other machines of the network in")
    cfg = parser.parse_args(args)
    if not 0 <= cfg.port < 2**16:
        raise ValueError(f"port is {cfg.port}; use one from 1 to 65535, or 0 for a free one")
    with make_server(cfg.folder, host=cfg.host, port=cfg.port) as server:
        print(f"http://{cfg.host}:{server.server_address[1]}/ until Ctrl+C", flush=True)
        server.serve_forever()


def _score(args: Sequence[str]) -> None:
    from medgen.evaluation.study.scoring import score_study

    parser = parser_of("study score", "Measure who could tell real from synthetic images.")
    parser.add_argument("folder", type=str, help="what medgen study make wrote")
    cfg = parser.parse_args(args)
    score = score_study(cfg.folder)
    (Path(cfg.folder) / "score.json").write_text(
        json.dumps(_without_nan(dataclasses.asdict(score)), indent=2, allow_nan=False) + "\n"
    )
    for reader in score.readers:
        print(
            f"{reader.reader}: {reader.answered} answered, {reader.fake_identification_rate.value:.2f} of synthetic "
            f"images identified, {reader.error_rate.value:.2f} of all wrong, {reader.seconds:.1f} s each"
            + (f", threshold {reader.threshold:.0f} ms" if reader.threshold is not None else "")
        )
    for name, interval in (
        ("fake identification rate", score.fake_identification_rate),
        ("error rate (HYPE-infinity)" if score.design != "timed" else "error rate", score.error_rate),
    ):
        print(f"{name} {interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
    print(f"agreement (Fleiss' kappa) {score.agreement:.2f}")


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity by null for JSON."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
