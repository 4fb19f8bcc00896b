"""The verb ``medgen sample``."""

from __future__ import annotations

from collections.abc import Sequence

from medgen.commands.arguments import (
    add_run_arguments,
    finish_run,
    move_to_device,
    parser_of,
    run_options,
    split_options,
)
from medgen.commands.info import checkpoint_info

_SAMPLE_ARGUMENTS = {"n", "label", "seed", "out", "batch_size", "precision", "device", "grid", "quiet", "help"}


def main(args: Sequence[str]) -> None:
    """Run ``medgen sample`` with its arguments."""
    parser = parser_of(
        "sample",
        "Write synthetic images. Options of the family, such as --steps 50, come through as they are; "
        "medgen sample NAME --help lists them.",
    )
    parser.add_argument("name", help="a name of medgen list, a checkpoint folder, or org/repo[@revision]")
    parser.add_argument("-n", "--n", type=int, default=16, help="number of images")
    parser.add_argument("--label", type=str | None, help="class or finding; several, with commas, take turns")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run")
    grid = "also write grid.png, all images with their labels"
    add_run_arguments(parser, batch="images drawn together", grid=grid)
    own, options = split_options(args, _SAMPLE_ARGUMENTS)
    if {"-h", "--help"} & set(own) and not own[0].startswith("-"):
        parser.epilog = _options_help(own[0])
    cfg = parser.parse_args(own)

    from medgen.loading import load_generator
    from medgen.sampling import SamplingRun, sample_to_folder

    generator = load_generator(cfg.name)
    move_to_device(generator, cfg.device)
    labels = tuple(part.strip() for part in cfg.label.split(",")) if cfg.label else ()
    run = SamplingRun(seed=cfg.seed, labels=labels, precision=cfg.precision, options=options)
    table = sample_to_folder(generator, cfg.n, cfg.out, run, **run_options(cfg))
    finish_run(cfg, table, f"{cfg.n} images in {cfg.out}")


def _options_help(name: str) -> str:
    """List the sampling options of the family of a checkpoint."""
    from medgen.families import family_class
    from medgen.generator import Generator
    from medgen.zoo import ZOO

    family = family_class(ZOO[name].family if name in ZOO else checkpoint_info(name).family)
    if not issubclass(family, Generator):
        return f"{family.family} models translate images: see medgen translate --help"
    options = [f"--{o.name} ({o.annotation}, default: {o.default})" for o in family.sampling_options().values()]
    return f"options of {family.family}: {', '.join(options)}"
