import math
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

import medgen
from medgen.checkpoint import About
from medgen.families.cyclegan.modules import CycleGANModule
from medgen.families.cyclegan.translator import CycleGANConfig, CycleGANTranslator
from medgen.foreign.convert import convert
from medgen.losses.adversarial import ADVERSARIAL
from tests.tiny import TRAINER, assert_same_weights, data_module, fit, train, write_recipe
from tests.training.test_recipes import StopAt, calling

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {"discriminator_width": 4, "discriminator_layers": 1, "pool_size": 4}
MODULE = "medgen.families.cyclegan.modules.CycleGANModule"


def module_of(**options):
    torch.manual_seed(0)
    return CycleGANModule(CycleGANConfig.tiny(), **(SMALL | options))


def recipe(path, table, **changes):
    return write_recipe(path, MODULE, table, config=CycleGANConfig.tiny(), **(SMALL | changes))


@pytest.fixture(scope="module")
def finished(table, tmp_path_factory):
    return fit(recipe(tmp_path_factory.mktemp("cyclegan") / "run.yaml", table))


def test_a_run_ends_in_a_translator(finished):
    translator = CycleGANTranslator.from_pretrained(finished / "published")
    images = torch.rand(3, 1, 16, 24)
    ill = translator.translate(images, "ill")
    assert (ill.shape, ill.dtype) == (images.shape, torch.float32)
    assert 0 <= ill.min() < ill.max() <= 1
    assert not torch.allclose(ill, translator.translate(images, "healthy"), atol=1e-3)
    torch.testing.assert_close(translator.translate(images, 1, batch_size=1), ill, rtol=0, atol=1e-5)


def test_its_card_says_how_it_is_loaded_and_that_works(finished):
    assert 'medgen.load("published")' in (finished / "published" / "README.md").read_text()
    loaded = medgen.load(finished / "published")
    assert isinstance(loaded, CycleGANTranslator)
    assert loaded.domains == CycleGANConfig.tiny().label_names


@pytest.mark.parametrize("from_recipe", [True, False])
def test_its_training_checkpoint_becomes_what_it_published(finished, tmp_path, from_recipe):
    last = finished / "checkpoints" / "last.ckpt"
    if not from_recipe:  # of a module that was made in Python
        content = torch.load(last, weights_only=True)
        content["hyper_parameters"] = {"config": CycleGANConfig.tiny()}
        torch.save(content, last := tmp_path / "python.ckpt")
    folder = convert(last, tmp_path / "published", about=About(licence="CC0-1.0"))
    translator, expected = (CycleGANTranslator.from_pretrained(path) for path in (folder, finished / "published"))
    assert (translator.config, translator.about.licence) == (expected.config, "CC0-1.0")
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(translator.translate(images, "ill"), expected.translate(images, "ill"))
    assert 'medgen.load("published")' in (folder / "README.md").read_text()


@pytest.mark.slow
def test_it_learns_that_what_is_translated_back_is_as_it_was(table, tmp_path):
    module = module_of(lr=2e-3, decay_from=1.0)
    before = train(module, data_module(table, balanced=True), tmp_path, max_epochs=1).callback_metrics
    after = train(module, data_module(table, balanced=True), tmp_path, max_epochs=12).callback_metrics
    for name in ("healthy", "ill"):
        assert after[f"val/cycle:{name}"] < 0.7 * before[f"val/cycle:{name}"]


