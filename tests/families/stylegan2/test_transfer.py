"""Fine-tuning: what is taken over from a model of other labels, channels or image size, and what starts anew."""

from dataclasses import replace

import pytest
import torch

from medgen.checkpoint import DISCRIMINATOR_FILE
from medgen.families.stylegan2.generator import StyleGAN2Generator
from medgen.families.stylegan2.modules import StyleGAN2Module
from medgen.nn.label_vector import label_vector
from tests.families.stylegan2.test_modules import OFTEN, config, data_module, finished, module_of, recipe, train  # noqa: F401
from tests.tiny import fit, generator, nudge

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def source(table, tmp_path_factory):
    """The folder of a published model whose every weight is other than a fresh one's, and its discriminator."""
    folder = tmp_path_factory.mktemp("source")
    module = nudge(module_of())
    folder = module.generator.save_pretrained(folder / "model", extra_files=module.published_files(module.state_dict()))
    return folder, module


def started(source, kind="single", config_changes=None, **options):
    """A module as it is when training begins."""
    torch.manual_seed(1)
    changes = OFTEN | {"init_from": str(source), "seed": 1} | options
    module = StyleGAN2Module(config(kind, **(config_changes or {})), **changes)
    module.load_start()
    return module.eval()


def images_of(generator, label="ill", n=3):
    return generator.sample(n, label, seed=0, noise_mode="none")


def logits(module, images, vector):
    with torch.no_grad():
        return module.discriminator(images, vector)


def test_the_same_model_is_taken_over_whole(source):
    folder, original = source
    module = started(folder)
    assert torch.equal(images_of(module.generator), images_of(original.generator))
    assert torch.equal(images_of(module.published), images_of(original.generator))
    images, vector = torch.rand(4, 1, 16, 16), torch.eye(2).repeat(2, 1)
    assert torch.equal(logits(module, images, vector), logits(original.eval(), images, vector))


def test_a_class_of_the_same_name_keeps_its_images(source):
    folder, original = source
    module = started(folder, config_changes={"label_names": ("new", "ill")})
    torch.testing.assert_close(images_of(module.generator), images_of(original.generator))
    weight = original.generator.mapping.embed.weight
    torch.testing.assert_close(module.generator.mapping.embed.weight[:, 0], weight.mean(1))
    torch.testing.assert_close(
        module.discriminator.label.embed.weight[:, 1], original.discriminator.label.embed.weight[:, 1]
    )


@pytest.mark.parametrize("names", [("ill",), ("new", "ill", "other")])
def test_a_class_keeps_its_images_among_fewer_or_more(source, names):
    folder, original = source
    module = started(folder, config_changes={"label_names": names})
    torch.testing.assert_close(images_of(module.generator), images_of(original.generator))
    images, ill = torch.rand(4, 1, 16, 16), torch.ones(4, dtype=torch.int64)
    before = logits(original.eval(), images, label_vector(ill, original.generator.label_space, 4, ill.device))
    place = torch.full((4,), names.index("ill"))
    after = logits(module, images, label_vector(place, module.generator.label_space, 4, ill.device))
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("channels", [1, 3])
def test_other_channels_start_from_the_same_picture(table, tmp_path, channels):
    original = nudge(module_of(config_changes={"channels": 4 - channels})).eval()
    folder = original.generator.save_pretrained(
        tmp_path / "model", extra_files=original.published_files(original.state_dict())
    )
    module = started(folder, config_changes={"channels": channels})
    styles = original.generator.styles(2, "ill", seed=0)
    grey = [m.generator.synthesis(styles, None, None, None, None, None).mean(1) for m in (module, original)]
    torch.testing.assert_close(*grey, rtol=0, atol=1e-5 * float(grey[1].abs().max()))
    image, vector = torch.rand(4, 1, 16, 16), torch.eye(2).repeat(2, 1)
    seen = [logits(m, image.expand(-1, m.generator.config.channels, -1, -1), vector) for m in (module, original)]
    torch.testing.assert_close(*seen)


def test_a_grown_model_starts_as_the_small_one_enlarged(source):
    folder, original = source
    module = started(folder, config_changes={"image_size": (32, 32)})
    small, large = images_of(original.generator), images_of(module.generator)
    assert large.shape == (3, 1, 32, 32)
    averaged = torch.nn.functional.avg_pool2d(large, 2)
    inside = (averaged - small)[..., 2:-2, 2:-2].abs().mean()
    assert inside < 0.2 * small.std()
    kept, block = original.discriminator.blocks[1], module.discriminator.blocks[1]
    assert torch.equal(block.first.weight, kept.first.weight)


