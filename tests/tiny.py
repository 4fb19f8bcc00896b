"""Tiny data, recipes and models: 16 pixels, 8 channels, 10 steps, no images of real patients."""

import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from medgen.cli import main
from medgen.config import Config
from medgen.data import TableDataModule
from medgen.families.medfusion.generator import MedfusionConfig, MedfusionGenerator
from medgen.generator import GeneratorConfig
from tests.data.fakes import write_table

Module = TypeVar("Module", bound=nn.Module)
AnyConfig = TypeVar("AnyConfig", bound=Config)

MODULES = "medgen.families.medfusion.modules"
AUTOENCODER, DIFFUSION = f"{MODULES}.AutoencoderModule", f"{MODULES}.LatentDiffusionModule"

NAMES: dict[Any, tuple[str, ...]] = {
    "single": ("healthy", "ill"),
    "multi": ("edema", "effusion"),
    "continuous": ("age",),
    "none": (),
}
CONFIG = replace(MedfusionConfig.tiny(), label_names=NAMES["single"])
CONFIGS = {kind: replace(CONFIG, label_kind=kind, label_names=names) for kind, names in NAMES.items()}
LABELS: dict[str, dict[str, Any]] = {
    "single": {"label_column": "label", "label_names": ["healthy", "ill"]},
    "multi": {"label_column": ["edema", "effusion"]},
    "continuous": {"label_column": ["age"], "label_kind": "continuous"},
    "none": {},
}
_SCHEDULE = {"lr": 1e-3, "lr_shape": "cosine", "warmup": 3}
FIRST_STAGE = {"perceptual": None, "discriminator_channels": [8, 8], "adversarial_start": 4, **_SCHEDULE}
SECOND_STAGE = {"ema_decay": 0.9, **_SCHEDULE}
TRAINER = {
    "accelerator": os.environ.get("MEDGEN_TEST_ACCELERATOR", "cpu"),
    "max_epochs": 2,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def changed(config: AnyConfig, **changes: Any) -> AnyConfig:
    """The config with changes; a dictionary changes fields of a part."""
    return replace(
        config,
        **{
            name: changed(getattr(config, name), **value) if isinstance(value, dict) else value
            for name, value in changes.items()
        },
    )


def write_data(folder: Path) -> Path:
    """24 training, 8 validation and 8 test images: 6 batches of 4 in an epoch."""
    return write_table(folder, (("train", 24), ("val", 8), ("test", 8)))


def data_arguments(table: Path, kind: str = "single", **options: Any) -> dict[str, Any]:
    return {"csv": str(table), "split_column": "split", "image_size": 16, "batch_size": 4} | LABELS[kind] | options


def data_module(table: Path, kind: str = "single", **options: Any) -> TableDataModule:
    return TableDataModule(**data_arguments(table, kind, **options))


def generator(kind: str = "single", seed: int = 0, **changes: Any) -> MedfusionGenerator:
    """A Medfusion with random weights, also where a new one has zeros."""
    torch.manual_seed(seed)
    return nudge(MedfusionGenerator(changed(CONFIGS[kind], **changes))).eval()


def nudge(module: Module) -> Module:
    """Add a little noise to every weight, so that zero-initialised layers pass signals and gradients on."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def train(module: LightningModule, data: TableDataModule, folder: Path, **options: Any) -> Trainer:
    """Two epochs, without checkpoints unless they are asked for."""
    trainer = Trainer(**(TRAINER | {"default_root_dir": folder, "enable_checkpointing": False} | options))
    trainer.fit(module, datamodule=data)
    module.cpu()  # where a GPU trained, too, so that tests can compare
    return trainer


def write_recipe(
    path: Path,
    module: str,
    table: Path,
    *,
    config: GeneratorConfig = CONFIG,
    data: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    **arguments: Any,
) -> Path:
    """A recipe for `medgen fit`; the run's folder is named after the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "seed_everything": 3,
        "model": {"class_path": module, "init_args": {"config": config.to_dict(), **arguments}},
        "data": {
            "class_path": "medgen.data.TableDataModule",
            "init_args": data_arguments(table, config.label_kind, **(data or {})),
        },
        "trainer": TRAINER | {"default_root_dir": str(path.with_suffix(""))} | (trainer or {}),
    }
    path.write_text(yaml.safe_dump(content))
    return path


def fit(recipe: Path, *arguments: str) -> Path:
    """`medgen fit` within this process; returns the run's folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["fit", "--config", str(recipe), *arguments]) == 0
    return recipe.with_suffix("")


@dataclass(frozen=True)
class Run:
    """What the two recipes left behind."""

    table: Path
    autoencoder: Path
    diffusion: Path

    @property
    def first_stage(self) -> str:
        """The checkpoint that the second stage starts from."""
        return str(self.autoencoder / "checkpoints" / "last.ckpt")

    def recipe(self, path: Path, stage: str, **changes: Any) -> Path:
        """The recipe of one of the stages on the same data, with changes."""
        arguments = FIRST_STAGE if stage == AUTOENCODER else {"autoencoder": self.first_stage, **SECOND_STAGE}
        return write_recipe(path, stage, self.table, **(arguments | changes))

    @property
    def published(self) -> Path:
        """The checkpoint folder that is published."""
        return self.diffusion / "published"


def train_both_stages(table: Path, folder: Path) -> Run:
    first = fit(write_recipe(folder / "autoencoder.yaml", AUTOENCODER, table, **FIRST_STAGE))
    last = str(first / "checkpoints" / "last.ckpt")
    second = write_recipe(folder / "diffusion.yaml", DIFFUSION, table, autoencoder=last, **SECOND_STAGE)
    return Run(table, first, fit(second))


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """Everything in a run's last checkpoint that a longer run depends on, flat."""
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    found = dict(content["state_dict"])
    for position, optimizer in enumerate(content["optimizer_states"]):
        for number, state in optimizer["state"].items():
            found |= {f"optimizer.{position}.{number}.{name}": value for name, value in state.items()}
    return found


def assert_same_weights(run: Path, other: Path) -> None:
    """Bitwise, optimiser states included."""
    ours, theirs = weights_of(run), weights_of(other)
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []
