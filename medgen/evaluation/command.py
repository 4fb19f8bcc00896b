"""The verb ``medgen evaluate``: how synthetic images compare with real ones, as JSON, CSV and PNG."""

from __future__ import annotations

from collections.abc import Sequence

_ARGUMENTS = {
    *("source", "data", "out", "metrics", "n", "split", "seed", "network", "weights", "batch_size", "device", "help"),
}


def main(args: Sequence[str]) -> None:
    """Run ``medgen evaluate`` with its arguments."""
    from jsonargparse import ArgumentParser

    from medgen.cli import split_options
    from medgen.data.base import ImageDataModule
    from medgen.evaluation.report import report

    parser = ArgumentParser(
        prog="medgen evaluate",
        description="Measure synthetic images against real ones. Sampling options, such as --steps 50, come through.",
    )
    parser.add_argument("source", type=str, help="a name of medgen list, a checkpoint folder, or a folder of images")
    parser.add_subclass_arguments(ImageDataModule, "data", required=True, help="YAML file of the data, or its class")
    parser.add_argument("--out", type=str, required=True, help="folder for metrics.json, metrics.csv and pictures")
    parser.add_argument("--metrics", type=str, nargs="+", default=None, help="by default all that the data allow")
    parser.add_argument("--n", type=int | None, default=None, help="generated images; by default as many as real ones")
    parser.add_argument("--split", type=str, default="test", help="real images: train, val, test, or val+test")
    parser.add_argument("--seed", type=int, default=0, help="seed of the generated images")
    parser.add_argument("--network", type=str, default="efficientnet_lite0", help="feature network, or timm:NAME")
    parser.add_argument("--weights", type=str | None, default=None, help="weights file of a timm network")
    parser.add_argument("--batch_size", type=int, default=16, help="images drawn and seen together")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, mps; default: the best there is")
    own, options = split_options(args, _ARGUMENTS)
    cfg = parser.parse_args(own)
    datamodule = parser.instantiate(cfg).data
    scores = report(
        cfg.source,
        datamodule,
        cfg.out,
        cfg.metrics,
        n=cfg.n,
        split=cfg.split,
        seed=cfg.seed,
        network=cfg.network,
        weights=cfg.weights,
        batch_size=cfg.batch_size,
        device=cfg.device,
        **options,
    )
    for item in scores:
        sets = f"{item.generated} ({item.n_generated}) : {item.real} ({item.n_real})"
        interval = "" if item.low is None else f" [{item.low:.3f}, {item.high:.3f}]"
        print(f"{sets}  {item.name} {item.value:.4g}{interval}")