def test_a_cut_model_keeps_its_coarse_layers(table, tmp_path):
    original = nudge(module_of(config_changes={"image_size": (32, 32)}))
    folder = original.generator.save_pretrained(
        tmp_path / "model", extra_files=original.published_files(original.state_dict())
    )
    module = started(folder)
    for part in ("first.0", "second.1", "to_image.2"):
        ours, theirs = (m.generator.synthesis.get_submodule(part).state_dict() for m in (module, original))
        assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items() if name != "fixed_noise")


def test_labels_may_come_or_go(source, table, tmp_path):
    folder, original = source
    without = started(folder, "none")
    assert torch.equal(without.generator.synthesis.start, original.generator.synthesis.start)
    assert without.generator.sample(2, seed=0).isfinite().all()
    plain = nudge(module_of("none"))
    other = plain.generator.save_pretrained(tmp_path / "plain", extra_files=plain.published_files(plain.state_dict()))
    labelled = started(other)
    z = torch.randn(4, 16)
    vector = label_vector(torch.tensor([0, 1, -1, 0]), labelled.generator.label_space, 4, z.device)
    torch.testing.assert_close(labelled.generator.mapping(z, vector), plain.generator.mapping(z, None))


@pytest.mark.slow
def test_frozen_layers_stay_and_the_others_move(source, table, tmp_path):
    folder, original = source
    module = started(folder, frozen_layers=1, kimg=0.01)
    train(module.train(), data_module(table), tmp_path, max_epochs=1, limit_train_batches=3)
    frozen = module.discriminator.blocks[-1].state_dict()
    assert all(torch.equal(w, original.discriminator.blocks[-1].state_dict()[n]) for n, w in frozen.items())
    assert torch.equal(module.discriminator.from_image.weight, original.discriminator.from_image.weight)
    assert not torch.equal(module.discriminator.dense.weight, original.discriminator.dense.weight)


@pytest.mark.parametrize(("side", "layer"), [(32, "blocks.2.first.weight, .*from_image.weight"), (8, "from_image")])
def test_layers_that_the_model_does_not_have_are_not_frozen(source, side, layer):
    folder, _ = source
    text = rf"frozen_layers would freeze layers that .*, of image_size \(16, 16\), does not have \(.*{layer}"
    with pytest.raises(ValueError, match=text):
        started(folder, config_changes={"image_size": (side, side)}, frozen_layers=1)


def test_other_label_layers_are_refused(source):
    folder, _ = source
    with pytest.raises(ValueError, match=r"model.label_layers is 8, but .* has 2; use label_layers: 2"):
        started(folder, label_layers=8)


def test_a_training_checkpoint_will_do(finished):  # noqa: F811
    path = finished / "checkpoints" / "last.ckpt"
    module = started(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert torch.equal(module.generator.synthesis.start, state["ema.module.synthesis.start"])
    assert torch.equal(module.discriminator.dense.weight, state["discriminator.dense.weight"])


@pytest.mark.slow
def test_a_resumed_run_does_not_start_again(source, table, tmp_path):
    folder, _ = source
    path = recipe(tmp_path / "run.yaml", table, init_from=str(folder), trainer={"max_epochs": 1})
    run = fit(path)
    before = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    moved = folder.rename(tmp_path / "gone")
    try:
        fit(recipe(path, table, init_from=str(folder), trainer={"max_epochs": 2}), "--ckpt_path", "last")
    finally:
        moved.rename(folder)
    after = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert after["batches_seen"] == 2 * before["batches_seen"]


def test_a_model_without_discriminator_is_told(tmp_path):
    folder = StyleGAN2Generator(config()).save_pretrained(tmp_path / "alone")
    assert not (folder / DISCRIMINATOR_FILE).exists()
    with pytest.warns(UserWarning, match="has no discriminator; training starts with a new one"):
        started(folder)
    with pytest.raises(ValueError, match="has no discriminator, so that frozen_layers has none to freeze"):
        started(folder, frozen_layers=1)


def test_other_widths_and_families_are_refused(source, tmp_path):
    folder, _ = source
    with pytest.raises(
        ValueError, match=r"model.init_from .* another shape than model.config: w_dim is 24 here and 16"
    ):
        started(folder, config_changes={"w_dim": 24})
    other = generator().save_pretrained(tmp_path / "medfusion")
    with pytest.raises(ValueError, match="holds a medfusion model; this recipe needs stylegan2"):
        started(other)
    with pytest.raises(FileNotFoundError, match=r"gone.ckpt' is not there"):
        started(tmp_path / "gone.ckpt")


def test_names_in_another_case_are_the_same_classes(source):
    folder, original = source
    names = tuple(name.upper() for name in original.generator.config.label_names)
    module = started(folder, config_changes={"label_names": names})
    assert torch.equal(module.generator.mapping.embed.weight, original.generator.mapping.embed.weight)
    assert replace(module.generator.config, label_names=("healthy", "ill")) == original.generator.config
