"""CycleGAN's networks: their sizes as published, and official arguments that ours can and cannot follow."""

import pytest
import torch

from medgen.families.cyclegan.convert import (
    build_discriminator,
    build_generator,
    discriminator_weights,
    load_generator_weights,
)
from medgen.nn.patch_discriminator import patch_discriminator
from medgen.nn.resnet_generator import ResNetGenerator

GIVEN = {"input_nc": 1, "output_nc": 1, "norm": "instance"}


def parameters(network):
    return sum(weight.numel() for weight in network.parameters())


def test_published_networks_have_the_published_numbers_of_weights():
    with torch.device("meta"):
        assert parameters(ResNetGenerator(3, 3)) == 11_378_179
        assert parameters(patch_discriminator(3)) == 2_764_737


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_patch(layers, patch):
    images = torch.zeros(1, 1, 128, 128, requires_grad=True)
    discriminator = patch_discriminator(1, width=2, layers=layers, norm="batch").eval()
    logits = discriminator(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    seen = images.grad[0, 0].nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [patch, patch]


def test_translated_images_have_the_size_and_range_of_images():
    out = ResNetGenerator(1, 2, width=4, blocks=1)(torch.rand(2, 1, 16, 24) * 2 - 1)
    assert out.shape == (2, 2, 16, 24)
    assert out.abs().max() <= 1


def test_training_starts_from_small_weights():
    torch.manual_seed(0)
    generator = ResNetGenerator(1, 1, width=16, blocks=2, norm="batch")
    weight = generator.blocks[0].first.conv.weight.detach()
    assert weight.std() == pytest.approx(0.02, rel=0.05)
    assert generator.stem.norm.weight.detach().mean() == pytest.approx(1, abs=0.02)
    assert generator.last.bias.abs().max() == 0


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_each_weight_of_both_networks_is_trained(norm):
    generator = ResNetGenerator(1, 1, width=2, blocks=1, norm=norm)
    discriminator = patch_discriminator(1, width=2, layers=2, norm=norm)
    discriminator(generator(torch.randn(2, 1, 16, 16))).square().mean().backward()
    for network in (generator, discriminator):
        assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize("sides", [(18, 16), (16, 4)])
def test_sides_that_cannot_be_halved_twice_are_refused(sides):
    with pytest.raises(
        ValueError, match=f"images are {sides[0]} x {sides[1]}; this network needs sides that are multiples"
    ):
        ResNetGenerator(1, 1, width=2, blocks=1)(torch.zeros(1, 1, *sides))


def test_images_too_small_for_a_patch_are_refused():
    discriminator = patch_discriminator(1, width=2)
    assert discriminator(torch.randn(1, 1, 24, 24)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="images are 20 x 64; a discriminator of 3 layers needs at least 24 a side"):
        discriminator(torch.zeros(1, 1, 20, 64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNetGenerator(1, 1, norm="group"), "norm is 'group'; use one of 'instance', 'batch'"),
        (lambda: ResNetGenerator(1, 1, blocks=0), "blocks is 0; use at least 1"),
        (lambda: patch_discriminator(1, layers=0), "layers is 0; use at least 1"),
        (lambda: build_generator({"input_nc": 1}), "lack output_nc, norm"),
        (lambda: build_generator(GIVEN | {"use_dropout": True}), "use_dropout is True; our"),
        (lambda: build_generator(GIVEN | {"no_antialias": False}), "no_antialias is False; our"),
        (lambda: build_discriminator(GIVEN | {"spectral": True}), "has spectral, which our networks do not"),
    ],
)
def test_networks_that_do_not_exist_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_averages_of_instance_norms_in_old_files_are_left_out():
    arguments = GIVEN | {"ngf": 2, "n_blocks": 1}
    network = build_generator(arguments)
    official = {
        "model.1": network.stem.conv,
        "model.4": network.down[0].conv,
        "model.7": network.down[1].conv,
        "model.10.conv_block.1": network.blocks[0].first.conv,
        "model.10.conv_block.5": network.blocks[0].second.conv,
        "model.11": network.up[0].conv,
        "model.14": network.up[1].conv,
        "model.18": network.last,
    }
    weights = {f"{name}.{key}": value for name, layer in official.items() for key, value in layer.state_dict().items()}
    old = {"model.2.running_mean": torch.ones(2), "model.10.conv_block.6.num_batches_tracked": torch.tensor(3)}
    other = build_generator(arguments)
    load_generator_weights(other, weights | old)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in network.state_dict().items())


def test_a_discriminator_of_another_depth_keeps_its_layers_apart():
    weights = {f"model.{number}.weight": torch.zeros(1) for number in (0, 2, 3, 5, 6, 8)}
    assert list(discriminator_weights(weights)) == [
        "first.weight",
        "layers.0.conv.weight",
        "layers.0.norm.weight",
        "layers.1.conv.weight",
        "layers.1.norm.weight",
        "last.weight",
    ]
