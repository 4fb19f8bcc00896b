"""Training from recipes: checkpoints that survive any end, and runs that go on as if they had never stopped."""

import inspect
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

import medgen
from medgen.cli import main
from medgen.families.cyclegan.modules import CycleGANModule
from medgen.families.medfusion.modules import AutoencoderModule
from medgen.families.spade.modules import SPADEModule
from medgen.families.stylegan2.modules import StyleGAN2Module
from medgen.training.recipes import AtomicCheckpointIO
from tests.tiny import (
    AUTOENCODER,
    CONFIG,
    DIFFUSION,
    FIRST_STAGE,
    Run,
    assert_same_weights,
    fit,
    weights_of,
    write_recipe,
)

EPOCHS = 3
LONG = {"max_epochs": EPOCHS}

both_stages = pytest.mark.parametrize("stage", [AUTOENCODER, DIFFUSION], ids=["autoencoder", "diffusion"])


@pytest.fixture
def recipe(stage: str, run: Run, tmp_path: Path):
    """A function from a name to the recipe of this stage whose run is called so."""
    return lambda name, **changes: run.recipe(tmp_path / f"{name}.yaml", stage, **changes)


@pytest.fixture(scope="module")
def straight(run: Run, tmp_path_factory: pytest.TempPathFactory):
    """A function from a stage to its long run, which nothing stopped."""
    done: dict[str, Path] = {}

    def get(stage: str) -> Path:
        if stage not in done:
            done[stage] = fit(run.recipe(tmp_path_factory.mktemp("straight") / "run.yaml", stage, trainer=LONG))
        return done[stage]

    return get


