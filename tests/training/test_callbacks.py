import copy
import csv
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from torch import nn

from medgen.evaluation.checks.variety import png_bytes
from medgen.evaluation.run import evaluate
from medgen.families.spade.generator import SPADEConfig, SPADEGenerator
from medgen.training import callbacks
from medgen.training.callbacks import EvaluateGenerator, LogReconstructions, LogSamples, LogVariety
from tests.evaluation.conftest import DotGenerator, Means, datamodule, network  # noqa: F401  two of them are fixtures

pytestmark = pytest.mark.filterwarnings("ignore:.*num_workers.*", "ignore:.*litlogger.*")


class Module(LightningModule):
    """Trains on the global random state, which a callback must not touch; publishes a copy that lags behind."""

    trained_with = ("efficientnet_lite1",)

    def __init__(self):
        super().__init__()
        self.generator = DotGenerator()
        self.published = copy.deepcopy(self.generator).eval()
        self.frozen = nn.Dropout(0.5).eval()
        self.draws = []

    def training_step(self, batch, batch_idx):
        assert self.generator.training
        assert not self.published.training
        assert not self.frozen.training
        target = torch.rand(()) + float(np.random.rand())  # noqa: NPY002  the global state is the point
        self.draws.append(target.item())
        return (self.generator.drop(self.generator.scale) - 0.1 * target).square()

    def validation_step(self, batch, batch_idx):
        pass

    def on_train_epoch_start(self):
        self.frozen.eval()

    def configure_optimizers(self):
        return torch.optim.SGD(self.generator.parameters(), lr=0.1)


class Silent(Module):
    validation_step = None


@pytest.fixture
def judge(network, monkeypatch):  # noqa: F811
    """The tiny feature network under the name that the callback asks for."""
    monkeypatch.setattr(callbacks, "feature_network", lambda name: network)
    return network


@pytest.fixture
def counted(monkeypatch):
    """The epochs' evaluations, in order."""
    calls = []

    def counting(*args, **kwargs):
        calls.append(kwargs)
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(callbacks, "evaluate", counting)
    return calls


def trainer(tmp_path, *extra, **options):
    settings = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "accelerator": "cpu", "default_root_dir": tmp_path}
    return Trainer(callbacks=list(extra), **(settings | options))


def fit(module, data, tmp_path, *extra, **options):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  the global state is the point
    run = trainer(tmp_path, *extra, **options)
    run.fit(module, datamodule=data)
    return run


def test_logged_numbers_are_those_of_the_published_generator(judge, datamodule, tmp_path):  # noqa: F811
    module = Module()
    nn.init.constant_(module.published.scale, 0.9)
    run = fit(module, datamodule, tmp_path, EvaluateGenerator(n=20))
    expected = evaluate(module.published, datamodule, n=20, split="val", network=judge)
    logged = {name: value.item() for name, value in run.callback_metrics.items()}
    assert logged == pytest.approx({f"val/{name}": score.value for name, score in expected.items()}, rel=1e-5)
    assert {"val/fd_quarters", "val/kd_quarters", "val/precision", "val/recall", "val/f1"} <= set(logged)


@pytest.mark.ddp
def test_two_processes_log_the_numbers_of_one(judge, datamodule, tmp_path):  # noqa: F811
    (alone,) = trainer(tmp_path, EvaluateGenerator(n=21)).validate(Module(), datamodule=datamodule, verbose=False)
    both = trainer(tmp_path, EvaluateGenerator(n=21), devices=2, strategy="ddp_spawn")
    (shared,) = both.validate(Module(), datamodule=datamodule, verbose=False)
    assert "val/kd_quarters" in alone
    assert shared == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(("options", "text"), [({"n": 1}, "n is 1"), ({"split": "dev"}, "split 'dev' is unknown")])
def test_what_would_fail_epochs_later_is_refused_at_once(options, text):
    with pytest.raises(ValueError, match=text):
        EvaluateGenerator(**options)


def test_evaluation_comes_every_few_epochs_and_not_in_the_dry_run(judge, datamodule, tmp_path, counted):  # noqa: F811
    fit(Module(), datamodule, tmp_path, EvaluateGenerator(every_n_epochs=2, n=10), max_epochs=5)
    assert len(counted) == 2


