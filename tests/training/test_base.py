"""The bases of training modules, on a model of two numbers whose every step can be calculated."""

import warnings
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from medgen.generator import Generator, GeneratorConfig
from medgen.training.adversarial import AdversarialModule
from medgen.training.base import GenerativeModule, drop_labels
from medgen.training.ema import ema_decay
from tests.tiny import TRAINER, data_module

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass(frozen=True, kw_only=True)
class MeanConfig(GeneratorConfig):
    image_size: tuple[int, int] = (16, 16)


class MeanGenerator(Generator, family="mean"):
    """Learns the mean grey level; `count` is a buffer."""

    config_class = MeanConfig

    def __init__(self, config):
        super().__init__(config)
        self.level = nn.Parameter(torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def _sample(self, label, noise):
        return self.level.expand(len(noise), 1, *self.config.image_size)


class MeanModule(GenerativeModule):
    def __init__(self, **options):
        super().__init__(MeanGenerator(MeanConfig()), **options)
        self.history, self.draws, self.rates = [], [], []

    def training_step(self, batch, batch_idx):
        self.draws.append(torch.rand(()).item())
        self.generator.count += 1
        return (self.generator.level - batch["image"].mean()).square()

    def on_train_batch_end(self, *args):
        super().on_train_batch_end(*args)
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        self.history.append((self.generator.level.item(), self.published.level.item()))

    def configure_optimizers(self):
        return self.scheduled(torch.optim.SGD(self.parameters(), lr=0.1), shape="constant", warmup=0)


class Duel(AdversarialModule):
    """Two scalars, each with an optimiser; the gradient of each is the mean of its images."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first = nn.Parameter(torch.zeros(()))
        self.second = nn.Parameter(torch.zeros(()))
        self.steps = []

    def training_step(self, batch, batch_idx):
        level = batch["image"].mean()
        for number, (optimizer, weight) in enumerate(
            zip(self.optimizer_pair(), (self.first, self.second), strict=True)
        ):
            with self.toggled_optimizer(optimizer):
                self.descend(optimizer, weight * level * (number + 1))
                self.step_schedule(number)
        self.steps.append((self.first.item(), self.second.item()))

    def configure_optimizers(self):
        pairs = ((self.first, "constant"), (self.second, "cosine"))
        return [self.scheduled(torch.optim.SGD([weight], lr=1.0), shape=shape, warmup=0) for weight, shape in pairs]


def fit(module, table, tmp_path, *callbacks, data=None, **options):
    trainer = Trainer(
        **(TRAINER | {"default_root_dir": tmp_path, "max_epochs": 1} | options),
        callbacks=list(callbacks),
        enable_checkpointing=False,
    )
    trainer.fit(module, datamodule=data_module(table, "none", **(data or {})))
    return trainer


def test_the_average_follows_by_its_decay(table, tmp_path):
    module = MeanModule(ema_decay=0.75)
    fit(module, table, tmp_path)
    expected = module.history[0][0]  # the first step is copied
    for current, averaged in module.history:
        expected = 0.75 * expected + 0.25 * current
        assert averaged == pytest.approx(expected, abs=1e-6)
    assert len(module.history) == 6


def test_the_decay_can_depend_on_the_steps_made(table, tmp_path):
    asked = []
    module = MeanModule(ema_decay=lambda step: asked.append(step) or ema_decay(step))
    fit(module, table, tmp_path)
    assert asked == [1, 2, 3, 4, 5]
    assert module.history[1][0] == module.history[1][1]  # decays 0, 0, 0.37: no lag in the first steps


def test_buffers_are_copied(table, tmp_path):
    module = MeanModule(ema_decay=0.999)
    fit(module, table, tmp_path)
    assert module.published.count == module.generator.count == 6


def test_the_average_gets_no_gradient_and_stays_in_evaluation_mode(table, tmp_path):
    module = MeanModule()
    fit(module, table, tmp_path)
    assert not any(parameter.requires_grad for parameter in module.ema.parameters())
    assert not module.published.training


def test_accumulated_batches_move_the_average_once(table, tmp_path):
    module = MeanModule(ema_decay=0.75)
    fit(module, table, tmp_path, accumulate_grad_batches=3)
    assert module.ema.n_averaged == 2
    assert module.history[1] == (0.0, 0.0)


def test_accumulated_batches_equal_one_big_batch(table, tmp_path):
    small, big = MeanModule(), MeanModule()
    fit(small, table, tmp_path, accumulate_grad_batches=3)
    fit(big, table, tmp_path, data={"batch_size": 12})
    assert small.history[-1] == pytest.approx(big.history[-1], abs=1e-6)


def test_clipping_bounds_the_step(table, tmp_path):
    module = MeanModule()
    fit(module, table, tmp_path, gradient_clip_val=0.01)
    levels = [0.0, *(level for level, _ in module.history)]
    assert max(abs(b - a) for a, b in pairwise(levels)) == pytest.approx(0.001)  # lr 0.1


def test_the_published_folder_holds_the_average(table, tmp_path):
    from safetensors.torch import load_file

    module = MeanModule()
    fit(module, table, tmp_path)
    assert load_file(tmp_path / "published" / "model.safetensors")["level"] == module.published.level


def test_a_dry_run_publishes_nothing(table, tmp_path):
    fit(MeanModule(), table, tmp_path, fast_dev_run=True)
    assert not (tmp_path / "published").exists()


def test_random_draws_of_a_step_depend_on_seed_and_batch_only(table, tmp_path):
    class Meddler(Callback):
        def on_train_batch_end(self, *args):
            torch.rand(7)

    alone, disturbed, other = MeanModule(seed=1), MeanModule(seed=1), MeanModule(seed=2)
    fit(alone, table, tmp_path)
    fit(disturbed, table, tmp_path, Meddler())
    fit(other, table, tmp_path)
    assert disturbed.draws == alone.draws
    assert len(set(alone.draws + other.draws)) == 12


@pytest.mark.parametrize(
    ("shape", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("constant", 4, [0.25, 0.5, 0.75, 1, 1, 1]),
        ("cosine", 0, [1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873]),
    ],
)
def test_the_learning_rate_takes_its_shape(table, tmp_path, shape, warmup, expected):
    class Shaped(MeanModule):
        def configure_optimizers(self):
            return self.scheduled(torch.optim.SGD(self.parameters(), lr=1.0), shape=shape, warmup=warmup)

        def training_step(self, batch, batch_idx):
            self.rates_in_step.append(self.optimizers().param_groups[0]["lr"])
            return super().training_step(batch, batch_idx)

    module = Shaped()
    module.rates_in_step = []
    fit(module, table, tmp_path)
    assert module.rates_in_step == pytest.approx(expected)


def test_a_run_without_an_end_keeps_its_learning_rate(table, tmp_path):
    module = MeanModule()
    fit(module, table, tmp_path, max_epochs=-1, max_time={"seconds": 0.2})
    assert set(module.rates) == {0.1}


def test_accumulated_batches_of_an_adversarial_module_equal_one_big_batch(table, tmp_path):
    small, big = Duel(accumulate_batches=3), Duel()
    fit(small, table, tmp_path)
    fit(big, table, tmp_path, data={"batch_size": 12})
    assert small.steps[1] == (0.0, 0.0)
    assert small.steps[2][0] == pytest.approx(big.steps[0][0], abs=1e-6)
    assert small.steps[5][0] == pytest.approx(big.steps[1][0], abs=1e-6)


@pytest.mark.parametrize("options", [{"max_epochs": 1}, {"max_epochs": -1, "max_steps": 12}], ids=str)
def test_schedules_of_several_optimisers_end_with_the_run(table, tmp_path, options):
    module = Duel()
    rates = []
    module.on_before_optimizer_step = lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])
    fit(module, table, tmp_path, **options)  # 6 batches, of which each is a step of both
    assert rates[1::2] == pytest.approx([1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873])


def test_gradients_are_not_carried_over_an_epoch(table, tmp_path):
    module = Duel(accumulate_batches=4)
    fit(module, table, tmp_path)
    assert [a != b for a, b in pairwise([(0, 0), *module.steps])] == [False] * 3 + [True, False, True]  # 6 batches
    assert module.first.grad is None


def test_clipping_bounds_the_step_of_an_adversarial_module(table, tmp_path):
    module = Duel(clip_norm=0.01)
    fit(module, table, tmp_path)
    assert module.steps[0] == pytest.approx((-0.01, -0.01), rel=1e-3)


def test_each_optimizer_has_its_own_schedule(table, tmp_path):
    module = Duel(clip_norm=0.01)
    fit(module, table, tmp_path)
    moves = [b[1] - a[1] for a, b in pairwise(module.steps)]
    assert moves == pytest.approx([-0.01 * f for f in (0.9330127, 0.75, 0.5, 0.25, 0.0669873)], rel=1e-3)


def test_impossible_accumulation_is_refused():
    with pytest.raises(ValueError, match="accumulate_batches is 0; use at least 1"):
        Duel(accumulate_batches=0)


def test_every_setting_that_differs_from_the_data_is_named(table, tmp_path):
    with pytest.raises(ValueError, match=r"image_size: model.config has \(16, 16\).*; channels: model.config has 1"):
        fit(MeanModule(), table, tmp_path, data={"image_size": (8, 16), "channels": 3})


def test_an_unconditional_model_may_train_on_labelled_data(table, tmp_path):
    trainer = Trainer(**(TRAINER | {"default_root_dir": tmp_path}), fast_dev_run=True)
    trainer.fit(MeanModule(), datamodule=data_module(table, "single"))
    assert trainer.global_step == 1


@pytest.mark.parametrize(
    ("kind", "columns", "unseen"),
    [
        ("single", {"label_names": ["healthy", "ill", "dead"]}, "'dead'"),
        ("multi", {"label_column": ["edema", "effusion", "none", "nothing"]}, "'none', 'nothing'"),
    ],
)
def test_labels_that_no_training_image_has_are_warned_of(table, tmp_path, monkeypatch, kind, columns, unseen):
    rows = table.read_text().splitlines()
    empty = tmp_path / "labels.csv"  # with two findings that nobody has
    empty.write_text("\n".join([f"{rows[0]},none,nothing", *(f"{row},0,0" for row in rows[1:])]))
    data = data_module(empty, kind, root=str(table.parent), **columns)
    monkeypatch.setattr(MeanModule, "datamodule", data)
    module, names = MeanModule(), data.label_space.names
    with pytest.warns(UserWarning, match=f"there is no training image of {unseen}, so the model will not learn"):
        module.check_data(MeanConfig(label_kind=kind, label_names=names))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.check_data(MeanConfig())  # it is asked for no label


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_labels_are_dropped_by_their_chance(chance):
    torch.manual_seed(0)
    classes, findings = torch.ones(4000, dtype=torch.int64), torch.ones(4000, 3)
    assert (drop_labels(classes, chance) == -1).float().mean() == pytest.approx(chance, abs=0.03)
    dropped = drop_labels(findings, chance).isnan()
    assert dropped.all(1).float().mean() == pytest.approx(chance, abs=0.03)
    assert torch.equal(dropped.all(1), dropped.any(1))  # all findings of an image or none
