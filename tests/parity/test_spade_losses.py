"""What SPADE's networks are trained with, against the official losses and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medgen.families.spade.convert import (
    build_discriminator,
    build_style_encoder,
    build_synthesis,
    discriminator_weights,
    load_discriminator_weights,
    load_style_encoder_weights,
    load_synthesis_weights,
    style_encoder_weights,
    synthesis_weights,
)
from medgen.losses.adversarial import ADVERSARIAL
from medgen.losses.divergence import kl_divergence
from medgen.losses.feature_matching import feature_matching
from medgen.losses.perceptual import VGG19Loss
from medgen.published import part_of
from tests.parity.conftest import Case, cases
from tests.parity.test_spade import semantic_of
from tests.parity.test_stylegan2 import close, close_gradients

MODES = {"hinge": "hinge", "ls": "least_squares", "original": "logistic", "w": "wasserstein"}
Features = list[list[Tensor]]


def halves(features: Features) -> tuple[Features, Features]:
    """Features of the first and of the second half of a batch."""
    pairs = [[layer.chunk(2) for layer in layers] for layers in features]
    return [[a for a, _ in layers] for layers in pairs], [[b for _, b in layers] for layers in pairs]


def generator_game(mode: str, fake: Features) -> Tensor:
    """The official loss of a generator: the mean over discriminators; squares are not halved there."""
    scale = 2 if mode == "ls" else 1
    return scale * torch.stack([ADVERSARIAL[MODES[mode]].generator(layers[-1]).mean() for layers in fake]).mean()


def discriminator_game(mode: str, real: Features, fake: Features) -> Tensor:
    """The official loss of discriminators: the mean over them of the sum of two parts, which ours is the mean of."""
    game = ADVERSARIAL[MODES[mode]].discriminator
    return torch.stack([2 * game(a[-1], b[-1]) for a, b in zip(real, fake, strict=True)]).mean()


@pytest.mark.parametrize("case", cases("spade_d"))
def test_games_and_feature_matching(case: Case) -> None:
    network = build_discriminator(case.meta["constructor"])
    load_discriminator_weights(network, case.weights)
    with torch.no_grad():
        fake, real = halves(network.eval()(case.inputs["x"]))
    for mode in MODES:
        expected = {part: case.outputs[f"loss/{mode}/{part}"][0] for part in ("G", "D_fake", "D_real")}
        close(generator_game(mode, fake), expected["G"], f"{mode} G")
        close(discriminator_game(mode, real, fake), expected["D_fake"] + expected["D_real"], f"{mode} D")
    close(case.meta["constructor"]["lambda_feat"] * feature_matching(fake, real), case.outputs["loss/feat"], "feat")


NO_EFFECT = {"netG.up_2.conv_0.bias"}
"""A norm takes away what they add, so that their gradients are rounding errors."""


class Model(nn.Module):
    """All networks of a fixture that holds them together."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        options = case.meta["constructor"]
        self.generator = build_synthesis(options)
        load_synthesis_weights(self.generator, part_of(case.weights, "netG."))
        self.discriminator = build_discriminator(options)
        load_discriminator_weights(self.discriminator, part_of(case.weights, "netD."))
        self.encoder = build_style_encoder(options) if options["use_vae"] else None
        if self.encoder is not None:
            load_style_encoder_weights(self.encoder, part_of(case.weights, "netE."))
        self.perceptual = VGG19Loss(part_of(case.weights, "criterionVGG.vgg."))
        self.semantic = semantic_of(case)
        self.real = case.inputs["image_u8"] / 127.5 - 1
        self.noise = case.inputs.get("eps")

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Images, and the divergence of their codes."""
        if self.encoder is None or self.noise is None:
            return self.generator(self.semantic), torch.zeros(())
        mean, log_variance = self.encoder(self.real)
        code = mean + self.noise[step] * (log_variance / 2).exp()
        return self.generator(self.semantic, code), kl_divergence(mean, log_variance).sum()

    def judge(self, fake: Tensor) -> tuple[Features, Features]:
        """Features of drawn and real images, which are seen together."""
        pairs = [torch.cat([self.semantic, images], dim=1) for images in (fake, self.real)]
        return halves(self.discriminator(torch.cat(pairs)))


@pytest.mark.slow
@pytest.mark.parametrize("case", cases("spade_model"))
def test_complete_losses_and_gradients(case: Case) -> None:
    model, options = Model(case).train(), case.meta["constructor"]
    mode = options["gan_mode"]
    image, divergence = model.draw(0)
    fake, real = model.judge(image)
    terms = {
        "KLD": options["lambda_kld"] * divergence,
        "GAN": generator_game(mode, fake),
        "GAN_Feat": options["lambda_feat"] * feature_matching(fake, real),
        "VGG": options["lambda_vgg"] * model.perceptual(image, model.real).mean(),
    }
    close(image, case.outputs["fake"], "fake")
    for name, term in terms.items():
        if f"G/{name}" in case.outputs:
            close(term, case.outputs[f"G/{name}"].squeeze(), name)
    torch.stack([term.reshape(()) for term in terms.values()]).sum().backward()
    gradients = {name: gradient for name, gradient in part_of(case.outputs, "G_grad/").items() if name not in NO_EFFECT}
    config = model.generator.config
    close_gradients(model.generator, part_of(gradients, "netG."), lambda w: synthesis_weights(w, config))
    if (encoder := model.encoder) is not None:
        close_gradients(encoder, part_of(gradients, "netE."), lambda w: style_encoder_weights(w, encoder))

    model.zero_grad()
    with torch.no_grad():
        image, _ = model.draw(1)
    fake, real = model.judge(image)
    loss = discriminator_game(mode, real, fake)
    close(loss, (case.outputs["D/D_Fake"] + case.outputs["D/D_real"]).squeeze(), "D")
    loss.backward()
    close_gradients(model.discriminator, part_of(part_of(case.outputs, "D_grad/"), "netD."), discriminator_weights)


def vgg_weights() -> dict[str, Tensor]:
    """A VGG19 that is one to four channels wide, under torchvision's names."""
    torch.manual_seed(0)
    places = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28)
    widths = (3, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4)
    weights = {}
    for place, channels, width in zip(places, widths[:-1], widths[1:], strict=True):
        weights[f"features.{place}.weight"] = torch.randn(width, channels, 3, 3)
        weights[f"features.{place}.bias"] = torch.randn(width)
    return weights


