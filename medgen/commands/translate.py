"""The verb ``medgen translate``: translate the images of a folder to another domain."""

from __future__ import annotations

from collections.abc import Sequence

from medgen.commands.arguments import add_run_arguments, finish_run, move_to_device, parser_of, run_options


def main(args: Sequence[str]) -> None:
    """Run ``medgen translate`` with its arguments."""
    parser = parser_of("translate", "Show every image of a folder as one of another domain; resumes if run again.")
    parser.add_argument("model", help="a checkpoint folder, or org/repo[@revision]")
    parser.add_argument("folder", help="folder or zip archive of PNG, JPEG, TIFF or DICOM files")
    parser.add_argument("--to", type=str, required=True, help="domain to translate to; medgen info MODEL names them")
    parser.add_argument("--resize", type=str, default="crop", help="images of another shape: crop, pad or stretch")
    add_run_arguments(parser, batch="images translated together", grid="also write grid.png, all images")
    cfg = parser.parse_args(list(args))

    from medgen.loading import load_translator
    from medgen.translation import translate_folder

    translator = load_translator(cfg.model)
    move_to_device(translator, cfg.device)
    table = translate_folder(
        translator,
        cfg.folder,
        cfg.to,
        cfg.out,
        resize=cfg.resize,
        precision=cfg.precision,
        **run_options(cfg),
    )
    finish_run(cfg, table, f"translated images in {cfg.out}")