def test_a_batch_of_one_image_trains_every_network(table, tmp_path):
    module = module_of()
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    data = data_module(table, batch_size=1)
    train(module, data, tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    changed = [name for name, weight in module.state_dict().items() if not torch.equal(weight, before[name])]
    networks = ("translator.to_domain.0", "translator.to_domain.1", "discriminators.0", "discriminators.1")
    assert {f"{network}.last.weight" for network in networks} <= set(changed)


def test_training_images_of_one_domain_are_refused(table, tmp_path):
    data = data_module(table, where={"label": ["healthy"]})
    with pytest.raises(ValueError, match="the train split has no images of 'ill'; a translator learns from images of"):
        train(module_of(), data, tmp_path)


def test_training_images_of_no_domain_are_refused_where_they_would_be_drawn(table, tmp_path):
    data = data_module(table, balanced=True)
    data.table.labels[data.table.rows("train")[:3]] = -1
    train(module_of(), data, tmp_path, fast_dev_run=True)
    data.balanced = False
    with pytest.raises(ValueError, match="3 images of the train split have no label"):
        train(module_of(), data, tmp_path, fast_dev_run=True)


def test_a_domain_that_validation_lacks_has_no_number(table):
    data = data_module(table, where={"label": ["healthy"]})
    (found,) = Trainer(**TRAINER, enable_checkpointing=False).validate(module_of(), datamodule=data, verbose=False)
    assert found.keys() == {"val/cycle:healthy"}


def images_of_both():
    """Real images of both domains and translated ones, by domain; as many of one as were translated to the other."""
    torch.manual_seed(1)
    sizes = {0: 2, 1: 3}
    return tuple({n: torch.rand(sizes[abs(n - other)], 1, 16, 16) for n in (0, 1)} for other in (0, 1))


def test_the_published_loss_is_that_of_the_paper():
    module = module_of(identity_weight=0.0)
    module.log = module.log_dict = lambda *args, **options: None
    real, fake = images_of_both()
    networks, critics = module.translator.to_domain, module.discriminators
    expected = sum((critics[i](fake[i]) - 1).square().mean() for i in (0, 1))
    expected += 10 * (networks[1](fake[0]) - real[1]).abs().mean() + 10 * (networks[0](fake[1]) - real[0]).abs().mean()
    assert module.generator_loss(real, fake).item() == pytest.approx(expected.item(), rel=1e-5)
    judged = sum(((critics[i](real[i]) - 1).square().mean() + critics[i](fake[i]).square().mean()) / 2 for i in (0, 1))
    assert module.discriminator_loss(real, fake).item() == pytest.approx(judged.item(), rel=1e-5)


@pytest.mark.parametrize("adversarial", ADVERSARIAL)
def test_losses_of_batches_of_one_domain_add_up_to_that_of_a_batch_of_both(adversarial):
    module = module_of(adversarial=adversarial)
    module.log = module.log_dict = lambda *args, **options: None
    real, fake = images_of_both()
    for loss in (module.generator_loss, module.discriminator_loss):
        alone = [loss({n: real[n]}, {1 - n: fake[1 - n]}) for n in (0, 1)]
        assert sum(alone).item() == pytest.approx(loss(real, fake).item(), rel=1e-5)


@pytest.mark.slow
def test_gradients_of_batches_of_one_domain_are_added_up_before_a_step(table, tmp_path):
    class Watch(Callback):
        steps, pending = (), ()

        def on_train_batch_end(self, trainer, module, *args):
            self.steps += (trainer.global_step,)
            self.pending += (any(weight.grad is not None for weight in module.parameters()),)

    watch = Watch()
    data = data_module(table, balanced=True, batch_size=1)
    train(module_of(accumulate_batches=2), data, tmp_path, callbacks=[watch], limit_train_batches=5, max_epochs=1)
    assert watch.steps == (0, 2, 2, 4, 6)
    assert watch.pending == (True, False, True, False, False)


@pytest.mark.slow
@pytest.mark.parametrize("adversarial", ["hinge", "logistic", "wasserstein"])
def test_every_game_can_be_played(table, tmp_path, adversarial):
    trainer = train(module_of(adversarial=adversarial), data_module(table), tmp_path, max_epochs=1)
    assert all(math.isfinite(value) for value in trainer.callback_metrics.values())


def test_a_run_goes_on_exactly_where_it_stopped(table, tmp_path, finished):
    path = tmp_path / "run.yaml"
    stopped = calling(StopAt, hook="on_train_batch_end", call=2) | {"max_epochs": TRAINER["max_epochs"]}
    with pytest.raises(SIGTERMException):
        fit(recipe(path, table, trainer=stopped))
    assert_same_weights(fit(recipe(path, table), "--ckpt_path", "last"), finished)


class Rates(Callback):
    def __init__(self, stop_after=None):
        self.found, self.stop_after = [], stop_after

    def on_train_batch_end(self, trainer, module, *args):
        self.found.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])
        trainer.should_stop = len(self.found) == self.stop_after