def test_a_module_without_validation_is_evaluated_at_the_end_of_the_epoch(judge, datamodule, tmp_path, counted):  # noqa: F811
    run = fit(Silent(), datamodule, tmp_path, EvaluateGenerator(n=10), max_epochs=2)
    assert len(counted) == 2
    assert "val/precision" in run.callback_metrics


def test_an_interval_other_than_that_of_validation_is_kept(judge, datamodule, tmp_path, counted):  # noqa: F811
    callback = EvaluateGenerator(every_n_epochs=2, n=10)
    fit(Module(), datamodule, tmp_path, callback, max_epochs=6, check_val_every_n_epoch=3)
    assert len(counted) == 3  # epochs 2, 4 and 6, of which only the last has validation


def test_reconstructions_are_refused_between_validations(datamodule, tmp_path):  # noqa: F811
    callback = LogReconstructions(every_n_epochs=2)
    with pytest.raises(ValueError, match=r"every_n_epochs is 2, but validation, .*, runs every 3 epochs"):
        fit(Module(), datamodule, tmp_path, callback, check_val_every_n_epoch=3)


def test_trainer_validate_evaluates_whatever_the_interval(judge, datamodule, tmp_path):  # noqa: F811
    run = trainer(tmp_path, EvaluateGenerator(every_n_epochs=100, n=10))
    (logged,) = run.validate(Module(), datamodule=datamodule, verbose=False)
    assert "val/fd_quarters" in logged


def test_training_goes_on_as_if_nothing_had_happened(judge, datamodule, tmp_path):  # noqa: F811
    class SampleWithGlobalNoise(DotGenerator):
        def _sample(self, label, noise, *, steps=1):
            torch.rand(5)
            np.random.rand(5)  # noqa: NPY002
            return super()._sample(label, noise, steps=steps)

    quiet, watched = Module(), Module()
    watched.published = SampleWithGlobalNoise().eval()
    fit(quiet, datamodule, tmp_path, max_epochs=3)
    fit(watched, datamodule, tmp_path, EvaluateGenerator(n=10), LogSamples(n=4), max_epochs=3)
    assert watched.draws == quiet.draws
    assert torch.equal(watched.generator.scale, quiet.generator.scale)


def test_modes_are_restored_submodule_by_submodule(judge, datamodule, tmp_path):  # noqa: F811
    class Modes(Callback):
        def on_train_start(self, trainer, module):
            module.published.train()
            module.published.drop.eval()

        def on_train_end(self, trainer, module):
            self.modes = module.published.training, module.published.drop.training

    modes = Modes()
    module = Module()
    module.training_step = lambda batch, batch_idx: module.generator.scale.square()
    fit(module, datamodule, tmp_path, modes, EvaluateGenerator(n=10), limit_val_batches=0)
    assert modes.modes == (True, False)


def test_the_best_epoch_can_be_monitored(judge, datamodule, tmp_path):  # noqa: F811
    from lightning.pytorch.callbacks import ModelCheckpoint

    keep = ModelCheckpoint(tmp_path, monitor="val/fd_quarters", filename="best")
    fit(Module(), datamodule, tmp_path, EvaluateGenerator(n=10), keep, enable_checkpointing=True)
    assert (tmp_path / "best.ckpt").is_file()


def test_a_judge_from_the_training_loss_is_warned_of(judge, datamodule, tmp_path, caplog):  # noqa: F811
    judge.name = "efficientnet_lite1"
    with caplog.at_level(logging.WARNING):
        fit(Module(), datamodule, tmp_path, EvaluateGenerator(n=10))
    assert "efficientnet_lite1 was in the training loss" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"metrics": ["fid"]}, "'fid' is unknown"), ({"every_n_epochs": 0}, "every_n_epochs is 0")],
)
def test_wrong_arguments_are_refused_at_once(judge, arguments, message):
    with pytest.raises(ValueError, match=message):
        EvaluateGenerator(**arguments)


def test_unknown_sampling_options_are_refused_before_training(judge, datamodule, tmp_path):  # noqa: F811
    module = Module()
    with pytest.raises(ValueError, match="stepz"):
        fit(module, datamodule, tmp_path, EvaluateGenerator(options={"stepz": 1}))
    assert module.draws == []


