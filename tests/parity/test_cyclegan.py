"""CycleGAN's generator and discriminator against the official ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medgen.families.cyclegan.convert import (
    build_discriminator,
    build_generator,
    load_discriminator_weights,
    load_generator_weights,
)
from medgen.losses.adversarial import ADVERSARIAL
from medgen.nn.patch_discriminator import PatchDiscriminator
from medgen.nn.resnet_generator import ResNetGenerator
from medgen.published import part_of
from tests.parity.conftest import Case, cases
from tests.parity.test_stylegan2 import close

CASES = pytest.mark.parametrize("case", cases("cyclegan"))


def networks(case: Case) -> tuple[ResNetGenerator, PatchDiscriminator]:
    weights = {name: weight.clone() for name, weight in case.weights.items()}  # training moves averages in place
    generator = build_generator(case.meta["constructor"])
    load_generator_weights(generator, part_of(weights, "netG."))
    discriminator = build_discriminator(case.meta["constructor"])
    load_discriminator_weights(discriminator, part_of(weights, "netD."))
    return generator, discriminator


@CASES
@pytest.mark.parametrize("mode", ["eval", "train"])
@torch.no_grad()
def test_images_and_logits(case: Case, mode: str) -> None:
    generator, discriminator = (network.train(mode == "train") for network in networks(case))
    close(generator(case.inputs["x"]), case.outputs[f"g_{mode}"], "images")
    close(discriminator(case.inputs["y"]), case.outputs[f"d_{mode}"], "logits")


@CASES
@torch.no_grad()
def test_losses_are_half_of_the_official_ones_which_count_real_and_fake_singly(case: Case) -> None:
    logits: Tensor = networks(case)[1].eval()(case.inputs["y"])
    loss = ADVERSARIAL["least_squares"]
    real, fake = case.outputs["lsgan_real"], case.outputs["lsgan_fake"]
    close(loss.discriminator(logits, logits), (real + fake) / 2, "both")
    close(loss.discriminator(logits, torch.zeros_like(logits)), real / 2, "real")
    close(loss.discriminator(torch.ones_like(logits), logits), fake / 2, "fake")
    close(loss.generator(logits).mean(), real / 2, "of the generator")


@CASES
def test_every_weight_is_taken_over(case: Case) -> None:
    ours = [weight for network in networks(case) for weight in network.state_dict().values()]
    assert len(ours) == len(case.weights) == case.meta["n_weights"]
    assert sum(weight.double().sum() for weight in ours) == pytest.approx(
        float(sum(weight.double().sum() for weight in case.weights.values()))
    )
