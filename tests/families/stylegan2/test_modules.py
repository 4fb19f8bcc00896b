"""Training beyond the contract: the four phases, adaptive augmentation, exact resume, several processes, bad input."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins import Precision
from lightning.pytorch.utilities.exceptions import SIGTERMException
from safetensors.torch import load_file

import medgen
from medgen.families.stylegan2.generator import StyleGAN2Config
from medgen.families.stylegan2.modules import StyleGAN2Module, adapted
from tests.tiny import NAMES, TRAINER, assert_same_weights, data_module, fit, train, write_recipe
from tests.training.test_recipes import KeepWeights, StopAt, calling, start

pytestmark = pytest.mark.filterwarnings("ignore")

MODULE = "medgen.families.stylegan2.modules.StyleGAN2Module"
OFTEN = {"r1_interval": 2, "path_interval": 3, "ada_interval": 2, "label_layers": 2, "ada_kimg": 0.05}


class Scaled(Precision):
    """What float16 has on a GPU, as far as it can be had here."""

    precision = "16-mixed"


def config(kind="single", **changes):
    return replace(StyleGAN2Config.tiny(), **({"label_kind": kind, "label_names": NAMES[kind]} | changes))


def module_of(kind="single", config_changes=None, **options):
    torch.manual_seed(0)
    return StyleGAN2Module(config(kind, **(config_changes or {})), **(OFTEN | options))


def recipe(path: Path, table, **changes):
    return write_recipe(path, MODULE, table, config=config(), **(OFTEN | changes))


@pytest.fixture(scope="module")
def finished(table, tmp_path_factory):
    """The folder of a run of two epochs."""
    return fit(recipe(tmp_path_factory.mktemp("stylegan2") / "run.yaml", table))


def steps_of(optimizer):
    return {int(state["step"]) for state in optimizer.state.values()}


@pytest.mark.slow
@pytest.mark.parametrize("path_weight", [0.0, 2.0])
def test_regularisation_is_lazy_and_its_optimisers_make_up_for_it(table, tmp_path, path_weight):
    module = module_of(path_weight=path_weight)
    train(module, data_module(table), tmp_path, max_epochs=1)  # 6 batches
    generator, discriminator = module.trainer.optimizers
    assert max(steps_of(generator)) == 6 + (2 if path_weight else 0)  # not every weight has a gradient in every phase
    assert max(steps_of(discriminator)) == 6 + 3
    share = 3 / 4 if path_weight else 1
    assert generator.param_groups[0]["lr"] == pytest.approx(0.0025 * share)
    assert generator.param_groups[0]["betas"] == pytest.approx((0.0, 0.99**share))
    assert discriminator.param_groups[0]["betas"] == pytest.approx((0.0, 0.99 ** (2 / 3)))


@pytest.mark.slow
def test_every_phase_stays_finite_in_bfloat16(table, tmp_path):
    module = module_of(augment="bgcfnc", augment_p=0.8, config_changes={"image_size": (32, 32)})
    logged = []
    module.log = lambda name, value, **options: logged.append((name, float(value)))
    train(module, data_module(table, image_size=32), tmp_path, max_epochs=1, precision="bf16-mixed")
    assert {"train/loss_g", "train/loss_d", "train/r1", "train/path_length"} <= {name for name, _ in logged}
    assert all(math.isfinite(value) for _, value in logged)
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_what_needs_float32_has_it_under_bfloat16():
    module = module_of()
    images, vector = torch.rand(4, 1, 16, 16), torch.eye(2).repeat(2, 1)
    with torch.autocast("cpu", torch.bfloat16):
        generated, styles = module.generate(4, vector)
        assert styles.dtype == generated.dtype == torch.float32
        assert module.discriminator(images, vector).dtype == torch.float32
        assert module.augment(images.bfloat16()).dtype == torch.float32


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_does_no_harm(table, tmp_path):
    module = module_of(r1_interval=100, path_weight=0.0)
    loss = module.generator_loss
    module.generator_loss = lambda real, vector: loss(real, vector) * float("nan")
    before = module.generator.synthesis.start.clone()
    train(module, data_module(table), tmp_path, max_epochs=1)
    assert module.generator.synthesis.start.isfinite().all()
    torch.testing.assert_close(module.generator.synthesis.start, before)


@pytest.mark.slow
def test_micro_batches_add_up_to_the_batch(table, tmp_path):
    gradients = {}
    for size in (None, 1, 2):
        module = module_of("none", micro_batch=size, group=1)
        module.discriminator_loss = lambda real, vector, module=module: module.discriminator(real, vector).mean()
        module._note_signs(torch.ones(1))
        kept = gradients[size] = {}

        def keep(optimizer, kept=kept, module=module):
            for name, weight in module.discriminator.named_parameters():
                if weight.grad is not None:
                    kept.setdefault(name, weight.grad.clone())

        module.on_before_optimizer_step = keep
        module.generator_loss = lambda real, vector, module=module: 0 * module.generator.synthesis.start.sum()
        train(module, data_module(table, "none"), tmp_path, max_steps=2)
    for size in (1, 2):
        for name, gradient in gradients[None].items():
            torch.testing.assert_close(gradients[size][name], gradient, rtol=1e-4, atol=1e-6)


def test_augmentation_follows_the_discriminator():
    p = torch.tensor(0.3)
    assert adapted(p, torch.tensor(0.9), 0.6, 0.1) == pytest.approx(0.4)
    assert adapted(p, torch.tensor(0.1), 0.6, 0.1) == pytest.approx(0.2)
    assert adapted(p, torch.tensor(0.6), 0.6, 0.1) == pytest.approx(0.3)
    assert adapted(p, torch.tensor(1.0), 0.6, 5.0) == 1  # never more than always
    assert adapted(p, torch.tensor(0.0), 0.6, 5.0) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("sign", "expected"), [(1.0, 0.25 + 3 * 8 / 50), (-1.0, 0.0)])
def test_the_chance_moves_every_few_batches_by_the_images_seen(table, tmp_path, sign, expected):
    module = module_of(augment_p=0.25)
    module._note_signs = lambda logits: module.signs.add_(torch.tensor([sign, 1.0]))
    train(module, data_module(table), tmp_path, max_epochs=1)  # 3 changes, in 2 batches of 4 images each
    assert float(module.augment.p) == pytest.approx(expected)


@pytest.mark.slow
def test_without_a_target_the_chance_stays(table, tmp_path):
    module = module_of(augment_p=0.25, ada_target=None)
    train(module, data_module(table), tmp_path, max_epochs=1)
    assert float(module.augment.p) == 0.25


def test_each_step_has_the_weight_that_makes_up_for_how_seldom_it_is(table, tmp_path):
    module, losses = module_of(), []
    start, out = module.generator.synthesis.start, module.discriminator.out.bias
    module.generator_loss = lambda real, vector: 1 + 0 * start.sum()
    module.path_length_loss = lambda n, vector: 2 + 0 * start.sum()
    module.discriminator_loss = lambda real, vector: 3 + 0 * out.sum()
    module.r1_loss = lambda real, vector: 5 + 0 * out.sum()
    module._note_signs(torch.ones(1))
    backward = module.manual_backward
    module.manual_backward = lambda loss: (losses.append(float(loss)), backward(loss))
    train(module, data_module(table), tmp_path, max_epochs=1, limit_train_batches=4)
    r1, path = 2 * 5, 3 * 2  # by their intervals
    assert losses == [1, path, 3, r1, 1, 3, 1, 3, r1, 1, path, 3]


def test_the_discriminator_sees_augmented_images_only(monkeypatch):
    module, seen = module_of(gamma=1.0), []
    monkeypatch.setattr(module, "log", lambda *arguments, **options: None)
    monkeypatch.setattr(module.augment, "forward", lambda images: images * 0 + 0.25)
    module.discriminator.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    real, vector = torch.rand(4, 1, 16, 16), torch.eye(2).repeat(2, 1)
    for loss, count in ((module.generator_loss, 4), (module.discriminator_loss, 8), (module.r1_loss, 4)):
        seen.clear()
        loss(real, vector)
        assert len(torch.cat(seen)) == count
        assert (torch.cat(seen) == 0.25).all()


@pytest.mark.parametrize("images", [4, 8])
def test_drawn_and_real_images_are_judged_as_if_alone(monkeypatch, images):
    module, logged = module_of(augment="none"), {}
    monkeypatch.setattr(module, "log", lambda name, value, **options: logged.update({name: value}))
    fake, real = torch.rand(2, images, 1, 16, 16)
    vector = torch.eye(2).repeat(images // 2, 1)
    monkeypatch.setattr(module, "generate", lambda n, vector: (fake, None))
    loss = module.discriminator_loss(real, vector)
    alone = [module.discriminator(part, vector) for part in (fake, real)]
    torch.testing.assert_close(loss, module.logistic_loss(*alone))
    means = torch.stack([logged["train/logit_fake"], logged["train/logit_real"]])
    torch.testing.assert_close(means, torch.stack([part.mean() for part in alone]).detach())


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_a_share_of_images_is_trained_without_label(table, tmp_path, dropout):
    module, vectors = module_of(label_dropout=dropout, config_changes={"needs_label": dropout == 0}), []
    module.discriminator.label.register_forward_pre_hook(lambda _, arguments: vectors.append(arguments[1]))
    train(module, data_module(table), tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    assert len(torch.cat(vectors)) == 4 + 8 + 4  # of the generator's, the discriminator's and R1's phase
    assert all((vector.sum(1) == 1 - dropout).all() for vector in vectors)


@pytest.mark.slow
def test_training_ends_after_so_many_images(table, tmp_path):
    module = module_of(kimg=0.032)
    train(module, data_module(table), tmp_path, max_epochs=-1)
    assert int(module.batches_seen) == 8  # of 4 images


@pytest.mark.slow
def test_a_run_that_saw_enough_images_trains_no_more_when_resumed(table, tmp_path, caplog):
    path = recipe(tmp_path / "run.yaml", table, kimg=0.02, trainer={"max_epochs": -1})
    before = torch.load(fit(path) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    shutil.rmtree(tmp_path / "run" / "published")  # as of a run that was killed before it was written
    after = torch.load(fit(path, "--ckpt_path", "last") / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert after["batches_seen"] == before["batches_seen"] == 5
    assert "this run has seen 0.02 thousand images, and kimg is 0.02: it is done" in caplog.text
    published = medgen.load(tmp_path / "run" / "published")
    assert torch.equal(published.synthesis.start, before["ema.module.synthesis.start"])


@pytest.mark.slow
def test_images_are_counted_as_they_were_seen_when_batches_change(table, tmp_path):
    path = recipe(tmp_path / "run.yaml", table, trainer={"max_epochs": 1})  # 6 batches of 4
    fit(path)
    path = recipe(tmp_path / "run.yaml", table, kimg=0.048, data={"batch_size": 8}, trainer={"max_epochs": -1})
    state = torch.load(fit(path, "--ckpt_path", "last") / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert (int(state["images_seen"]), int(state["batches_seen"])) == (48, 6 + 3)


@pytest.mark.slow
def test_without_noise_inputs_nothing_of_an_image_is_noise(table, tmp_path):
    module = module_of(noise_inputs=False)
    for layer in module.generator.synthesis.modules():
        if hasattr(layer, "noise_strength"):
            layer.noise_strength.data.fill_(0.5)  # as in a model that training starts from
    train(module, data_module(table), tmp_path, max_epochs=1)
    state = {name: value for name, value in module.state_dict().items() if name.endswith("noise_strength")}
    assert len(state) == 2 * 5  # of the generator and of its average
    assert not any(value.any() for value in state.values())
    with torch.random.fork_rng():
        assert torch.equal(module.published.sample(2, seed=0), module.published.sample(2, seed=0, noise_mode="none"))


@pytest.mark.slow
def test_the_average_style_follows_the_styles():
    module = module_of("none")
    z = torch.randn(64, 16)
    w = module.generator.mapping(z, None)
    for _ in range(2000):
        module.styles(z, None)
    torch.testing.assert_close(module.generator.w_avg, w.mean(0), rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["single", "multi", "continuous", "none"])
def test_it_trains_on_every_kind_of_label(table, tmp_path, kind):
    module = module_of(kind)
    train(module, data_module(table, kind), tmp_path, max_epochs=1, limit_train_batches=2)
    label = {"single": "ill", "multi": ["edema"], "continuous": [0.5], "none": None}[kind]
    assert module.published.sample(2, label, seed=0).isfinite().all()


@pytest.mark.slow
def test_it_trains_in_colour_and_other_proportions(table, tmp_path):
    module = module_of(config_changes={"channels": 3, "image_size": (16, 24)})
    train(module, data_module(table, image_size=(16, 24), channels=3), tmp_path, max_epochs=1, limit_train_batches=3)
    assert module.published.sample(2, seed=0).shape == (2, 3, 16, 24)


# Stopping and several processes


def test_a_run_goes_on_exactly_where_it_stopped(table, tmp_path, finished):
    path = tmp_path / "run.yaml"
    with pytest.raises(SIGTERMException):
        fit(recipe(path, table, trainer=calling(StopAt, hook="on_train_batch_end", call=2)))
    folder = fit(recipe(path, table), "--ckpt_path", "last")
    assert_same_weights(folder, finished)


@pytest.mark.ddp
def test_two_processes_stay_in_step(table, tmp_path):
    shared = {"devices": 2, "strategy": "ddp_find_unused_parameters_true", "max_epochs": 2}
    process = start(recipe(tmp_path / "run.yaml", table, augment_p=0.5, trainer=calling(KeepWeights) | shared))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    ours, theirs = (torch.load(tmp_path / "run" / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert [name for name, weight in ours.items() if not torch.equal(weight, theirs[name])] == []
    assert ours["batches_seen"] == 6
    assert ours["images_seen"] == 6 * 2 * 4
    assert ours["augment.p"] != 0.5
    assert ours["path_mean"] != 0


# What is published


def test_the_discriminator_is_published_beside_the_generator(finished):
    state = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    published = load_file(finished / "published" / "discriminator.safetensors")
    assert published
    assert all(torch.equal(weight, state[f"discriminator.{name}"]) for name, weight in published.items())
    generator = medgen.load(finished / "published")
    assert torch.equal(generator.synthesis.start, state["ema.module.synthesis.start"])


# Bad input


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"style_mixing": 1.5}, "style_mixing is 1.5; it is a probability"),
        ({"augment_p": -0.1}, "augment_p is -0.1; it is a probability"),
        ({"label_dropout": 2.0}, "label_dropout is 2.0; it is a probability"),
        ({"r1_interval": 0}, "r1_interval is 0; use at least 1"),
        ({"group": 0}, "group is 0; use at least 1"),
        ({"micro_batch": -4}, "micro_batch is -4; use at least 1"),
        ({"lr": -1.0}, "lr is -1.0; use a number above 0"),
        ({"ada_kimg": 0.0}, "ada_kimg is 0.0; use a number above 0"),
        ({"gamma": -1.0}, "gamma is -1.0; use at least 0"),
        ({"path_decay": 5.0}, "path_decay is 5.0; use a number above 0, at most 1"),
        ({"config_changes": {"base": (0, 0)}}, r"base is \(0, 0\); expected \(height, width\)"),
        ({"augment": "all"}, "augmentation 'all' is unknown; use one of none, blit"),
        ({"augment": {"flip": 1.0}}, "transform flip is unknown; there are xflip"),
        ({"frozen_layers": 1}, "frozen_layers freezes what training starts from; give init_from"),
        ({"frozen_layers": 3, "init_from": "x"}, "frozen_layers is 3; use 0 to 2"),
    ],
)
def test_arguments_out_of_range_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        module_of(**options)


@pytest.mark.parametrize(
    ("options", "data", "text"),
    [
        ({"group": 3}, {}, "data.batch_size is 4, which group 3 of minibatch deviation does not divide"),
        ({"micro_batch": 3}, {}, "data.batch_size is 4, which micro_batch 3 does not divide"),
        ({"micro_batch": 2, "group": 4}, {}, "micro_batch is 2, which group 4 of minibatch deviation does not divide"),
        ({"micro_batch": 2, "group": 2}, {"drop_last": False}, "data.drop_last is false"),
    ],
)
def test_batches_that_deviation_cannot_be_computed_of_are_refused(table, tmp_path, options, data, text):
    with pytest.raises(ValueError, match=text):
        train(module_of(**options), data_module(table, **data), tmp_path)


def test_a_scaler_of_gradients_is_refused(table, tmp_path):
    module = module_of()
    with pytest.raises(ValueError, match=r"trainer.precision is '16-mixed'.*use bf16-mixed"):
        train(module, data_module(table), tmp_path, plugins=[Scaled()], precision=None)


def test_validation_says_what_the_discriminator_finds_of_unseen_images(table, tmp_path):
    from lightning.pytorch import Trainer

    module = module_of()
    Trainer(**TRAINER).validate(module, datamodule=data_module(table), verbose=False)
    assert math.isfinite(module.trainer.callback_metrics["val/logit_real"])