@pytest.mark.slow
@pytest.mark.parametrize("callback", [EvaluateGenerator, LogSamples, LogVariety])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"mask is None, and this generator has no label-map autoencoder .* give mask: .* a file or folder"),
        ({"mask": "nowhere"}, "mask nowhere is not there; give a label map or a folder of them"),
    ],
)
def test_maps_that_samples_would_lack_are_asked_for_before_training(
    judge,
    datamodule,  # noqa: F811
    tmp_path,
    callback,
    options,
    message,
):
    module = Module()
    module.published = SPADEGenerator(replace(SPADEConfig.tiny(), map_dim=0))
    with pytest.raises((ValueError, FileNotFoundError), match=rf"{callback.__name__}\.options: {message}"):
        fit(module, datamodule, tmp_path, callback(options=options))
    assert module.draws == []


def test_loaders_without_a_data_module_are_refused(judge, datamodule, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="needs the real images of a data module"):
        trainer(tmp_path, EvaluateGenerator()).fit(Module(), datamodule.train_dataloader())


def test_a_first_stage_without_a_generator_is_refused(judge, datamodule, tmp_path):  # noqa: F811
    module = Module()
    module.published = None
    with pytest.raises(ValueError, match="Module has no generator to sample from"):
        fit(module, datamodule, tmp_path, EvaluateGenerator())


def test_tensorboard_gets_a_grid_when_it_is_due(datamodule, tmp_path):  # noqa: F811
    board = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path)
    fit(Module(), datamodule, tmp_path, LogSamples(every_n_epochs=2, n=6, columns=3), max_epochs=5, logger=logger)
    events = board.EventAccumulator(logger.log_dir)
    events.Reload()
    grids = events.Images("samples")
    assert [grid.step for grid in grids] == [12, 24]  # six batches of ten in an epoch
    assert (grids[0].width, grids[0].height) == (3 * 132 + 4, 2 * 146 + 4)
    assert not (tmp_path / "samples").exists()


def numbers_of(logger):
    """What a CSV logger has of each name."""
    logger.save()
    rows = csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text().splitlines())
    found = {}
    for row in rows:
        for name, value in row.items():
            if value and name.startswith("train/mean"):
                found.setdefault(name, []).append(float(value))
    return found


def test_the_mean_image_of_each_class_is_logged_beside_that_of_real_images(datamodule, tmp_path):  # noqa: F811
    logger, module = CSVLogger(tmp_path), Module()
    fit(module, datamodule, tmp_path, LogVariety(every_n_epochs=2, n=5), max_epochs=4, logger=logger)
    found = numbers_of(logger)
    names = module.generator.label_space.names
    for name in names:
        drawn = module.published.sample(5, name, seed=0)
        assert found[f"train/mean_image_bytes:{name}"] == [png_bytes(drawn.mean(0))] * 2
        (real,) = found[f"train/mean_image_bytes_real:{name}"]
        assert 60 < real < 1000
    assert len(found) == 2 * len(names)


def test_a_mean_of_one_image_is_refused():
    with pytest.raises(ValueError, match="n is 1; the mean of one image"):
        LogVariety(n=1)


@pytest.mark.parametrize("logger", [False, CSVLogger])
def test_without_a_logger_of_images_the_grid_is_a_file(datamodule, tmp_path, logger):  # noqa: F811
    fit(Module(), datamodule, tmp_path, LogSamples(n=2), logger=logger and logger(tmp_path))
    assert Image.open(tmp_path / "samples" / "epoch_00000.png").mode == "L"


def test_classes_take_turns_in_the_grid(datamodule, tmp_path):  # noqa: F811
    fit(Module(), datamodule, tmp_path, LogSamples(n=2, columns=2))
    grid = np.asarray(Image.open(tmp_path / "samples" / "epoch_00000.png"))
    left, right = grid[4:132, 4:132].mean(), grid[4:132, 136:264].mean()
    assert right - left > 30  # dark, then bright


def test_unknown_labels_are_refused_before_training(datamodule, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="'grey' is unknown"):
        fit(Module(), datamodule, tmp_path, LogSamples(n=1, labels=["grey"]))


def test_reconstructions_stand_under_the_images_they_copy(datamodule, tmp_path):  # noqa: F811
    class Negative(Module):
        def forward(self, images):
            assert not self.training
            return 1 - images

    fit(Negative(), datamodule, tmp_path, LogReconstructions(every_n_epochs=2, n=3), max_epochs=2)
    (path,) = (tmp_path / "reconstructions").iterdir()
    assert path.name == "epoch_00001.png"
    grid = np.asarray(Image.open(path)).astype(int)
    images, copies = grid[4:132, 4:132], grid[136:264, 4:132]
    assert abs(images + copies - 255).max() <= 1
