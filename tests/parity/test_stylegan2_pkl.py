"""The official container of StyleGAN2-ADA, in two pickle protocols, against what the official code computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medgen.checkpoint import DISCRIMINATOR_FILE, read_checkpoint
from medgen.cli import main
from medgen.families.stylegan2.convert import build_discriminator, discriminator_weights, pickled_config
from medgen.foreign.convert import convert
from medgen.foreign.network_pickles import read_network_pickle
from medgen.loading import from_pretrained
from medgen.published import load_strictly
from tests.parity.conftest import Case, cases
from tests.parity.test_stylegan2 import close

FILES = pytest.mark.parametrize("case", cases("stylegan2_pkl"))
PROTOCOLS = pytest.mark.parametrize("ending", [".pkl", "_proto3.pkl"])


def file_of(case: Case, ending: str) -> Path:
    return case.path.with_name(f"{case.path.stem}{ending}")


@FILES
@PROTOCOLS
def test_weights_and_arguments_are_those_the_official_code_holds(case: Case, ending: str) -> None:
    networks = read_network_pickle(file_of(case, ending))
    found = {f"{name}.{key}": w for name, network in networks.items() for key, w in network.state_dict.items()}
    assert found.keys() == case.weights.keys()
    assert [name for name, weight in found.items() if not torch.equal(weight, case.weights[name])] == []
    assert {name: network.class_name for name, network in networks.items()} == {
        **{"G": "Generator", "D": "Discriminator", "G_ema": "Generator", "augment_pipe": "AugmentPipe"}
    }
    assert networks["G"].arguments == networks["G_ema"].arguments == case.meta["constructor"]["G"]
    assert networks["D"].arguments == case.meta["constructor"]["D"]


@FILES
@PROTOCOLS
def test_the_converted_networks_compute_the_official_images_and_logits(case: Case, ending: str, tmp_path: Path) -> None:
    folder = convert(file_of(case, ending), tmp_path / "model", label_names=["no", "yes"])
    generator = from_pretrained(folder)
    assert generator.config.label_names == ("no", "yes")
    assert generator.config.clamp == case.meta["constructor"]["G"]["synthesis_kwargs"]["conv_clamp"]
    z, label = case.inputs["z"], case.inputs["c"]
    with torch.no_grad():
        styles = generator.mapping(z, label)[:, None].repeat(1, generator.config.num_ws, 1)
        noise = generator.synthesis.fixed_noise()
        images = generator.synthesis(styles, *noise)
        close(images, case.outputs["img_const"], "img_const")
        middle = generator.w_avg
        typical = generator.synthesis(middle + 0.7 * (styles - middle), *noise)
        close(typical, case.outputs["img_const_psi07"], "img_const_psi07")
        discriminator = build_discriminator(case.meta["constructor"]["D"])
        load_strictly(discriminator, load_file(folder / DISCRIMINATOR_FILE), where="the folder")
        close(discriminator(images, label), case.outputs["logits"].flatten(), "logits")
    assert DISCRIMINATOR_FILE in read_checkpoint(folder).files


@FILES
def test_the_discriminator_beside_the_weights_is_the_official_one(case: Case, tmp_path: Path) -> None:
    found = load_file(convert(file_of(case, ".pkl"), tmp_path / "model") / DISCRIMINATOR_FILE)
    expected = discriminator_weights({k.removeprefix("D."): w for k, w in case.weights.items() if k.startswith("D.")})
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@FILES
def test_the_command_line_converts_it(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert main(["convert", str(file_of(case, ".pkl")), str(out), "--label_names", "a", "b"]) == 0
    assert from_pretrained(out).sample(2, "b", seed=0).shape == (2, 1, 16, 16)


@FILES
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": (16, 16)}, "states its image_size itself; leave it out"),
        ({"label_names": ["one"]}, r"label_names are \['one'\], but the generator has 2 classes"),
        ({"top": "pixelsnail.pt"}, "top and bottom go with the autoencoder"),
    ],
)
def test_what_the_file_states_or_has_no_use_for_is_refused(
    case: Case, arguments: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        convert(file_of(case, ".pkl"), tmp_path / "model", **arguments)
    assert not (tmp_path / "model").exists()


@FILES
def test_a_stylegan2_of_the_code_of_stylegan3_has_the_same_config(case: Case) -> None:
    network = read_network_pickle(file_of(case, ".pkl"))["G_ema"]
    plain = dict(network.arguments)
    synthesis = plain.pop("synthesis_kwargs")
    clamp = synthesis.pop("conv_clamp")  # its default there, which only the layers tell
    beside = replace(network, arguments={**plain, **synthesis, "fused_modconv_default": "inference_only"})
    assert pickled_config(beside) == pickled_config(network)
    assert pickled_config(beside).clamp == clamp
