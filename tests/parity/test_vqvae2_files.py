"""Whole official VQ-VAE2 checkpoints, small ones with known outputs and the published layout."""

from pathlib import Path

import pytest
import torch

from medgen.checkpoint import CheckpointError
from medgen.families.vqvae2.generator import VQVAE2Config, VQVAE2Generator
from medgen.families.vqvae2.official import convert_checkpoints
from medgen.foreign.convert import convert, load_official
from medgen.foreign.torch_files import read_torch_file
from medgen.loading import from_pretrained
from tests.families.vqvae2.official_files import background, official_weights, write_files
from tests.parity.conftest import Case, cases, published_keys

CHECKPOINTS = pytest.mark.parametrize("case", cases("vqvae2_ckpt"))
PUBLISHED = pytest.mark.parametrize("published", published_keys("vqvae2"))


def file(case: Case, name: str) -> Path:
    return case.path.with_name(f"{case.path.stem}_{name}.pt")


def with_more_codes(case: Case, folder: Path, num_codes: int = 512) -> Path:
    """The autoencoder's file with codebooks as large as the priors expect; the new codes are too far off to be used."""
    weights = read_torch_file(file(case, "vqvae"))
    assert isinstance(weights, dict)
    for name in [name for name in weights if name.startswith(("quantize_t.", "quantize_b."))]:
        grown = torch.full((*weights[name].shape[:-1], num_codes), 1e3)
        grown[..., : weights[name].shape[-1]] = weights[name]
        weights[name] = grown
    torch.save(weights, folder / "vqvae_560.pt")
    return folder / "vqvae_560.pt"


@CHECKPOINTS
def test_priors_of_more_codes_than_the_autoencoder_has_are_refused(case: Case) -> None:
    files = [file(case, name) for name in ("vqvae", "pixelsnail_top", "pixelsnail_bottom")]
    with pytest.raises(CheckpointError, match=r"_top\.pt knows 512 codes \(n_class\), but .*_vqvae\.pt has 32; give"):
        convert_checkpoints(*files)


@pytest.mark.slow
@CHECKPOINTS
@torch.inference_mode()
def test_a_converted_checkpoint_has_the_official_outputs(case: Case, tmp_path: Path) -> None:
    top, bottom = file(case, "pixelsnail_top"), file(case, "pixelsnail_bottom")
    folder = convert(with_more_codes(case, tmp_path), tmp_path / "m", top=top, bottom=bottom)
    generator = from_pretrained(folder)
    assert isinstance(generator, VQVAE2Generator)
    assert (generator.config.image_size, generator.config.label_kind) == ((256, 256), "none")
    assert (generator.config.top.attention, generator.config.bottom.attention) == (True, False)
    codes = case.inputs["code_top"], case.inputs["code_bottom"]
    logits = {"top": generator.top(codes[0]), "bottom": generator.bottom(codes[1], codes[0])}
    for name in case.outputs:
        if "logits" in name:
            level, row = name.split("_logits_row")
            case.check(name, logits[level][:, :, int(row)])
    copies, quantized = generator.autoencoder(case.inputs["x"])
    case.check("vqvae_id_t", quantized.codes.top)
    case.check("vqvae_id_b", quantized.codes.bottom)
    case.check("vqvae_dec", copies)


@CHECKPOINTS
@torch.inference_mode()
def test_the_autoencoder_alone_loads_as_a_component(case: Case) -> None:
    weights = read_torch_file(file(case, "vqvae"))
    network = load_official("vqvae2", weights, case.meta["constructor"]["vqvae_kwargs"])
    copies, quantized = network(case.inputs["x"])
    case.check("vqvae_id_t", quantized.codes.top)
    case.check("vqvae_id_b", quantized.codes.bottom)
    case.check("vqvae_dec", copies)


@pytest.mark.slow
@PUBLISHED
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_published_layout_converts_to_the_defaults(published: dict, prefix: str, tmp_path: Path) -> None:
    variants = {name.split(".")[0].split("_")[-1]: entry for name, entry in published["variants"].items()}
    variants["autoencoder"] = variants.pop("560")
    # Weights that repeat one number take no room, in memory or in the file.
    weights = {
        part: {
            name: torch.zeros((), dtype=getattr(torch, weight["dtype"])).expand(weight["shape"])
            for name, weight in entry["state_dict"].items()
        }
        for part, entry in variants.items()
    }
    for part in ("top", "bottom"):
        weights[part]["background"] = background(*weights[part]["background"].shape[2:])
    files = write_files(tmp_path, weights, prefix=prefix)
    config, state, _ = convert_checkpoints(**files)
    assert config == VQVAE2Config()
    with torch.device("meta"):
        expected = VQVAE2Generator(config).state_dict()
    assert {name: weight.shape for name, weight in state.items()} == {name: w.shape for name, w in expected.items()}
    for part, entry in variants.items():
        mine = sum(weight.numel() for name, weight in state.items() if name.startswith(f"{part}."))
        assert mine == entry["n_parameters"] + entry.get("n_buffers", 0)


@pytest.mark.slow
@PUBLISHED
def test_files_of_the_tests_have_the_published_names_and_shapes(published: dict) -> None:
    with torch.device("meta"):
        weights = official_weights(VQVAE2Generator(VQVAE2Config()))
    for name, part in (
        ("vqvae_560.pt", "autoencoder"),
        ("pixelsnail_top.pt", "top"),
        ("pixelsnail_bottom.pt", "bottom"),
    ):
        layout = published["variants"][name]["state_dict"]
        assert {key: list(w.shape) for key, w in weights[part].items()} == {k: w["shape"] for k, w in layout.items()}
