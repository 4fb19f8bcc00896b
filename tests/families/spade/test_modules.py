"""Training beyond the contract: both stages, losses, priors of codes, exact resume, several processes, bad input."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from safetensors.torch import load_file

import medgen
from medgen.checkpoint import About
from medgen.families.spade.generator import SPADEConfig, SPADEGenerator
from medgen.families.spade.modules import LabelMapModule, SPADEModule, check_batches, fit_priors, mixed_codes
from medgen.foreign.convert import convert
from medgen.nn.label_vector import label_vector
from tests.tiny import NAMES, assert_same_weights, data_module, fit, train, write_recipe
from tests.training.test_recipes import KeepWeights, StopAt, calling, start

pytestmark = pytest.mark.filterwarnings("ignore")

HOME = "medgen.families.spade.modules"
SMALL = {"perceptual": None, "discriminator_width": 4, "discriminator_layers": 2}
MASKS = {"mask_column": "mask", "mask_classes": 3}


def config(kind="single", **changes):
    return replace(SPADEConfig.tiny(), **({"label_kind": kind, "label_names": NAMES[kind]} | changes))


def data(table, kind="single", **options):
    return data_module(table, kind, **(MASKS | options))


def module_of(kind="single", config_changes=None, **options):
    torch.manual_seed(0)
    changes = {"map_dim": 0} | (config_changes or {})
    return SPADEModule(config(kind, **changes), **(SMALL | options))


@pytest.fixture(scope="module")
def maps(table, tmp_path_factory):
    """The checkpoint of the first stage."""
    path = tmp_path_factory.mktemp("maps") / "run.yaml"
    folder = fit(write_recipe(path, f"{HOME}.LabelMapModule", table, config=config(), data=MASKS))
    return str(folder / "checkpoints" / "last.ckpt")


def recipe(path: Path, table, maps, **changes):
    trainer = changes.pop("trainer", {})
    arguments = {"label_maps": maps, **SMALL, **changes}
    return write_recipe(path, f"{HOME}.SPADEModule", table, config=config(), data=MASKS, trainer=trainer, **arguments)


@pytest.fixture(scope="module")
def finished(table, maps, tmp_path_factory):
    """The folder of a run of two epochs of the second stage."""
    return fit(recipe(tmp_path_factory.mktemp("spade") / "run.yaml", table, maps))


# The first stage


@pytest.mark.slow
def test_the_autoencoder_of_label_maps_learns(table, tmp_path):
    torch.manual_seed(0)
    module = LabelMapModule(config(map_width=8, map_dim=16), kl_weight=0.01, lr=0.01, lr_shape="constant")
    trainer = train(module, data(table), tmp_path, max_epochs=1)
    before = trainer.callback_metrics["val/accuracy"]
    trainer = train(module, data(table), tmp_path, max_epochs=15)
    assert trainer.callback_metrics["val/accuracy"] > before + 0.1
    assert 0 < trainer.callback_metrics["val/dice"] <= 1


def test_without_an_autoencoder_in_the_config_there_is_nothing_to_train():
    with pytest.raises(ValueError, match=r"config\.map_dim is 0: there is no autoencoder of label maps to train"):
        LabelMapModule(config(map_dim=0))


# The second stage


def test_the_autoencoder_of_label_maps_is_taken_over_and_left_alone(finished, maps):
    published = medgen.load(finished / "published")
    first = torch.load(maps, weights_only=True)["state_dict"]
    for name, weight in published.map_vae.state_dict().items():
        assert torch.equal(weight, first[f"map_vae.{name}"])


def test_what_is_published_draws_maps_styles_and_images(finished):
    generator = medgen.load(finished / "published")
    images = generator.sample(3, "ill", seed=0)
    assert images.shape == (3, 1, 16, 16)
    assert generator.sample_masks(3, "ill", seed=0).unique().numel() > 1


def test_discriminators_are_published_beside_the_generator(finished):
    state = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    published = load_file(finished / "published" / "discriminator.safetensors")
    assert published
    assert all(torch.equal(weight, state[f"discriminator.{name}"]) for name, weight in published.items())


def test_the_priors_are_those_of_the_published_encoders_on_the_training_images(finished, table):
    generator = medgen.load(finished / "published")
    before = {name: weight.clone() for name, weight in generator.style_prior.state_dict().items()}
    assert before["log_spread"].shape == (3, 8)
    images = data(table).dataset("train")
    batch = images.__getitems__(list(range(len(images))))
    codes = generator.encode_style(batch["image"]).values
    vectors = label_vector(batch["label"], generator.label_space, len(images), torch.device("cpu"))
    found, spread = generator.style_prior.moments(vectors, len(images))
    for k in (0, 1):
        of_class = batch["label"] == k
        torch.testing.assert_close(found[of_class][0], codes[of_class].mean(0), rtol=0, atol=1e-4)
        torch.testing.assert_close(spread[of_class][0], codes[of_class].std(0), rtol=0, atol=1e-4)
    fit_priors(generator, data(table), seed=3)
    for name, weight in generator.style_prior.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("runs", [[{"val_check_interval": 0.5}], [{}, {}]], ids=["within an epoch", "twice"])
def test_the_priors_are_measured_again_once_weights_have_moved(table, tmp_path, runs):
    module = module_of(lr=1e-2, ema_decay=0.5)
    for options in runs:
        train(module, data(table), tmp_path, max_epochs=1, **options)
    generator = module.published
    published = generator.style_prior.mean.clone()
    fit_priors(generator, data(table))
    torch.testing.assert_close(published, generator.style_prior.mean, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_generator_learns_to_draw_its_maps(table, tmp_path):
    module = module_of(config_changes={"style": "none"}, pixel_weight=0.0, feature_weight=10.0, lr=4e-3, ema_decay=0.9)
    before = train(module, data(table), tmp_path, max_epochs=1).callback_metrics["val/l1"]
    after = train(module, data(table), tmp_path, max_epochs=12).callback_metrics["val/l1"]
    assert after < 0.8 * before


@pytest.mark.slow
@pytest.mark.parametrize("adversarial", ["hinge", "least_squares", "logistic", "wasserstein"])
def test_every_game_can_be_played(table, tmp_path, adversarial):
    module = module_of(adversarial=adversarial)
    trainer = train(module, data(table), tmp_path, max_epochs=1, limit_train_batches=2)
    assert all(value.isfinite() for value in trainer.callback_metrics.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "options", "terms"),
    [
        ({}, {}, {"adversarial", "features", "kl"}),
        ({"style": "none"}, {"feature_weight": 0.0}, {"adversarial"}),
        ({}, {"pixel_weight": 100.0}, {"adversarial", "features", "kl", "pixel"}),
        ({"style": "inside", "image_size": (32, 32)}, {}, {"adversarial", "features"}),
        ({"style": "inside", "image_size": (32, 32)}, {"mixed_weight": 1.0}, {"adversarial", "features", "mixed"}),
        ({"style": "drawn"}, {}, {"adversarial", "features"}),
        ({"instance_edges": True, "norm": "group"}, {}, {"adversarial", "features", "kl"}),
    ],
)
def test_the_loss_has_the_terms_that_were_asked_for(table, tmp_path, changes, options, terms):
    module = module_of(config_changes=changes, **options)
    images = data(table, image_size=changes.get("image_size", (16, 16)))
    trainer = train(module, images, tmp_path, max_epochs=1, limit_train_batches=1)
    logged = {name.removeprefix("train/g_") for name in trainer.callback_metrics if name.startswith("train/g_")}
    assert logged == terms


def test_mixed_codes_have_the_entries_of_the_codes_and_are_none_of_them():
    codes = torch.randn(6, 40)
    mixed = mixed_codes(codes)
    assert torch.equal(mixed.sort(0).values, codes.sort(0).values)
    assert not any((row == codes).all(1).any() for row in mixed)


@pytest.mark.slow
def test_discriminators_judge_images_of_mixed_styles_with_their_maps(table, tmp_path):
    module = module_of(mixed_weight=1.0)
    train(module, data(table), tmp_path, max_epochs=1, limit_train_batches=1)
    module.log = lambda *args, **options: None
    semantic = module.generator.semantic(torch.randint(3, (4, 16, 16)))
    fake, real, mixed = torch.rand(3, 4, 1, 16, 16)
    without, alike, other = (module.discriminator_loss(semantic, fake, real, x) for x in (None, fake, mixed))
    torch.testing.assert_close(alike, 2 * without)
    assert not torch.isclose(other, alike)


@pytest.mark.slow
def test_the_perceptual_loss_is_taken_and_named(table, tmp_path):
    module = module_of(perceptual="efficientnet_lite1", perceptual_levels=2)
    trainer = train(module, data(table), tmp_path, max_epochs=1, limit_train_batches=1)
    assert trainer.callback_metrics["train/g_perceptual"] > 0
    assert module.published.about.trained_with == module.trained_with == ("efficientnet_lite1",)
    checkpoint = {"trained_with": ["another"]}
    module.on_load_checkpoint(checkpoint)
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["trained_with"] == ["another", "efficientnet_lite1"]
    assert not any("efficientnet" in name or "perceptual" in name for name in module.state_dict())


@pytest.mark.slow
def test_gradients_can_be_accumulated(table, tmp_path):
    module = module_of(accumulate_batches=4)
    steps = train(module, data(table), tmp_path, max_epochs=1, limit_val_batches=0).global_step
    assert (steps, int(module.batches_seen)) == (4, 6)  # two of each optimiser: the last of the epoch is of two batches


@pytest.mark.slow
def test_gradients_can_be_clipped(table, tmp_path):
    module = module_of(clip_norm=1e-15)  # so far below Adam's epsilon that nothing moves
    before = {name: weight.clone() for name, weight in module.named_parameters()}
    train(module, data(table), tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    for part in ("generator.synthesis", "generator.style_encoder", "discriminator"):
        for name, weight in module.get_submodule(part).named_parameters():
            torch.testing.assert_close(weight, before[f"{part}.{name}"], rtol=0, atol=1e-8)


@pytest.mark.slow
def test_four_batches_stay_finite_in_bfloat16(table, tmp_path):
    module = module_of()
    train(module, data(table), tmp_path, max_epochs=1, limit_train_batches=4, precision="bf16-mixed")
    assert all(value.isfinite().all() for value in module.state_dict().values() if value.is_floating_point())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["multi", "continuous", "none"])
def test_it_trains_on_every_kind_of_label(table, tmp_path, kind):
    module = module_of(kind)
    train(module, data(table, kind), tmp_path, max_epochs=1, limit_train_batches=2)
    masks = data(table, kind).dataset("val")[0]["mask"]
    label = {"multi": ["edema"], "continuous": [0.5], "none": None}[kind]
    assert module.published.sample(2, label, mask=masks, seed=0).isfinite().all()


# Fine-tuning


def test_fine_tuning_starts_from_all_weights(table, tmp_path, finished):
    start_folder = str(finished / "published")
    module = SPADEModule(config(), init_from=start_folder, **(SMALL | {"lr": 0.0, "ema_decay": 0.0}))
    train(module, data(table), tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    source = medgen.load(start_folder)
    for name, weight in source.synthesis.named_parameters():
        assert torch.equal(module.get_parameter(f"generator.synthesis.{name}"), weight)
    for name, weight in load_file(finished / "published" / "discriminator.safetensors").items():
        if not name.endswith((".u", ".v")):  # which move with every pass
            assert torch.equal(module.discriminator.state_dict()[name], weight)


def test_what_was_fine_tuned_has_the_licence_of_its_start(table, tmp_path, finished):
    source = medgen.load(finished / "published")
    start = str(source.save_pretrained(tmp_path / "start", about=About(licence="CC-BY-NC-SA-4.0", data="Hearts.")))
    module = SPADEModule(config(), init_from=start, **SMALL)
    trainer = train(module, data(table), tmp_path, max_epochs=1, limit_train_batches=1)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = module_of()
    again.on_load_checkpoint(torch.load(tmp_path / "run.ckpt", weights_only=True))
    converted = convert(tmp_path / "run.ckpt", tmp_path / "converted")
    loaded = [medgen.load(folder).about for folder in (tmp_path / "published", converted)]
    for about in (*loaded, again.published.about):
        assert about.licence == "CC-BY-NC-SA-4.0"
        assert about.source == f"fine-tuned from {start}"
        assert about.data == "Not stated."


def test_what_is_known_of_every_source_of_weights_is_kept(table, tmp_path, finished, maps):
    hearts = About(licence="CC-BY-NC-SA-4.0", trained_with=("efficientnet_lite1",))
    source = str(medgen.load(finished / "published").save_pretrained(tmp_path / "start", about=hearts))
    for number, sources in enumerate(({"init_from": source, "label_maps": maps}, {"label_maps": source})):
        module = SPADEModule(config(), **sources, **SMALL)
        folder = tmp_path / str(number)
        train(module, data(table), folder, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
        published = medgen.load(folder / "published").about
        assert (published.licence, published.trained_with) == ("CC-BY-NC-SA-4.0", ("efficientnet_lite1",))


def test_fine_tuning_moves_what_it_started_from(table, tmp_path, finished):
    start_folder = finished / "published"
    module = SPADEModule(config(), init_from=str(start_folder), **SMALL)
    train(module, data(table), tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    networks = (("generator", "model"), ("discriminator", "discriminator"))
    for part, before in (
        (getattr(module, name), load_file(start_folder / f"{file}.safetensors")) for name, file in networks
    ):
        trained = {name: weight for name, weight in part.named_parameters() if weight.requires_grad}
        assert all(not torch.equal(weight, before[name]) for name, weight in trained.items())


def test_fine_tuning_to_other_labels_measures_their_priors_anew(table, tmp_path, finished):
    module = SPADEModule(config("multi"), init_from=str(finished / "published"), **SMALL)
    train(module, data(table, "multi"), tmp_path, max_epochs=1, limit_train_batches=1)
    assert module.published.style_prior.slope.shape == (2, 8)
    assert module.published.style_prior.slope.any()


def test_a_start_of_other_classes_is_refused(table, tmp_path, finished):
    changed = config(mask_names=("background", "wall", "hollow"))
    module = SPADEModule(changed, init_from=str(finished / "published"), **SMALL)
    with pytest.raises(ValueError, match=r"has another shape than model.config: mask_names is .*hollow"):
        train(module, data(table), tmp_path, max_epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"map_dim": 0}, {"map_dim": 0, "style": "drawn"}, {"style": "none"}])
def test_another_image_size_is_refused_where_codes_depend_on_it(table, tmp_path, changes):
    start_folder = str(SPADEGenerator(config(**changes)).save_pretrained(tmp_path / "start"))
    module = SPADEModule(config(image_size=(32, 32), **changes), init_from=start_folder, **SMALL)
    message = (
        r"init_from .*start has another.*: image_size is \(32, 32\) here and \(16, 16\) there. Set model.config to"
    )
    with pytest.raises(ValueError, match=message):
        train(module, data(table, image_size=32), tmp_path, max_epochs=1)


@pytest.mark.slow
def test_a_model_without_codes_can_be_fine_tuned_at_another_image_size(table, tmp_path):
    changes = {"map_dim": 0, "style": "none"}
    source = SPADEGenerator(config(**changes))
    start_folder = str(source.save_pretrained(tmp_path / "start"))
    options = SMALL | {"lr": 0.0, "ema_decay": 0.0}
    module = SPADEModule(config(image_size=(32, 32), **changes), init_from=start_folder, **options)
    train(module, data(table, image_size=32), tmp_path, max_epochs=1, limit_train_batches=1)
    assert medgen.load(tmp_path / "published").config.image_size == (32, 32)
    for name, weight in source.named_parameters():
        assert torch.equal(module.get_parameter(f"generator.{name}"), weight)


# Stopping and several processes


def test_a_run_goes_on_exactly_where_it_stopped(table, tmp_path, maps, finished):
    path = tmp_path / "run.yaml"
    with pytest.raises(SIGTERMException):
        fit(recipe(path, table, maps, trainer=calling(StopAt, hook="on_train_batch_end", call=2)))
    folder = fit(recipe(path, table, maps), "--ckpt_path", "last")
    assert_same_weights(folder, finished)


@pytest.mark.ddp
def test_two_processes_stay_in_step(table, tmp_path, maps):
    shared = {"devices": 2, "strategy": "ddp_find_unused_parameters_true", "max_epochs": 2}
    process = start(recipe(tmp_path / "run.yaml", table, maps, trainer=calling(KeepWeights) | shared))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    ours, theirs = (torch.load(tmp_path / "run" / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert [name for name, weight in ours.items() if not torch.equal(weight, theirs[name])] == []
    assert any(name.endswith("running_mean") and weight.any() for name, weight in ours.items())
    assert ours["batches_seen"] == 6


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adversarial": "chess"}, "adversarial is 'chess'; use one of hinge"),
        ({"config_changes": {"map_dim": 4}}, "config.map_dim asks for an autoencoder of label maps; give label_maps"),
        ({"config_changes": {"style": "none"}, "pixel_weight": 1.0}, "pixel_weight is 1.0; config.style is 'none'"),
        ({"config_changes": {"style": "drawn"}, "mixed_weight": 1.0}, "mixed_weight is 1.0; config.style is 'drawn'"),
        ({"scales": 0}, "scales is 0"),
        ({"accumulate_batches": 0}, "accumulate_batches is 0; use at least 1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        module_of(**options)


@pytest.mark.parametrize("make", [lambda: LabelMapModule(config()), module_of], ids=["maps", "images"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_column": None, "mask_classes": None}, r"data.mask_classes is None, but model.config has 3 classes"),
        ({"mask_classes": 5}, r"data.mask_classes is 5, but model.config has 3 classes \(background, wall, cavity\)"),
        ({"image_size": 32}, r"image_size: model.config has \(16, 16\), data has \(32, 32\)"),
    ],
)
def test_data_that_the_config_does_not_describe_are_refused(table, tmp_path, make, options, message):
    with pytest.raises(ValueError, match=message):
        train(make(), data(table, **options), tmp_path, max_epochs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "data.batch_size is 1; .* one value per channel .* Raise data.batch_size to at least 2"),
        ({"batch_size": 23, "drop_last": False}, "drop_last is false, and batches of 23 leave 1 of 24 images; .* one"),
    ],
)
def test_batches_that_batch_norm_cannot_work_with_are_refused_at_the_start(table, tmp_path, options, message):
    module = module_of()
    with pytest.raises(ValueError, match=message):
        train(module, data(table, **options), tmp_path, max_epochs=1)
    assert module.batches_seen == 0


def test_batches_of_one_image_are_taken_where_their_norm_gets_more_values(table):
    single = data(table, batch_size=1)
    for changes, processes in (({"norm": "group"}, 1), ({}, 2)):
        check_batches(config(**changes), single, processes)
    check_batches(config(), data(table, batch_size=23), 1)
    with pytest.warns(UserWarning, match="data.batch_size is 1 on a single device"):
        check_batches(config(image_size=(32, 32)), single, 1)


def test_a_missing_first_stage_is_named(table, tmp_path):
    module = module_of(config_changes={"map_dim": 4}, label_maps=str(tmp_path / "absent.ckpt"))
    with pytest.raises(FileNotFoundError, match=r"model.label_maps .*absent.ckpt' is not there; train that stage"):
        train(module, data(table), tmp_path, max_epochs=1)


def test_a_first_stage_of_other_maps_is_refused(table, tmp_path, maps):
    module = module_of(config_changes={"map_dim": 6}, label_maps=maps)
    with pytest.raises(ValueError, match=r"has another shape than model\.config: map_dim is 6 here and 4 there"):
        train(module, data(table), tmp_path, max_epochs=1)
