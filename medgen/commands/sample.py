"""The verb ``medgen sample``."""

from __future__ import annotations

from collections.abc import Sequence

from medgen.commands.arguments import move_to_device, parser_of, process, split_options
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

    rank, world_size = process()
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

    family = family_class(ZOO[name].family if name in ZOO else checkpoint_info(name).family)
    if not issubclass(family, Generator):
        return f"{family.family} models translate images: see medgen translate --help"
    options = [f"--{o.name} ({o.annotation}, default: {o.default})" for o in family.sampling_options().values()]
    return f"options of {family.family}: {', '.join(options)}"
