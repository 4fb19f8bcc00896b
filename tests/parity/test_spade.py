"""SPADE's networks against the official ones, and those of the forks for cardiac MR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medgen.families.spade.config import SPADEConfig
from medgen.families.spade.convert import (
    build_discriminator,
    build_inner_style_encoder,
    build_style_encoder,
    build_synthesis,
    load_discriminator_weights,
    load_inner_style_encoder_weights,
    load_style_encoder_weights,
    load_synthesis_weights,
    synthesis_weights,
)
from medgen.families.spade.networks import SPADEBlock, SPADESynthesis, instance_edges, semantic_map
from medgen.foreign.torch_files import read_torch_file
from medgen.losses.divergence import kl_divergence
from medgen.nn.inference import for_inference
from medgen.published import load_strictly
from tests.parity.conftest import Case, cases, published_keys
from tests.parity.test_stylegan2 import close

CARDIAC = cases("spade_cardiac")
CARDIAC_ENCODERS = [case for case in CARDIAC if "encoder" in case.id]
CARDIAC_GENERATORS = [case for case in CARDIAC if "encoder" not in case.id]


def options_of(case: Case) -> dict[str, Any]:
    """The official options; which class they go to is told elsewhere."""
    kind = {"netG": "stylespade"} if "StyleSPADE" in case.meta["component"] else {}
    return case.meta["constructor"] | kind


def synthesis_of(options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> SPADESynthesis:
    network = build_synthesis(options)
    load_synthesis_weights(network, weights)
    return network.eval()


def semantic_of(case: Case) -> Tensor:
    """The semantic map of a fixture's label map and instances."""
    options = case.meta["constructor"]
    instances = case.inputs.get("instance")
    return semantic_map(
        case.inputs["label"][:, 0],
        options["label_nc"],
        dont_care=options["contain_dontcare_label"],
        edges=None if instances is None else instance_edges(instances[:, 0]),
    )


@pytest.mark.parametrize("case", cases("spade_block"))
def test_blocks(case: Case) -> None:
    options = case.meta["constructor"]
    spectral = options["norm_G"].startswith("spectral")
    classes = tuple(map(str, range(options["semantic_nc"])))
    config = SPADEConfig(mask_names=classes, kernel_size=int(options["norm_G"][-1]))
    block = SPADEBlock(options["fin"], options["fout"], config, spectral=spectral).eval()
    # As blocks of a whole generator, which they are named like.
    official = synthesis_weights({f"head_0.{name}": weight for name, weight in case.weights.items()}, config)
    load_strictly(block, {name.removeprefix("blocks.0."): w for name, w in official.items()}, where="the block")
    x, semantic = case.inputs["x"].requires_grad_(), case.inputs["seg"]
    y = block(x, semantic)
    close(y, case.outputs["y_eval"], "y_eval")
    small = torch.nn.functional.interpolate(semantic, size=x.shape[2:])
    close(block.first_norm(x, small), case.outputs["norm_0_eval"], "norm_0_eval")
    (gradient,) = torch.autograd.grad(y.square().mean(), x)
    scale = case.outputs["grad_x"].abs().max().item()
    torch.testing.assert_close(gradient, case.outputs["grad_x"], rtol=0, atol=1e-4 * scale)
    close(block.train()(x, semantic), case.outputs["y_train"], "y_train")


@pytest.mark.slow
@pytest.mark.parametrize("case", cases("spade_g"))
def test_generators_and_what_a_training_pass_leaves_behind(case: Case) -> None:
    network = synthesis_of(case.meta["constructor"], case.weights)
    semantic, code = semantic_of(case), case.inputs.get("z")
    with torch.no_grad():
        close(network(semantic, code), case.outputs["img_eval"], "img_eval")
        close(for_inference(network)(semantic, code), case.outputs["img_eval"], "the inference form's img_eval")
        close(network.train()(semantic, code), case.outputs["img_train"], "img_train")
    prefix = "after_train_forward/"
    after = {name.removeprefix(prefix): x for name, x in case.outputs.items() if name.startswith(prefix)}
    state = network.state_dict()
    uncounted = "syncbatch" in case.meta["constructor"]["norm_G"]  # its batch norm does not count batches, ours does
    for name, official in synthesis_weights(case.weights | after, network.config).items():
        if not (uncounted and name.endswith("num_batches_tracked")):
            close(state[name], official, name)


@pytest.mark.parametrize("case", cases("spade_g_seg"))
def test_instance_edges(case: Case) -> None:
    edges = instance_edges(case.inputs["instance"][:, 0])
    assert torch.equal(edges, case.inputs["edges"].float())


