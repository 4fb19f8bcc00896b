"""Options, attributes, configs and weights by the names they had in medgen 0.1."""

import zipfile

import pytest
import torch

from medgen.families.stylegan2 import generator as stylegan2
from medgen.families.stylegan2.latents import walk
from medgen.families.stylegan2.modules import StyleGAN2Module
from medgen.families.stylegan2.transfer import read_pretrained
from medgen.families.stylegan3 import generator as stylegan3
from medgen.published import load_strictly
from tests.tiny import nudge

KINDS = [(stylegan2, "StyleGAN2"), (stylegan3, "StyleGAN3")]
OLD = {"truncation": 0.5, "truncation_layers": 2, "layer_noise": "fixed"}
NEW = {"truncation_psi": 0.5, "truncation_cutoff": 2, "noise_mode": "fixed"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nudge(stylegan2.StyleGAN2Generator(stylegan2.StyleGAN2Config.tiny())).eval()


def old_state(state):
    return {name.replace("w_avg", "mean_style"): weight.clone() for name, weight in state.items()}


def test_old_options_give_the_images_of_the_new_ones_and_a_warning(model):
    with pytest.warns(FutureWarning, match="truncation_layers is now truncation_cutoff"):
        images = model.sample(2, "finding", seed=0, **OLD)
    assert torch.equal(images, model.sample(2, "finding", seed=0, **NEW))
    with pytest.warns(FutureWarning, match="layer_noise is now noise_mode"):
        model.check_options(OLD)
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match="truncation_psi is 9; use 0"):
        model.check_options({"truncation": 9})


def test_old_arguments_of_styles_and_what_is_done_with_them_work(model):
    with pytest.warns(FutureWarning, match="truncation is now truncation_psi"):
        styles = model.styles(2, "finding", seed=0, **OLD)
    assert torch.equal(styles, model.styles(2, "finding", seed=0, **NEW))
    with pytest.warns(FutureWarning, match="layer_noise is now noise_mode"):
        images = model.synthesize(styles, layer_noise="none")
    assert torch.equal(images, model.synthesize(styles, noise_mode="none"))
    with pytest.warns(FutureWarning, match="truncation is now truncation_psi"):
        walk(model, 2, seeds=[0, 1], labels=["finding"], truncation=0.5)


def test_an_option_by_both_names_is_refused(model):
    with pytest.raises(ValueError, match="truncation and truncation_psi are given"):
        model.sample(1, truncation=0.5, truncation_psi=0.5)


def test_old_attributes_work(model):
    with pytest.warns(FutureWarning, match="mean_style is now w_avg"):
        assert model.mean_style is model.w_avg
    with pytest.warns(FutureWarning, match="num_styles is now num_ws"):
        assert model.num_styles == model.num_ws


@pytest.mark.parametrize(("module", "name"), KINDS)
def test_a_config_that_was_pickled_in_the_module_of_the_generator_loads(module, name, tmp_path, monkeypatch):
    kind = getattr(module, f"{name}Config")
    with monkeypatch.context() as patch:
        patch.setattr(kind, "__module__", module.__name__)
        torch.save({"config": kind.tiny()}, tmp_path / "run.ckpt")
    with zipfile.ZipFile(tmp_path / "run.ckpt") as file:
        assert f"{module.__name__}\n{name}Config".encode() in file.read("run/data.pkl")
    assert torch.load(tmp_path / "run.ckpt", weights_only=True)["config"] == kind.tiny()


def test_a_state_dict_with_the_old_name_is_taken_strictly(model):
    new = stylegan2.StyleGAN2Generator(model.config)
    load_strictly(new, old_state(model.state_dict()), where="an old file")
    assert torch.equal(new.w_avg, model.w_avg)


def test_an_old_training_run_resumes_and_is_fine_tuned(model, tmp_path):
    first, second = (StyleGAN2Module(model.config, noise_inputs=False) for _ in range(2))
    first.generator.w_avg.normal_()
    first.published.w_avg.normal_()
    state = old_state(first.state_dict())
    second.load_state_dict(state)
    assert all(torch.equal(weight, second.state_dict()[name]) for name, weight in first.state_dict().items())
    torch.save({"hyper_parameters": {"config": model.config}, "state_dict": state}, tmp_path / "run.ckpt")
    assert torch.equal(read_pretrained(str(tmp_path / "run.ckpt")).generator["w_avg"], first.published.w_avg)
