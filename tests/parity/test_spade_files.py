"""Official SPADE files as checkpoint folders: what follows from the weights, and what has to be said."""

from __future__ import annotations

import pytest
import torch

from medgen.cli import main
from medgen.families.spade.generator import SPADEGenerator
from medgen.foreign.convert import convert
from medgen.loading import from_pretrained
from tests.parity.conftest import Case, cases
from tests.parity.test_spade import options_of, semantic_of
from tests.parity.test_stylegan2 import close

WHOLE = [case for part in ("spade_g", "spade_cardiac") for case in cases(part) if "encoder" not in case.id]


def official_file(case: Case, tmp_path, prefix: str = "", name: str = "latest_net_G.pth"):
    weights = {key.removeprefix(prefix): value for key, value in case.weights.items() if key.startswith(prefix)}
    torch.save(weights, tmp_path / name)
    return tmp_path / name


def said_of(options):
    """What the weights do not tell of a generator with these official options."""
    said = {
        "dont_care": bool(options.get("contain_dontcare_label")),
        "instance_edges": not options.get("no_instance"),
        "num_upsamplings": {"few": 4, "normal": 5}[options["num_upsampling_layers"]],
    }
    return {name: value for name, value in said.items() if value}


@pytest.mark.slow
@pytest.mark.parametrize("case", WHOLE)
def test_a_converted_generator_draws_the_official_image(case, tmp_path):
    options = options_of(case)
    side = options["crop_size"]
    file = official_file(case, tmp_path)
    folder = convert(file, tmp_path / "model", image_size=(side, side), **said_of(options))
    generator = from_pretrained(folder)
    assert isinstance(generator, SPADEGenerator)
    semantic = semantic_of(case)
    code = case.inputs.get("z")
    if "style_image" in case.inputs:
        code = generator.style_encoder.mean(case.inputs["style_image"])
    with torch.no_grad():
        close(generator.synthesis(semantic, code), case.outputs["img_eval"], "img_eval")


@pytest.mark.slow
@pytest.mark.parametrize("case", cases("spade_ckpt"))
def test_a_file_of_an_old_torch_is_converted(case, tmp_path):
    file = case.path.with_name(case.path.stem + "_latest_net_G.pth")
    assert main(["convert", str(file), str(tmp_path / "model"), "--image_size", "64", "64"]) == 0
    generator = from_pretrained(tmp_path / "model")
    assert generator.config.style == "drawn"
    with torch.no_grad():
        images = generator.synthesis(case.inputs["seg"].float(), case.inputs["z"])
        close(images, case.outputs["img_eval"], "img_eval")
    masks = case.inputs["seg"].argmax(1)
    assert generator.sample(2, mask=masks, seed=0).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("case", cases("spade_model_vae"))
def test_the_style_encoder_comes_from_its_own_file(case, tmp_path):
    file = official_file(case, tmp_path, "netG.")
    encoder = official_file(case, tmp_path, "netE.", "latest_net_E.pth")
    names = ["background", "right ventricle", "myocardium", "left ventricle"]
    folder = convert(file, tmp_path / "model", encoder=encoder, label_names=names)
    generator = from_pretrained(folder)
    assert generator.config.mask_names == tuple(names)
    images = case.inputs["image_u8"].float() / 255
    assert generator.encode_style(images).values.shape == (1, 256)
    with pytest.raises(ValueError, match="is no style encoder: it has no fc_mu"):
        convert(file, tmp_path / "other", encoder=file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_names": ["a", "b"]}, "label_names has 2 names, but .* has 6 classes; say dont_care or instance_edges"),
        ({"num_upsamplings": 3}, "num_upsamplings is 3"),
        ({"image_size": (60, 60)}, r"image_size is \(60, 60\); with num_upsamplings 5 both sides must be divisible"),
        ({"encoder": "latest_net_E.pth"}, "takes no codes of it; leave it out"),
    ],
)
@pytest.mark.parametrize("case", cases("spade_g_seg"))
def test_what_contradicts_the_weights_is_refused(case, options, message, tmp_path):
    file = official_file(case, tmp_path)
    options = {"encoder": file} if "encoder" in options else options
    with pytest.raises(ValueError, match=message):
        convert(file, tmp_path / "model", **({"image_size": (64, 64)} | options))


def test_options_of_spade_are_refused_for_other_files(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="go with a generator of the official SPADE code"):
        convert(tmp_path / "other.pth", tmp_path / "model", dont_care=True)


@pytest.mark.parametrize("case", cases("spade_g_seg"))
def test_the_old_name_of_num_upsamplings_works(case, tmp_path):
    file = official_file(case, tmp_path)
    with (
        pytest.warns(FutureWarning, match="doublings is now num_upsamplings"),
        pytest.raises(ValueError, match="num_upsamplings is 3"),
    ):
        convert(file, tmp_path / "model", image_size=(64, 64), doublings=3)
