"""The verb ``medgen push``."""

from __future__ import annotations

from collections.abc import Sequence

from medgen.commands.arguments import parser_of


def main(args: Sequence[str]) -> None:
    """Run ``medgen push`` with its arguments."""
    parser = parser_of("push", "Publish a checkpoint on the Hugging Face Hub.")
    parser.add_argument("folder", help="a checkpoint folder, such as published/ of a training run")
    parser.add_argument("repo", help="org/name")
    parser.add_argument("--private", type=bool, default=False, help="make a new repository private")
    cfg = parser.parse_args(args)
    from medgen.hub import push

    print(f"{cfg.repo}@{push(cfg.folder, cfg.repo, private=cfg.private)}")
