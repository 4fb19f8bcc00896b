import math
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from medgen.families.cyclegan.modules import CycleGANModule
from medgen.families.cyclegan.translator import Translator, TranslatorConfig
from tests.test_recipes import KeepWeights, StopAt, calling, start
from tests.tiny import TRAINER, assert_same_weights, data_module, fit, train, write_recipe

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {"discriminator_width": 4, "discriminator_layers": 1, "pool_size": 4}
MODULE = "medgen.families.cyclegan.modules.CycleGANModule"


def module_of(**options):
    torch.manual_seed(0)
    return CycleGANModule(TranslatorConfig.tiny(), **(SMALL | options))


def recipe(path, table, **changes):
    return write_recipe(path, MODULE, table, config=TranslatorConfig.tiny(), **(SMALL | changes))


@pytest.fixture(scope="module")
def finished(table, tmp_path_factory):
    return fit(recipe(tmp_path_factory.mktemp("cyclegan") / "run.yaml", table))


def test_a_run_ends_in_a_translator(finished):
    translator = Translator.from_pretrained(finished / "published")
    images = torch.rand(3, 1, 16, 24)
    ill = translator.translate(images, "ill")
    assert (ill.shape, ill.dtype) == (images.shape, torch.float32)
    assert 0 <= ill.min() < ill.max() <= 1
    assert not torch.allclose(ill, translator.translate(images, "healthy"), atol=1e-3)
    torch.testing.assert_close(translator.translate(images, 1, batch_size=1), ill, rtol=0, atol=1e-5)


def test_it_learns_that_what_is_translated_back_is_as_it_was(table, tmp_path):
    module = module_of(lr=2e-3)
    before = train(module, data_module(table, balanced=True), tmp_path, max_epochs=1).callback_metrics
    after = train(module, data_module(table, balanced=True), tmp_path, max_epochs=12).callback_metrics
    for name in ("healthy", "ill"):
        assert after[f"val/cycle:{name}"] < 0.7 * before[f"val/cycle:{name}"]


def test_a_batch_of_one_domain_changes_nothing(table, tmp_path):
    module = module_of()
    data = data_module(table, where={"label": ["healthy"]})
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    train(module, data, tmp_path, max_epochs=1, limit_train_batches=2, limit_val_batches=0)
    changed = [name for name, weight in module.state_dict().items() if not torch.equal(weight, before[name])]
    assert changed == ["batches_seen"]


def test_the_published_loss_is_that_of_the_paper(table):
    module = module_of(identity_weight=0.0)
    module.log = module.log_dict = lambda *args, **options: None
    real, fake = (
        [torch.rand(2, 1, 16, 16), torch.rand(3, 1, 16, 16)],
        [torch.rand(3, 1, 16, 16), torch.rand(2, 1, 16, 16)],
    )
    networks, critics = module.translator.to_domain, module.discriminators
    expected = sum((critics[i](fake[i]) - 1).square().mean() for i in (0, 1))
    expected += 10 * (networks[1](fake[0]) - real[1]).abs().mean() + 10 * (networks[0](fake[1]) - real[0]).abs().mean()
    assert module.generator_loss(real, fake).item() == pytest.approx(expected.item(), rel=1e-5)
    judged = sum(((critics[i](real[i]) - 1).square().mean() + critics[i](fake[i]).square().mean()) / 2 for i in (0, 1))
    assert module.discriminator_loss(real, fake).item() == pytest.approx(judged.item(), rel=1e-5)


@pytest.mark.parametrize("adversarial", ["hinge", "logistic", "wasserstein"])
def test_every_game_can_be_played(table, tmp_path, adversarial):
    trainer = train(module_of(adversarial=adversarial), data_module(table), tmp_path, max_epochs=1)
    assert all(math.isfinite(value) for value in trainer.callback_metrics.values())


def test_a_run_goes_on_exactly_where_it_stopped(table, tmp_path, finished):
    path = tmp_path / "run.yaml"
    with pytest.raises(SIGTERMException):
        fit(recipe(path, table, trainer=calling(StopAt, hook="on_train_batch_end", call=2)))
    assert_same_weights(fit(recipe(path, table), "--ckpt_path", "last"), finished)


@pytest.mark.ddp
def test_two_processes_stay_in_step(table, tmp_path):
    shared = TRAINER | {"devices": 2, "strategy": "ddp_find_unused_parameters_true", "max_epochs": 2}
    process = start(recipe(tmp_path / "run.yaml", table, trainer=calling(KeepWeights) | shared))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    ours, theirs = (torch.load(tmp_path / "run" / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    own = ("pools.",)  # each process remembers its own images
    assert [k for k, w in ours.items() if not k.startswith(own) and not torch.equal(w, theirs[k])] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_names": ("a", "b", "c")}, "a translator has two domains"),
        ({"label_kind": "multi"}, "label_kind 'multi'; a translator has two domains"),
    ],
)
def test_other_than_two_domains_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TranslatorConfig.tiny(), **change)


@pytest.mark.parametrize(
    ("images", "to", "message"),
    [
        (torch.rand(1, 1, 16, 16), "sick", "label 'sick' is unknown; use 0-1 or one of 'healthy', 'ill'"),
        (torch.rand(1, 3, 16, 16), "ill", r"images have shape \(1, 3, 16, 16\); expected \(n, 1, H, W\)"),
        (torch.full((1, 1, 16, 16), 255.0), "ill", r"floating point in \[0, 1\]"),
        (torch.rand(1, 1, 18, 16), "ill", "sides that are multiples of 4"),
    ],
)
def test_images_and_domains_that_do_not_fit_are_refused(images, to, message):
    with pytest.raises(ValueError, match=message):
        Translator(TranslatorConfig.tiny()).translate(images, to)


def test_a_checkpoint_of_another_family_is_refused(tmp_path):
    from tests.tiny import generator

    with pytest.raises(ValueError, match=r"holds a medfusion model; load it with medgen\.load"):
        Translator.from_pretrained(generator().save_pretrained(tmp_path / "model"))
