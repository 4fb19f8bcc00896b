"""StyleGAN2's networks, losses and gradients against the official ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medgen.families.stylegan2.convert import (
    build_discriminator,
    build_generator,
    discriminator_weights,
    generator_config,
    generator_weights,
    load_discriminator_weights,
    load_generator_weights,
)
from medgen.families.stylegan2.generator import StyleGAN2Generator
from medgen.families.stylegan2.modules import StyleGAN2Module
from medgen.foreign.convert import load_official
from medgen.losses.gradient import r1_penalty
from medgen.nn.equalised import activate, convolve
from medgen.nn.resampling import downsample, filtered, separable_filter, upsample
from medgen.training.ada import AugmentPipe
from tests.parity.conftest import Case, cases, published_keys

GENERATORS = cases("stylegan2_g")
DISCRIMINATORS = cases("stylegan2_d")


def close(actual: Tensor, expected: Tensor, what: str, relative: float = 1e-5) -> None:
    """Equal up to a share of the largest number."""
    atol = relative * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual.detach(), expected, rtol=0, atol=atol, msg=lambda text: f"{what}: {text}")


def close_gradients(network: nn.Module, expected: Mapping[str, Tensor], convert: Any, relative: float = 1e-4) -> None:
    """Gradients that have accumulated in a network, by official names."""
    ours = dict(network.named_parameters())
    for name, gradient in convert(expected).items():
        found = ours[name].grad
        scale = max(gradient.abs().max().item(), 1e-3)
        torch.testing.assert_close(
            torch.zeros_like(gradient) if found is None else found,
            gradient,
            rtol=0,
            atol=relative * scale,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def generator_of(case: Case) -> StyleGAN2Generator:
    return load_official("stylegan2_generator", case.weights, case.meta["constructor"])


@pytest.mark.parametrize("case", cases("stylegan2_ops"))
def test_resampling(case: Case) -> None:
    x, weight, small = case.inputs["x"], case.inputs["w"], case.inputs["w1"]
    kernel, lopsided = separable_filter(), case.inputs["filter_asym"]
    found = {
        "filter_1331": kernel,
        "upsample2d": upsample(x, kernel),
        "downsample2d": downsample(x, kernel),
        "upsample2d_asym": upsample(x, lopsided),
        "downsample2d_asym": downsample(x, lopsided),
        "filter2d_asym": filtered(x, lopsided, pad=1),
        "conv_up2": convolve(x, weight, kernel, "up"),
        "conv_down2": convolve(x, weight, kernel, "down"),
        "conv1x1_down2": convolve(x, small, kernel, "down"),
        "conv1x1_up2": convolve(x, small, kernel, "up"),
        "lrelu_gain_clamp": activate(1.7 * (x + case.inputs["b"][:, None, None]), clamp=0.9),
    }
    assert found.keys() == case.outputs.keys()
    for name, expected in case.outputs.items():
        close(found[name], expected, name, 1e-6)


@pytest.mark.parametrize("case", GENERATORS)
def test_images_and_styles(case: Case) -> None:
    generator = generator_of(case)
    z, label = case.inputs["z"], case.inputs.get("c")
    count = generator.config.num_ws
    w = generator.mapping(z, label)
    styles = w[:, None].expand(-1, count, -1)
    fixed, nothing = generator.synthesis.fixed_noise(), [None] * (count - 1)
    close(styles, case.outputs["ws"], "ws")
    middle = generator.w_avg
    if "ws_psi07" in case.outputs:
        truncated = middle + 0.7 * (styles - middle)
        close(truncated, case.outputs["ws_psi07"], "ws_psi07")
        close(generator.synthesis(truncated, *fixed), case.outputs["img_const_psi07"], "img_const_psi07")
    close(generator.synthesis(styles, *fixed), case.outputs["img_const"], "img_const")
    close(generator.synthesis(styles, *nothing), case.outputs["img_none"], "img_none")
    if "img_mixed_const" in case.outputs:
        other = generator.mapping(case.inputs["z2"], label)[:, None].expand(-1, count, -1)
        first = int(re.search(r"layers \[0,(\d+)\) from z", case.meta["functions"]["img_mixed_const"])[1])
        mixed = torch.cat([styles[:, :first], other[:, first:]], dim=1)
        close(generator.synthesis(mixed, *fixed), case.outputs["img_mixed_const"], "img_mixed_const")


@pytest.mark.parametrize("case", DISCRIMINATORS)
def test_logits_and_r1(case: Case) -> None:
    network = load_official("stylegan2_discriminator", case.weights, case.meta["constructor"])
    images, label = case.inputs["img"], case.inputs.get("c")
    for name, expected in case.outputs.items():
        if name.startswith("logits_b"):
            count = int(name.removeprefix("logits_b"))
            logits = network(images[:count], None if label is None else label[:count])
            close(logits, expected.flatten(), name)
    real = images[:4].clone().requires_grad_()
    penalty = r1_penalty(network(real, None if label is None else label[:4]), real)
    close(penalty, case.outputs["r1_penalty_b4"], "r1_penalty_b4")
    network.zero_grad()
    (penalty.mean() * 5).backward()
    prefix = "r1_gamma10_grad/"
    gradients = {name.removeprefix(prefix): g for name, g in case.outputs.items() if name.startswith(prefix)}
    close_gradients(network, gradients, discriminator_weights)


@pytest.mark.parametrize("case", cases("stylegan2_augment_r1"))
def test_r1_through_the_augmentation(case: Case) -> None:
    constructor = case.meta["constructor"]
    official = {name.removeprefix("D."): weight for name, weight in case.weights.items() if not name.startswith("pipe")}
    network = load_official("stylegan2_discriminator", official, constructor["D"])
    pipe = AugmentPipe(constructor["augment"])
    images = case.inputs["img"].clone().requires_grad_()
    augmented = pipe(images, percentile=constructor["debug_percentile"])
    close(augmented, case.outputs["augmented"], "augmented")
    logits = network(augmented, case.inputs["c"])
    close(logits, case.outputs["logits"].flatten(), "logits")
    penalty = r1_penalty(logits, images)
    close(penalty, case.outputs["r1_penalty"], "r1_penalty")
    (penalty.mean() * constructor["r1_gamma"] / 2).backward()
    gradients = {name.removeprefix("grad/"): g for name, g in case.outputs.items() if name.startswith("grad/")}
    close_gradients(network, gradients, discriminator_weights)


@pytest.mark.slow
@pytest.mark.parametrize("published", published_keys("stylegan2"))
def test_published_networks_convert(published: Mapping[str, Any]) -> None:
    for name, model in published["models"].items():
        with torch.device("meta"):
            generator = build_generator(model["G_kwargs"])
            discriminator = build_discriminator(model["D_kwargs"])
        for network, official, convert in (
            (generator, model["G"], generator_weights),
            (discriminator, model["D"], discriminator_weights),
        ):
            # Names and shapes are all there is; the filters must be ours.
            weights = {
                key: separable_filter() if key.endswith("resample_filter") else torch.empty(shape, device="meta")
                for key, shape in official.items()
            }
            converted = {key: tuple(value.shape) for key, value in convert(weights).items()}
            assert converted == {key: tuple(value.shape) for key, value in network.state_dict().items()}, name
        assert sum(weight.numel() for weight in generator.parameters()) == model["params"]["G"]
        assert sum(weight.numel() for weight in discriminator.parameters()) == model["params"]["D"]


def module_of(case: Case) -> StyleGAN2Module:
    """A training module with the official weights, for the losses of one phase each."""
    constructor = case.meta["constructor"]
    loss = constructor["loss"]
    module = StyleGAN2Module(
        generator_config(constructor["G"]),
        gamma=loss["r1_gamma"],
        path_weight=loss["pl_weight"],
        path_decay=loss["pl_decay"],
        path_shrink=loss["pl_batch_shrink"],
        style_mixing=loss["style_mixing_prob"],
        group=constructor["D"]["epilogue_kwargs"]["mbstd_group_size"],
        augment="none",
    )
    for network, letter, load in (
        (module.generator, "G.", load_generator_weights),
        (module.discriminator, "D.", load_discriminator_weights),
    ):
        load(network, {name.removeprefix(letter): w for name, w in case.weights.items() if name.startswith(letter)})
    module.path_mean.fill_(constructor["pl_mean_start"])
    return module


@pytest.mark.parametrize("case", cases("stylegan2_loss"))
def test_the_four_phases(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of(case)
    monkeypatch.setattr(module, "log", lambda name, value, **options: None)
    monkeypatch.setattr(torch, "randn", lambda n, *shape, **options: case.inputs["z"][:n])
    monkeypatch.setattr(torch, "randn_like", lambda images: case.inputs["pl_noise"])
    # No layer adds noise in these networks; its numbers must be drawn all the same.
    synthesis = module.generator.synthesis
    monkeypatch.setattr(module, "noise", lambda n: synthesis.fixed_noise())
    real, drawn = case.inputs["real"], case.inputs.get("gen_c")

    def compare(phase: str, loss: Tensor, expected: Tensor) -> None:
        close(loss, expected, phase)
        network = module.discriminator if phase.startswith("D") else module.generator
        module.zero_grad()
        loss.backward()
        prefix = f"{phase}/grad/"
        gradients = {name.removeprefix(prefix): g for name, g in case.outputs.items() if name.startswith(prefix)}
        # The noise of the layers, which these gradients are of, is not in the file.
        gradients = {name: g for name, g in gradients.items() if not name.endswith("noise_strength")}
        assert len(gradients) > 10
        close_gradients(network, gradients, discriminator_weights if phase.startswith("D") else generator_weights)

    compare("Gmain", module.generator_loss(real, drawn), case.outputs["Gmain/stat/G/loss"].mean())
    path_loss = module.path_length_loss(len(real), drawn)
    close(path_loss, case.outputs["Greg/stat/G/reg"].mean(), "G/reg")
    compare("Greg", 4 * path_loss, 4 * case.outputs["Greg/stat/G/reg"].mean())
    close(module.path_mean, case.outputs["pl_mean_after_Greg"], "pl_mean")
    # Labels of the real images differ from those that were drawn, which training has no need of.
    fake, _ = module.generate(len(real), drawn)
    logits = module.discriminator(fake.detach(), drawn), module.discriminator(real, case.inputs.get("real_c"))
    close(logits[0], case.outputs["Dmain/stat/scores/fake"], "scores/fake")
    close(logits[1], case.outputs["Dmain/stat/scores/real"], "scores/real")
    loss = module.logistic_loss(*logits)
    compare("Dmain", loss, case.outputs["Dmain/stat/D/loss"].mean())
    r1 = module.r1_loss(real, case.inputs.get("real_c"))
    close(r1, case.outputs["Dreg/stat/D/reg"].mean(), "D/reg")
    compare("Dreg", 16 * r1, 16 * case.outputs["Dreg/stat/D/reg"].mean())
    close(module.generator.w_avg, case.outputs["w_avg_after"], "w_avg")