class StopAt(Callback):
    """Sends SIGTERM to this process in the second epoch.

    Args:
        hook: At which of the callback's methods.
        call: At which call of it in that epoch.
    """

    def __init__(self, hook: str, call: int = 0) -> None:
        self.calls_left = call
        setattr(self, hook, self._count)

    def _count(self, trainer, *args):
        if trainer.current_epoch == 1:
            self.calls_left -= 1
            if self.calls_left == -1:
                self.act()

    def act(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class FailAt(StopAt):
    """Raises an error instead."""

    def act(self) -> None:
        raise RuntimeError("power cut")


class KeepWeights(Callback):
    """Writes the weights of every process at the end, to compare them."""

    def on_train_end(self, trainer, module):
        torch.save(module.state_dict(), Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.pt")


def calling(callback: type[Callback], **arguments) -> dict:
    """The trainer's part of a recipe with a callback."""
    return LONG | {"callbacks": [{"class_path": f"{__name__}.{callback.__name__}", "init_args": arguments}]}


def start(recipe: Path, *arguments: str) -> subprocess.Popen:
    """`medgen fit` in a process of its own."""
    command = [sys.executable, "-m", "medgen", "fit", "--config", str(recipe), *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_both_stages_end_in_a_checkpoint_that_samples(run):
    generator = medgen.load(run.published)
    assert generator.config == CONFIG
    images = generator.sample(2, ["healthy", "ill"], seed=0, steps=4)
    assert images.shape == (2, 1, 16, 16)
    assert images.std() > 0


def test_the_published_generator_is_the_average(run):
    content = torch.load(run.diffusion / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    published = medgen.load(run.published).state_dict()
    assert all(torch.equal(content[f"ema.module.{name}"], weight) for name, weight in published.items())
    assert any(not torch.equal(content[f"generator.{name}"], weight) for name, weight in published.items())


def test_the_recipe_is_kept_beside_the_run(run):
    assert "LatentDiffusionModule" in (run.diffusion / "config.yaml").read_text()


@both_stages
def test_fast_dev_run_goes_through_and_leaves_nothing(recipe):
    folder = fit(recipe("run"), "--trainer.fast_dev_run", "2")
    assert not (folder / "checkpoints").exists()
    assert not (folder / "published").exists()


@both_stages
def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(recipe, stage, straight):
    assert_same_weights(fit(recipe("again", trainer=LONG)), straight(stage))
    other = fit(recipe("other"), "--seed_everything", "4", "--trainer.max_epochs", "1")
    assert not torch.equal(*(weights_of(folder)["optimizer.0.0.exp_avg"] for folder in (other, straight(stage))))


@pytest.mark.parametrize(
    ("stage", "hook", "call", "done"),
    [
        (AUTOENCODER, "on_train_epoch_start", 0, 7),
        (AUTOENCODER, "on_train_batch_start", 2, 9),
        (AUTOENCODER, "on_train_batch_end", 5, 12),
        (AUTOENCODER, "on_validation_batch_end", 0, 12),
        (AUTOENCODER, "on_train_epoch_end", 0, 12),
        (DIFFUSION, "on_train_batch_start", 0, 7),
        (DIFFUSION, "on_train_batch_end", 3, 10),
        (DIFFUSION, "on_train_batch_end", 5, 12),
    ],
    ids=lambda value: value.rpartition(".")[2] if isinstance(value, str) else None,
)
def test_a_run_that_was_asked_to_stop_goes_on_exactly_there(recipe, straight, stage, hook, call, done):
    stopped = recipe("run", trainer=calling(StopAt, hook=hook, call=call))
    with pytest.raises(SIGTERMException):
        fit(stopped)
    assert weights_of(stopped.with_suffix(""))["batches_seen"] == done
    fit(recipe("run", trainer=LONG), "--ckpt_path", "last")
    assert_same_weights(stopped.with_suffix(""), straight(stage))


@pytest.mark.parametrize(
    ("stage", "arguments", "trainer", "call"),
    [
        (AUTOENCODER, {"accumulate_batches": 2}, {}, 2),
        (DIFFUSION, {}, {"accumulate_grad_batches": 2}, 1),
        (DIFFUSION, {}, {"accumulate_grad_batches": 2}, 2),
    ],
    ids=["autoencoder-between steps", "diffusion-after a step", "diffusion-between steps"],
)
def test_gradients_that_are_being_accumulated_are_not_lost(recipe, arguments, trainer, call):
    shorter = trainer | {"max_epochs": 2}
    straight = fit(recipe("straight", trainer=shorter, **arguments))
    stopped = recipe("run", trainer=calling(StopAt, hook="on_train_batch_start", call=call) | shorter, **arguments)
    with pytest.raises(SIGTERMException):
        fit(stopped)
    assert weights_of(stopped.with_suffix(""))["batches_seen"] == (8 if call == 1 else 10)  # after the next step
    fit(recipe("run", trainer=shorter, **arguments), "--ckpt_path", "last")
    assert_same_weights(stopped.with_suffix(""), straight)


@both_stages
def test_the_last_checkpoint_is_found_with_the_default_logger(recipe):
    once = recipe("run", trainer={"max_epochs": 1, "logger": True})
    batches = weights_of(fit(once))["batches_seen"]
    again = recipe("run", trainer={"max_epochs": 2, "logger": True})
    assert weights_of(fit(again, "--ckpt_path", "last"))["batches_seen"] == 2 * batches
    assert len(list((again.with_suffix("") / "lightning_logs").iterdir())) == 2


@pytest.mark.parametrize("stage", [AUTOENCODER])
def test_a_recipe_says_how_often_the_last_checkpoint_is_written(recipe, monkeypatch):
    written = []
    monkeypatch.setattr(
        AtomicCheckpointIO, "save_checkpoint", lambda self, checkpoint, *rest, **options: written.append(checkpoint)
    )
    callback = {"class_path": "medgen.recipes.LastCheckpoint", "init_args": {"every_n_epochs": 2}}
    fit(recipe("rare", trainer={"max_epochs": 4, "callbacks": [callback]}))
    assert [checkpoint["epoch"] for checkpoint in written] == [1, 3]


@pytest.mark.parametrize("stage", [DIFFUSION])
def test_a_second_stage_goes_on_without_the_first(run, recipe, straight, stage, tmp_path):
    first = shutil.copy(run.first_stage, tmp_path / "first.ckpt")
    source = ["--model.init_args.autoencoder", str(first)]
    folder = fit(
        recipe("run", trainer=LONG), *source, "--trainer.limit_train_batches", "2", "--trainer.max_epochs", "1"
    )
    Path(first).unlink()
    fit(recipe("run"), *source, "--trainer.max_epochs", "2", "--ckpt_path", "last")
    assert weights_of(folder)["batches_seen"] > 2
    assert main(["validate", "--config", str(recipe("run")), *source, "--ckpt_path", "last"]) == 0


@both_stages
def test_after_an_error_in_mid_step_the_last_epoch_is_where_it_goes_on(recipe, straight, stage):
    broken = recipe("run", trainer=calling(FailAt, hook="on_before_optimizer_step"))
    with pytest.raises(RuntimeError, match="power cut"):
        fit(broken)
    assert weights_of(broken.with_suffix(""))["batches_seen"] == 6
    fit(recipe("run", trainer=LONG), "--ckpt_path", "last")
    assert_same_weights(broken.with_suffix(""), straight(stage))


@pytest.mark.slow
@both_stages
def test_a_run_that_was_killed_at_a_random_moment_ends_with_the_same_weights(recipe, straight, stage):
    killed = recipe("run", trainer=LONG)
    last = killed.with_suffix("") / "checkpoints" / "last.ckpt"
    process = start(killed)
    while not last.exists() and process.poll() is None:
        time.sleep(0.01)
    delay = random.uniform(0, 0.3)
    time.sleep(delay)
    process.kill()
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    print(f"killed {delay:.3f} s after the first epoch")
    fit(killed, "--ckpt_path", "last")
    assert_same_weights(killed.with_suffix(""), straight(stage))


@pytest.mark.parametrize("stage", [DIFFUSION])
def test_a_run_killed_between_its_last_checkpoint_and_its_end_is_published_later(recipe):
    folder = fit(recipe("run"))
    for file in (folder / "published").iterdir():
        file.unlink()
    fit(recipe("run"), "--ckpt_path", "last")
    assert medgen.load(folder / "published").sample(1, steps=2).shape == (1, 1, 16, 16)


@pytest.mark.parametrize("stage", [DIFFUSION])
def test_last_without_a_checkpoint_starts_anew(recipe):
    assert (fit(recipe("run"), "--ckpt_path", "last", "--trainer.max_epochs", "1") / "published").is_dir()


@pytest.mark.parametrize("stage", [AUTOENCODER])
def test_a_checkpoint_half_written_at_a_kill_is_not_the_last(recipe, straight, stage):
    folder = fit(recipe("run", trainer=LONG), "--trainer.limit_train_batches", "1", "--trainer.max_epochs", "1")
    (folder / "checkpoints" / ".last.ckpt.part").write_bytes(b"PK\x03\x04 and then the power went")
    fit(recipe("run"), "--ckpt_path", "last")
    assert [file.name for file in (folder / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one_whole(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)

    def fill_disk(content, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill_disk)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert list(tmp_path.iterdir()) == [path]
    assert torch.load(path, weights_only=True) == {"epoch": 1}


@pytest.mark.parametrize("stage", [DIFFUSION])
def test_evaluation_and_pictures_during_training_change_nothing(recipe, straight, stage):
    callbacks = [
        {"class_path": "medgen.callbacks.LogSamples", "init_args": {"n": 2, "options": {"steps": 2}}},
        {
            "class_path": "medgen.callbacks.EvaluateGenerator",
            "init_args": {"n": 8, "every_n_epochs": 2, "options": {"steps": 2}},
        },
    ]
    watched = fit(recipe("run", trainer=LONG | {"callbacks": callbacks}))
    assert len(list((watched / "samples").glob("*.png"))) == EPOCHS
    assert_same_weights(watched, straight(stage))


@both_stages
def test_mixed_precision_trains(recipe):
    weights = weights_of(fit(recipe("run"), "--trainer.precision", "bf16-mixed"))
    assert all(weight.isfinite().all() for weight in weights.values())
    assert {weight.dtype for weight in weights.values() if weight.is_floating_point()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("supported", "precision", "warned"), [(False, "bf16-mixed", 1), (True, "bf16-mixed", 0), (False, "32-true", 0)]
)
def test_a_precision_that_the_processor_lacks_is_told(table, tmp_path, monkeypatch, supported, precision, warned):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    path = write_recipe(tmp_path / "run.yaml", AUTOENCODER, table, trainer={"max_epochs": 0}, **FIRST_STAGE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(["fit", "--config", str(path), "--trainer.precision", precision]) == 0
    told = [str(w.message) for w in caught if "no bfloat16 instructions" in str(w.message)]
    assert len(told) == warned
    assert all("use --trainer.precision 32-true" in text for text in told)


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize(
    ("stage", "strategy"),
    [(AUTOENCODER, "ddp_find_unused_parameters_true"), (DIFFUSION, "ddp")],
    ids=["adversarial", "diffusion"],
)
def test_two_processes_hold_the_same_weights(recipe, stage, strategy):
    shared = recipe("run", trainer=calling(KeepWeights) | {"max_epochs": 2, "devices": 2, "strategy": strategy})
    process = start(shared)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    folder = shared.with_suffix("")
    ours, theirs = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert [name for name, weight in ours.items() if not torch.equal(weight, theirs[name])] == []
    assert ours["batches_seen"] == 6  # half of what one process sees in two epochs
    if stage == DIFFUSION:
        assert medgen.load(folder / "published").sample(1, steps=2).shape == (1, 1, 16, 16)


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("stage", [DIFFUSION])
def test_two_processes_stop_together_when_one_is_asked_to(recipe):
    shared = recipe("run", trainer={"max_epochs": 1000, "devices": 2, "strategy": "ddp"})
    last = shared.with_suffix("") / "checkpoints" / "last.ckpt"
    process = start(shared)
    while not last.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == 0  # not killed by the signal, nor by the other process
    content = torch.load(last, weights_only=True)
    assert content["state_dict"]["batches_seen"] == content["global_step"] < 3000


@both_stages
@pytest.mark.parametrize(("verb", "split"), [("validate", "val"), ("test", "test")])
def test_a_trained_stage_is_measured_on_unseen_images(run, stage, verb, split, capsys):
    trained = run.autoencoder if stage == AUTOENCODER else run.diffusion
    assert main([verb, "--config", str(trained.with_suffix(".yaml")), "--ckpt_path", "last"]) == 0
    assert f"{split}/{'mse' if stage == AUTOENCODER else 'loss'}" in capsys.readouterr().out


@pytest.mark.parametrize("stage", [DIFFUSION])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image_size": 32}, r"image_size: model.config has \(16, 16\), data has \(32, 32\)"),
        ({"label_names": ["ill", "healthy"]}, r"label_names: model.config has \('healthy', 'ill'\), data has"),
        ({"intensity_window": [0, 100]}, "intensity_window: model.config has"),
        ({"channels": 3}, "channels: model.config has 1, data has 3"),
    ],
)
def test_data_that_the_config_does_not_describe_is_refused_in_one_line(recipe, data, message, capsys):
    assert main(["fit", "--config", str(recipe("run", data=data))]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("medgen fit: the recipe's model and data disagree; ")
    assert re.search(message, error)


@pytest.mark.parametrize("stage", [DIFFUSION])
def test_arguments_that_a_module_refuses_are_refused_in_one_line(recipe, capsys):
    assert main(["fit", "--config", str(recipe("run", label_dropout=2.0))]) == 1
    assert (
        capsys.readouterr().err.splitlines()[-1] == "medgen fit: label_dropout is 2.0; it is a probability from 0 to 1"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: fit.data, fit.model"),
        (["--config", "none.yaml"], "File does not exist: "),
        (["--data", "medgen.data.TableDataModule", "--data.init_args.cvs", "x"], "cvs"),
    ],
)
def test_a_wrong_argument_is_named_without_a_screen_of_usage(args, message, capsys):
    assert main(["fit", *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "usage:" not in error


@pytest.mark.parametrize("stage", [AUTOENCODER])
def test_what_medgen_did_not_foresee_keeps_its_trace(recipe, monkeypatch):
    monkeypatch.setattr("medgen.training.recipes.RecipeCLI", lambda *args, **options: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        main(["fit", "--config", str(recipe("run"))])


@pytest.mark.parametrize("stage", [DIFFUSION])
def test_tensorboard_gets_losses_and_pictures(recipe):
    board = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger"}
    pictures = {"class_path": "medgen.callbacks.LogSamples", "init_args": {"n": 2, "options": {"steps": 2}}}
    trainer = {"max_epochs": 1, "log_every_n_steps": 1, "callbacks": [pictures]}
    run = recipe("run", trainer=trainer | {"logger": logger | {"init_args": {"save_dir": "will be set below"}}})
    folder = fit(run, "--trainer.logger.init_args.save_dir", str(run.with_suffix("")))
    events = board.EventAccumulator(str(next(folder.rglob("events.*"))))
    events.Reload()
    assert len(events.Scalars("train/loss")) == 6
    assert len(events.Images("samples")) == 1


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (AutoencoderModule, {"accumulate_batches", "clip_norm"}),
        (SPADEModule, {"accumulate_batches", "clip_norm"}),
        (CycleGANModule, {"accumulate_batches", "clip_norm"}),
        (StyleGAN2Module, {"micro_batch", "clip_norm"}),
    ],
)
def test_modules_with_discriminators_have_the_options_of_the_guide(module, options):
    every = {"accumulate_batches", "micro_batch", "clip_norm"}
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "training.md").read_text()
    assert every & inspect.signature(module).parameters.keys() == options
    assert all(f"`{option}`" in guide for option in options)
