"""What every training stage of every family promises, over the registry."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from medgen.families import FAMILIES, family_names, find_family
from medgen.training.base import GenerativeModule
from tests.contracts.stages import STAGES, tiny_config
from tests.tiny import TRAINER, data_module, nudge

pytestmark = pytest.mark.filterwarnings("ignore")

every_stage = pytest.mark.parametrize(
    ("family", "number"),
    [
        pytest.param(family, number, id=f"{family}-{number}-{FAMILIES[family].stages[number].rpartition(':')[2]}")
        for family, stages in STAGES.items()
        for number in range(len(stages))
    ],
)


class Watch(Callback):
    """Notes the weights at the start, and which parameters the optimisers have and get gradients for."""

    def __init__(self, *, nudged: bool = False) -> None:
        self.nudged = nudged
        self.trained: set[str] = set()
        self.with_gradient: set[str] = set()

    def on_train_start(self, trainer, module):
        if self.nudged:
            nudge(module)
        self.names = {id(parameter): name for name, parameter in module.named_parameters()}
        self.before = {name: value.clone() for name, value in module.state_dict().items()}

    def on_before_optimizer_step(self, trainer, module, optimizer):
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            name = self.names[id(parameter)]
            self.trained.add(name)
            if parameter.grad is not None and bool(parameter.grad.any()):
                self.with_gradient.add(name)


def build(family: str, number: int, checkpoint: Path | None) -> LightningModule:
    stage = STAGES[family][number]
    arguments = dict(stage.arguments) | ({stage.previous: str(checkpoint)} if stage.previous else {})
    return find_family(family).stage_classes()[number](config=tiny_config(family), **arguments)


def train(family: str, number: int, table: Path, folder: Path, *callbacks: Callback) -> LightningModule:
    """Two batches of a stage, on top of two batches of each stage before it."""
    checkpoint = None
    if number:
        train(family, number - 1, table, folder)
        checkpoint = folder / f"{number - 1}.ckpt"
    config = tiny_config(family)
    options = {"image_size": config.image_size, "channels": config.channels, **STAGES[family][number].data}
    data = data_module(table, **options)
    torch.manual_seed(0)
    module = build(family, number, checkpoint)
    options = TRAINER | {"max_epochs": 1, "limit_train_batches": 2, "default_root_dir": folder / str(number)}
    trainer = Trainer(**options, callbacks=list(callbacks), enable_checkpointing=False)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(folder / f"{number}.ckpt")
    return module


def test_every_stage_has_its_arguments():
    found = {family: len(stages) for family, stages in STAGES.items()}
    assert found == {name: len(family.stages) for name, family in FAMILIES.items()}, "see tests/contracts/stages.py"


@pytest.mark.parametrize("family", [family for family in family_names() if STAGES[family]])
def test_the_last_stage_trains_a_generator(family, table, tmp_path):
    last = train(family, len(STAGES[family]) - 1, table, tmp_path)
    assert isinstance(last, GenerativeModule)
    assert last.published.family == family


@every_stage
def test_the_config_is_among_the_hyperparameters(family, number, tmp_path):
    """`medgen convert` and the stage after find it there."""
    module = build(family, number, tmp_path / "the_stage_before.ckpt")
    assert module.hparams["config"] == tiny_config(family)


@every_stage
def test_two_batches_leave_every_weight_finite_and_change_the_networks(family, number, table, tmp_path):
    watch = Watch()
    module = train(family, number, table, tmp_path, watch)
    after = module.state_dict()
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())
    changed = {name for name, value in after.items() if not torch.equal(value, watch.before[name])}
    assert len(changed & watch.trained) > len(watch.trained) / 2
    if isinstance(module, GenerativeModule):
        assert any(name.startswith("ema.module.") for name in changed)


@every_stage
def test_every_trained_parameter_gets_a_gradient(family, number, table, tmp_path):
    watch = Watch(nudged=True)
    module = train(family, number, table, tmp_path, watch)
    assert watch.trained - watch.with_gradient == set()
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trainable == watch.trained