@pytest.mark.parametrize("case", CARDIAC_GENERATORS)
def test_cardiac_generators(case: Case) -> None:
    options = options_of(case)
    network, code = synthesis_of(options, case.weights), None
    with torch.no_grad():
        if "style_image" in case.inputs:
            encoder = build_inner_style_encoder(options)
            load_inner_style_encoder_weights(encoder, case.weights)
            code = encoder.eval()(case.inputs["style_image"])
        for run in (network, for_inference(network)):
            close(run(semantic_of(case), code), case.outputs["img_eval"], "img_eval")


@pytest.mark.parametrize("case", cases("spade_ckpt"))
def test_generators_of_checkpoint_files(case: Case) -> None:
    weights = read_torch_file(case.path.with_name(f"{case.path.stem}_latest_net_G.pth"))
    assert isinstance(weights, dict)
    network = synthesis_of(case.meta["constructor"], weights)
    with torch.no_grad():
        close(network(case.inputs["seg"].float(), case.inputs["z"]), case.outputs["img_eval"], "img_eval")


@pytest.mark.parametrize("case", cases("spade_e"))
def test_style_encoders(case: Case) -> None:
    network = build_style_encoder(case.meta["constructor"])
    load_style_encoder_weights(network, case.weights)
    with torch.no_grad():
        mean, log_variance = network.eval()(case.inputs["img"])
        close(mean, case.outputs["mu"], "mu")
        close(network.mean(case.inputs["img"]), case.outputs["mu"], "mean")
        close(log_variance, case.outputs["logvar"], "logvar")
        close(kl_divergence(mean, log_variance).sum(), case.outputs["kld"], "kld")
        for name, found in zip(("mu_train", "logvar_train"), network.train()(case.inputs["img"]), strict=True):
            # Batch norm over 32 numbers or fewer moves the official results by about as much.
            close(found, case.outputs[name], name, 1e-4)


@pytest.mark.parametrize("case", CARDIAC_ENCODERS)
def test_cardiac_style_encoders(case: Case) -> None:
    network = build_style_encoder(case.meta["constructor"], "cardiac")
    load_style_encoder_weights(network, case.weights)
    images = case.inputs["img"]
    with torch.no_grad():
        mean, log_variance = network.eval()(images)
        close(network.features(images), case.outputs["features"], "features")
    close(mean, case.outputs["mu"], "mu")
    close(log_variance, case.outputs["logvar"], "logvar")


@pytest.mark.parametrize("case", cases("spade_d"))
def test_discriminators(case: Case) -> None:
    network = build_discriminator(case.meta["constructor"])
    load_discriminator_weights(network, case.weights)
    with torch.no_grad():
        found = network.eval()(case.inputs["x"])
        for i, features in enumerate(found):
            for j, feature in enumerate(features):
                close(feature, case.outputs[f"eval/d{i}_f{j}"], f"d{i}_f{j}")
        assert sum(map(len, found)) == sum(name.startswith("eval/") for name in case.outputs)
        for i, features in enumerate(network.train()(case.inputs["x"])):
            close(features[-1], case.outputs[f"train/d{i}_last"], f"d{i}_last")


LOADERS = {
    "G": load_synthesis_weights,
    "inner": load_inner_style_encoder_weights,
    "E": load_style_encoder_weights,
    "D": load_discriminator_weights,
}


def as_tensors(official: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Weights of these shapes, without memory."""
    return {name: torch.empty(shape, device="meta") for name, shape in official.items()}


@pytest.mark.slow
@pytest.mark.parametrize("published", published_keys("spade"))
def test_published_networks_convert(published: Mapping[str, Any]) -> None:
    cardiac = "Cardiac" in published["source"]["repo"]
    defaults = {"use_vae": False, "contain_dontcare_label": False, "no_instance": True}
    for name, model in published["models"].items():
        if name.startswith("label_vae"):  # of whose layers only the names are known
            continue
        inside = name.startswith("stylespade")
        options = defaults | model["options"] | ({"netG": "stylespade"} if inside else {})
        with torch.device("meta"):
            networks: dict[str, nn.Module] = {"G": build_synthesis(options)}
            if inside:
                networks["inner"] = build_inner_style_encoder(options)
            if "E" in model:
                networks["E"] = build_style_encoder(options, "cardiac" if cardiac else "spade")
            if "D" in model:
                networks["D"] = build_discriminator(options)
        for part, network in networks.items():
            LOADERS[part](network, as_tensors(model["G" if part == "inner" else part]))
            if not cardiac:  # whose generators have layers that they never use
                count = sum(weight.numel() for weight in network.parameters())
                assert count == model["params"][part], f"{name}: {part}"
