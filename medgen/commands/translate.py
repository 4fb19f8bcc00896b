"""The verb ``medgen translate``: every image of a folder shown as one of another domain."""

from __future__ import annotations

from collections.abc import Sequence

from medgen.commands.arguments import move_to_device, parser_of, process


def main(args: Sequence[str]) -> None:
    """Run ``medgen translate`` with its arguments."""
    parser = parser_of("translate", "Show every image of a folder as one of another domain; resumes if run again.")
    parser.add_argument("model", help="a checkpoint folder, or org/repo[@revision]")
    parser.add_argument("folder", help="folder or zip archive of PNG, JPEG, TIFF or DICOM files")
    parser.add_argument("--to", type=str, required=True, help="domain to translate to; medgen info MODEL names them")
    parser.add_argument("--out", type=str, required=True, help="folder to write to")
    parser.add_argument("--resize", type=str, default="crop", help="images of another shape: crop, pad or stretch")
    parser.add_argument("--batch_size", type=int, default=16, help="images translated together")
    parser.add_argument("--precision", type=str, default="float32", help="float32 or bf16")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, mps; default: the best there is")
    parser.add_argument("--grid", type=bool, default=False, help="also write grid.png, all images")
    parser.add_argument("--quiet", type=bool, default=False, help="no progress bar")
    cfg = parser.parse_args(list(args))

    from medgen.loading import load_translator
    from medgen.run_folder import write_grid
    from medgen.translation import translate_folder

    rank, world_size = process()
    translator = load_translator(cfg.model)
    move_to_device(translator, cfg.device)
    table = translate_folder(
        translator,
        cfg.folder,
        cfg.to,
        cfg.out,
        resize=cfg.resize,
        batch_size=cfg.batch_size,
        precision=cfg.precision,
        rank=rank,
        world_size=world_size,
        progress=not cfg.quiet,
    )
    if cfg.grid and table.exists():
        write_grid(table)
    if rank == 0 and not cfg.quiet:
        print(f"translated images in {cfg.out}")
