"""A pixel-space DDPM from its recipe to its samples, and what its shape has to be."""

from dataclasses import replace

import pytest
import torch

import medgen
from medgen.diffusion.schedule import NoiseSchedule
from medgen.families.ddpm.generator import DDPMConfig, DDPMGenerator
from medgen.families.ddpm.modules import DDPMModule
from medgen.nn.unet import UNetConfig
from tests.tiny import CONFIG, assert_same_weights, data_module, fit, train, write_data, write_recipe

pytestmark = pytest.mark.filterwarnings("ignore:.*num_workers.*")
MODULE = "medgen.families.ddpm.modules.DDPMModule"
LABELLED = replace(DDPMConfig.tiny(), label_names=CONFIG.label_names)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(table, tmp_path_factory):
    return fit(write_recipe(tmp_path_factory.mktemp("run") / "ddpm.yaml", MODULE, table, config=LABELLED))


def test_a_run_ends_in_a_checkpoint_that_draws(finished):
    generator = medgen.load(finished / "published")
    assert isinstance(generator, DDPMGenerator)
    images = generator.sample(3, CONFIG.label_names[1], seed=0, guidance=2.0, sampler="ancestral")
    assert images.shape == (3, 1, 16, 16)
    assert torch.equal(images[1:], generator.sample(2, 1, seed=0, first_index=1, guidance=2.0, sampler="ancestral"))


def test_there_is_no_autoencoder_in_it(finished):
    generator = medgen.load(finished / "published")
    assert {name.partition(".")[0] for name in generator.state_dict()} == {"unet"}
    noisy = torch.randn(1, 1, 16, 16)
    assert generator.decode(noisy) is noisy


def test_the_loss_is_the_error_of_the_noise_at_the_times_that_were_drawn(table):
    module = DDPMModule(LABELLED, label_dropout=0.0)
    torch.nn.init.zeros_(module.generator.unet.heads[0].weight)
    torch.nn.init.zeros_(module.generator.unet.heads[0].bias)
    batch = {"image": torch.rand(64, 1, 16, 16), "label": torch.zeros(64, dtype=torch.int64)}
    torch.manual_seed(0)
    loss, _ = module.loss(module.generator, batch, "train")
    torch.testing.assert_close(loss, torch.tensor(1.0), rtol=0.05, atol=0)  # a network of zeros: the noise's variance


def test_training_learns_images_that_are_all_alike(tmp_path):
    table = write_data(tmp_path)
    module = DDPMModule(replace(LABELLED, prediction_type="x_0"), lr=1e-2, ema_decay=0.9)
    before = module.loss(module.generator, _batch(table), "val")[0]
    train(module, data_module(table), tmp_path / "run", max_epochs=8)
    assert module.loss(module.published, _batch(table), "val")[0] < before / 2


def _batch(table):
    data = data_module(table)
    data.setup("fit")
    torch.manual_seed(0)
    return next(iter(data.val_dataloader()))


def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(table, tmp_path, finished):
    recipe = write_recipe(tmp_path / "ddpm.yaml", MODULE, table, config=LABELLED)
    fit(recipe, "--trainer.max_epochs", "1")
    run = fit(recipe, "--ckpt_path", "last")
    assert_same_weights(run, finished)


def test_a_size_that_the_unet_cannot_halve_is_refused():
    with pytest.raises(ValueError, match=r"image_size \(17, 17\) makes the UNet denoise 17 x 17 pixels.*use another"):
        replace(DDPMConfig.tiny(), image_size=(17, 17))


def test_volumes_are_refused():
    with pytest.raises(ValueError, match=r"unet.spatial_dims is 3; these are images"):
        DDPMConfig(unet=UNetConfig(spatial_dims=3))


def test_the_forward_process_is_that_of_the_paper():
    schedule = NoiseSchedule(**DDPMConfig().schedule.to_dict())
    expected = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(schedule.betas.double(), expected, rtol=1e-5, atol=1e-8)