PUBLISHED = [1, 1, 1, 1, 0.75, 0.5, 0.25, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "end", "expected"),
    [
        ({}, {"max_epochs": 2}, PUBLISHED),
        ({}, {"max_epochs": -1, "max_steps": 16}, PUBLISHED),  # of two optimisers
        ({"accumulate_batches": 2}, {"max_epochs": -1, "max_steps": 8}, PUBLISHED),
        ({"decay_from": 0.0}, {"max_epochs": 2}, [0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0]),
        ({"decay_from": 1.0}, {"max_epochs": 2}, [1] * 8),
    ],
)
def test_the_learning_rate_falls_to_zero_over_the_last_part_of_the_run(table, tmp_path, options, end, expected):
    rates = Rates()
    alike = {"limit_train_batches": 4, "limit_val_batches": 0, "callbacks": [rates]}
    train(module_of(lr=1.0, **options), data_module(table), tmp_path, **alike, **end)
    for found in zip(*rates.found, strict=True):
        assert found == pytest.approx(expected)


@pytest.mark.slow
def test_the_learning_rate_of_a_run_without_an_end_is_constant(table, tmp_path):
    rates = Rates(stop_after=3)
    train(module_of(), data_module(table), tmp_path, max_epochs=-1, callbacks=[rates])
    assert rates.found == [[2e-4, 2e-4]] * 3


def test_a_fall_outside_the_run_is_refused():
    with pytest.raises(ValueError, match="decay_from is 100; use 0 to 1, a share of the run"):
        module_of(decay_from=100)


class Witness(Callback):
    """Writes what every process saw and has at the end."""

    def __init__(self):
        self.domains = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.domains.append(batch["label"].unique().tolist())

    def on_train_end(self, trainer, module):
        found = {"domains": self.domains, "weights": module.state_dict(), "logged": dict(trainer.callback_metrics)}
        torch.save(found, Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.pt")


@pytest.mark.ddp
def test_two_processes_stay_in_step_whichever_domains_their_batches_hold(table, tmp_path):
    data = data_module(table, batch_size=2, balanced=True)
    alike = {"accelerator": "cpu", "callbacks": [Witness()], "max_epochs": 2}
    strategy = DDPStrategy(start_method="spawn", find_unused_parameters=True, timeout=timedelta(minutes=2))
    train(module_of(), data, tmp_path, devices=2, strategy=strategy, **alike)
    ours, theirs = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    pairs = list(zip(ours["domains"], theirs["domains"], strict=True))
    assert ([1], [0]) in pairs
    assert ([0, 1], [1]) in pairs
    own = ("pools.",)  # each process remembers its own images
    weights = {name: weight for name, weight in ours["weights"].items() if not name.startswith(own)}
    assert [name for name, weight in weights.items() if not torch.equal(weight, theirs["weights"][name])] == []

    module = module_of()
    module.load_state_dict(ours["weights"])
    (alone,) = Trainer(**TRAINER, enable_checkpointing=False).validate(module, datamodule=data, verbose=False)
    assert alone.keys() == {"val/cycle:healthy", "val/cycle:ill"}  # of which each process has seen one
    for found in (ours, theirs):
        assert {name: found["logged"][name].item() for name in alone} == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_names": ("a", "b", "c")}, "a translator has two domains"),
        ({"label_kind": "multi"}, "label_kind 'multi'; a translator has two domains"),
    ],
)
def test_other_than_two_domains_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CycleGANConfig.tiny(), **change)


@pytest.mark.parametrize(
    ("images", "to", "message"),
    [
        (torch.rand(1, 1, 16, 16), "sick", "label 'sick' is unknown; use 0-1 or one of 'healthy', 'ill'"),
        (torch.full((1, 1, 16, 16), torch.nan), "ill", "images hold NaN or infinite values"),
        (torch.rand(0, 1, 16, 16), "ill", r"images have shape \(0, 1, 16, 16\)"),
        ([[0.5]], "ill", r"images are \[\[0.5\]\]; give a tensor \(B, 1, H, W\)"),
        (torch.rand(1, 3, 16, 16), "ill", r"images have shape \(1, 3, 16, 16\); expected \(B, 1, H, W\)"),
        (torch.full((1, 1, 16, 16), 255.0), "ill", r"floating point in \[0, 1\]"),
        (torch.rand(1, 1, 18, 16), "ill", "sides that are multiples of 4"),
    ],
)
def test_images_and_domains_that_do_not_fit_are_refused(images, to, message):
    with pytest.raises(ValueError, match=message):
        CycleGANTranslator(CycleGANConfig.tiny()).translate(images, to)


def test_a_checkpoint_of_another_family_is_refused(tmp_path):
    from tests.tiny import generator

    with pytest.raises(ValueError, match=r"holds a medfusion model; load it with medgen\.load"):
        CycleGANTranslator.from_pretrained(generator().save_pretrained(tmp_path / "model"))
