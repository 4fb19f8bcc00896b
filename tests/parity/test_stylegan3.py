"""StyleGAN3's generators, T and R, against the official ones."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from medgen.families.stylegan3.convert import build_generator, generator_weights
from medgen.families.stylegan3.generator import StyleGAN3Generator
from medgen.foreign.convert import DISCRIMINATOR_FILE, convert, load_official
from medgen.loading import from_pretrained
from tests.official_pickles import EasyDict, module, official_names
from tests.parity.conftest import Case, cases, published_keys
from tests.parity.test_stylegan2 import close

GENERATORS = pytest.mark.parametrize("case", [*cases("stylegan3_t"), *cases("stylegan3_r")])


@torch.no_grad()
def check_images(generator: StyleGAN3Generator, case: Case) -> None:
    w = generator.mapping(case.inputs["z"], case.inputs.get("c"))
    styles = w[:, None].repeat(1, generator.num_ws, 1)
    close(styles, case.outputs["ws"], "ws")
    close(generator.synthesis(styles), case.outputs["img"], "img")
    middle = generator.w_avg
    close(generator.synthesis(middle + 0.7 * (styles - middle)), case.outputs["img_psi07"], "img_psi07")


@GENERATORS
def test_images_and_styles(case: Case) -> None:
    check_images(load_official("stylegan3_generator", case.weights, case.meta["constructor"]), case)


@GENERATORS
def test_other_filters_than_the_arguments_lead_to_are_refused(case: Case) -> None:
    constructor = case.meta["constructor"]
    with pytest.raises(ValueError, match=r"synthesis\.L\d+_\d+_\d+\.(up|down)_filter is another low-pass filter"):
        load_official("stylegan3_generator", case.weights, {**constructor, "last_stopband_rel": 2**0.4})


@pytest.mark.parametrize("published", published_keys("stylegan3"))
def test_published_networks_convert(published: Mapping[str, Any]) -> None:
    for name, model in published["models"].items():
        with torch.device("meta"):
            generator = build_generator(model["constructor"])
            official = {key: torch.empty(shape) for key, shape in model["G"].items()}
        converted = {key: tuple(value.shape) for key, value in generator_weights(official).items()}
        assert converted == {key: tuple(value.shape) for key, value in generator.state_dict().items()}, name
        assert sum(weight.numel() for weight in generator.parameters()) == model["params"], name
        for key, shape in model["G"].items():
            if key.endswith("_filter"):
                _, layer, filter_name = key.split(".")
                ours = generator.synthesis.layers[int(layer.split("_")[0].removeprefix("L"))]
                assert list(getattr(ours.activation, filter_name.removesuffix("_filter")).shape) == shape, key


@GENERATORS
def test_a_pickled_generator_becomes_a_checkpoint_with_the_official_images(case: Case, tmp_path: Path) -> None:
    network = module("Generator", case.weights, _init_args=(), _init_kwargs=EasyDict(case.meta["constructor"]))
    with official_names():
        content = pickle.dumps({"training_set_kwargs": None, "G": None, "D": None, "G_ema": network})
    (tmp_path / "net.pkl").write_bytes(content)
    folder = convert(tmp_path / "net.pkl", tmp_path / "model")
    assert not (folder / DISCRIMINATOR_FILE).exists()
    generator = from_pretrained(folder)
    assert generator.family == "stylegan3"
    check_images(generator, case)