def test_the_perceptual_loss_is_one_distance_per_image_and_zero_for_equal_ones() -> None:
    loss, x = VGG19Loss(vgg_weights()), torch.rand(2, 1, 16, 32)
    y = x.clone()
    y[1] = -y[1]
    distances = loss(x, y)
    assert distances[0] == 0
    assert distances[1] > 0
    torch.testing.assert_close(loss(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)), distances)


def test_the_network_of_the_perceptual_loss_is_no_part_of_a_model() -> None:
    parent = nn.Sequential(VGG19Loss(vgg_weights())).train()
    assert list(parent.parameters()) == []
    assert parent.state_dict() == {}


def test_weights_that_the_perceptual_loss_lacks_are_named() -> None:
    damaged = {name: weight for name, weight in vgg_weights().items() if name != "features.16.bias"}
    with pytest.raises(ValueError, match=r"missing for features\.16\.bias"):
        VGG19Loss(damaged)


def test_feature_matching_counts_all_layers_but_the_logits() -> None:
    real = [
        [torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 2, 2), torch.zeros(2, 1, 3, 3)],
        [torch.zeros(1), torch.zeros(1)],
    ]
    fake = [[torch.full_like(layer, float(i + 1)) for i, layer in enumerate(layers)] for layers in real]
    assert feature_matching(fake, real) == (1 + 2 + 1) / 2


def test_feature_matching_refuses_features_of_other_discriminators() -> None:
    features = [[torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)]]
    with pytest.raises(ValueError, match="the same discriminators"):
        feature_matching(features, [[layer[:1] for layer in features[0]]])


def test_a_standard_normal_code_has_no_divergence_and_a_shifted_one_half_its_square() -> None:
    found = kl_divergence(torch.tensor([[0.0, 0.0], [3.0, 1.0]]), torch.zeros(2, 2))
    assert found.tolist() == [0, 5]
