"""The verb ``medgen evaluate``: compare synthetic with real images in a report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from medgen.commands.arguments import add_device, parser_of, split_options

_SETTINGS = (
    *("n", "split", "seed", "network", "weights", "batch_size", "device", "recipe", "folds", "seeds", "hide"),
    "patients",
)
_ARGUMENTS = {"sources", "data", "out", "metrics", "segmenter", "help", *_SETTINGS}


def main(args: Sequence[str]) -> None:
    """Run ``medgen evaluate`` with its arguments."""
    from medgen.data.base import ImageDataModule
    from medgen.evaluation.judges.segmentation import SegmenterRecipe
    from medgen.evaluation.report.report import report

    parser = parser_of(
        "evaluate",
        "Measure synthetic images against real ones. Sampling options, such as --steps 50, are passed to the model.",
    )
    sources = "names of medgen list, checkpoint folders, or folders of images"
    parser.add_argument("sources", type=str, nargs="+", help=sources)
    parser.add_subclass_arguments(ImageDataModule, "data", required=True, help="YAML file of the data, or its class")
    out = "folder for index.html, metrics.json, metrics.csv and pictures"
    parser.add_argument("--out", type=str, required=True, help=out)
    metrics = "metrics and checks; by default all that the data allow"
    parser.add_argument("--metrics", type=str, nargs="+", help=metrics)
    parser.add_argument("--n", type=int | None, help="generated images; by default as many as real ones")
    parser.add_argument("--split", type=str, default="test", help="real images: train, val, test, or val+test")
    parser.add_argument("--seed", type=int, default=0, help="seed of the generated images")
    parser.add_argument("--network", type=str, default="efficientnet_lite0", help="or inception, timm:NAME, xrv:NAME")
    parser.add_argument("--weights", type=str | None, help="weights file of such a network")
    parser.add_argument("--batch_size", type=int, default=16, help="images drawn and evaluated together")
    parser.add_argument("--recipe", type=str, default="small", help="classifiers of utility and bias")
    parser.add_argument("--folds", type=int, default=8, help="their repetitions, each without a part of the patients")
    parser.add_argument("--seeds", type=int, default=1, help="repetitions of each fold")
    parser.add_argument(
        "--hide",
        type=list[tuple[float, float, float, float]],
        default=[],
        help="boxes that bias hides: [[left, top, right, bottom], ...], shares of width and height; default: borders",
    )
    segmenter = "network of consistency, such as --segmenter.steps 1000, or a YAML file"
    parser.add_argument("--segmenter", type=SegmenterRecipe | None, help=segmenter)
    patients = "false leaves out pictures of real images, for a report to be shared"
    parser.add_argument("--patients", type=bool, default=True, help=patients)
    add_device(parser)
    own, options = split_options(args, _ARGUMENTS)
    cfg = parser.parse_args(own)
    objects = parser.instantiate(cfg)
    scores = report(
        cfg.sources,
        objects.data,
        cfg.out,
        cfg.metrics,
        segmenter=objects.segmenter,
        command=shlex.join(["medgen", "evaluate", *args]),
        **{name: cfg[name] for name in _SETTINGS},
        **options,
    )
    for item in scores:
        sets = f"{item.generated} ({item.n_generated}) : {item.real} ({item.n_real})"
        interval = "" if item.low is None else f" [{item.low:.4g}, {item.high:.4g}]"
        print(f"{sets}  {item.name} {item.value:.4g}{interval}")
