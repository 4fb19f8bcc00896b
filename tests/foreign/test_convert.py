"""Official networks and whole checkpoints become medgen's; those of medgen's own training runs too."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from medgen.checkpoint import About, CheckpointError, read_checkpoint
from medgen.families.medfusion.generator import MedfusionConfig, MedfusionGenerator
from medgen.families.medfusion.official import convert_checkpoint
from medgen.families.vqvae2.generator import VQVAE2Config
from medgen.families.vqvae2.modules import PriorModule
from medgen.foreign.convert import convert, load_official, official_networks
from medgen.foreign.lightning_files import read_lightning
from medgen.foreign.pickles import UnsafeFileError
from medgen.generator import Generator
from medgen.loading import from_pretrained
from tests.parity.conftest import Case, cases, published_keys
from tests.tiny import changed

CHECKPOINTS = pytest.mark.parametrize("case", cases("medfusion_ckpt"))


def diffusion_file(case: Case) -> Path:
    return case.path.with_name(f"{case.path.stem}_diffusion.ckpt")


class ScriptedNoise:
    """The random draws of an official run in its order: the start, then per step one that is unused and one used."""

    def __init__(self, start: Tensor, later: Tensor) -> None:
        self.draws = iter([start, *later[1::2]])
        self.device = start.device
        self.size = len(start)

    def __len__(self) -> int:
        return self.size

    def normal(self, *shape: int) -> Tensor:
        draw = next(self.draws)
        assert draw.shape[1:] == shape
        return draw


def sample_as_official(generator: Generator, case: Case) -> Tensor:
    noise = ScriptedNoise(case.inputs["x_T"], case.inputs["noise_ddim10"])
    with torch.inference_mode():
        return generator._sample(case.inputs["condition"], noise, steps=10)


@pytest.mark.slow
@CHECKPOINTS
def test_a_converted_official_checkpoint_samples_the_official_images(case: Case, tmp_path: Path) -> None:
    size = tuple(case.inputs["image"].shape[2:])
    folder = convert(diffusion_file(case), tmp_path / "m", image_size=size, label_names=["ill", "well"])
    generator = from_pretrained(folder)
    assert generator.config.label_names == ("ill", "well")
    case.check("sample_image", sample_as_official(generator, case), relative=1e-4)


@CHECKPOINTS
def test_the_weights_of_the_perceptual_loss_and_the_schedule_are_left_out(case: Case) -> None:
    state = convert_checkpoint(diffusion_file(case)).state
    assert {name.split(".")[0] for name in state} == {"autoencoder", "unet", "latent_mean", "latent_std"}
    assert not any("perceiver" in name for name in state)


@CHECKPOINTS
def test_the_averaged_noise_estimator_is_taken_where_there_is_one(case: Case, tmp_path: Path) -> None:
    content = load_official_file(case)
    prefix = "noise_estimator."
    average = {
        "ema_model.averaged_model." + name.removeprefix(prefix): weight + 1
        for name, weight in content["state_dict"].items()
        if name.startswith(prefix)
    }
    content["state_dict"].update(average)
    torch.save(content, tmp_path / "ema.ckpt")
    plain, averaged = convert_checkpoint(diffusion_file(case)).state, convert_checkpoint(tmp_path / "ema.ckpt").state
    assert torch.equal(averaged["unet.stem.weight"], plain["unet.stem.weight"] + 1)


@CHECKPOINTS
def test_wrong_number_of_label_names_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=r"label_names are \['one'\], but the model knows 2 classes"):
        convert_checkpoint(diffusion_file(case), label_names=["one"])


@CHECKPOINTS
def test_an_autoencoder_alone_points_to_the_diffusion_checkpoint(case: Case) -> None:
    with pytest.raises(CheckpointError, match=r"_vae\.ckpt: it holds an autoencoder only.*diffusion checkpoint"):
        convert_checkpoint(case.path.with_name(f"{case.path.stem}_vae.ckpt"))


@pytest.mark.slow
@CHECKPOINTS
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_input_centering": True}, "trained with do_input_centering"),
        ({"estimator_objective": "score"}, "predicts 'score'"),
        ({"noise_estimator_kwargs": None}, "no noise_estimator_kwargs"),
        ({"noise_estimator_kwargs.hid_chs": [16, 16, 16]}, "unet is not of the shape"),
        ({"noise_estimator_kwargs.out_ch": 7}, "noise estimator makes 7 channels of"),
        ({"noise_estimator_kwargs.spatial_dims": 3}, "unet.spatial_dims is 3"),
        ({"noise_estimator_kwargs.strides": [1, 2]}, "strides has 2 entries"),
        ({"noise_scheduler_kwargs.schedule_strategy": "cosine"}, "noise schedule is not the cosine one"),
    ],
)
def test_what_the_generator_cannot_do_is_refused(
    case: Case, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    content = load_official_file(case)
    for key, value in change.items():
        *parents, last = key.split(".")
        target = content["hyper_parameters"]
        for parent in parents:
            target = target[parent]
        target[last] = value
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(tmp_path / "a.ckpt")


def load_official_file(case: Case) -> dict[str, dict]:
    """The content without the class names, so that torch.save can write it again."""
    from medgen.foreign.lightning_files import read_lightning

    file = read_lightning(diffusion_file(case))
    plain = {"noise_estimator_kwargs", "noise_scheduler_kwargs", "estimator_objective", "use_ema", "clip_x0"}
    settings = {name: value for name, value in file.hyper_parameters.items() if name in plain}
    for name in ("time_embedder", "cond_embedder"):
        settings["noise_estimator_kwargs"][name] = str(settings["noise_estimator_kwargs"][name])
    return {"state_dict": file.state_dict, "hyper_parameters": settings}


def test_another_projects_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"netG.weight": torch.ones(1)}, "hyper_parameters": {}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"not a Medfusion diffusion checkpoint.*netG"):
        convert_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(
        CheckpointError, match=r"a\.ckpt has a state_dict of netG; medgen converts .*official Medfusion"
    ):
        convert(tmp_path / "a.ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_with_a_payload_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, (f"open({str(tmp_path / 'mark')!r}, 'w')",)

    torch.save({"state_dict": {}, "hyper_parameters": {"a": Payload()}}, tmp_path / "a.ckpt")
    with pytest.raises(UnsafeFileError, match=r"builtins?(__)?\.eval"):
        convert(tmp_path / "a.ckpt", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.slow
@pytest.mark.parametrize("published", published_keys("medfusion"))
@pytest.mark.parametrize("variant", ["diffusion_pipeline_chest_emb8", "diffusion_pipeline_emb4"])
def test_the_published_layout_converts_at_full_size(published: dict, variant: str, tmp_path: Path) -> None:
    variants = published["variants"]
    layout = variants["diffusion_pipeline_chest_emb8"]["state_dict"] | variants[variant].get("shapes_that_differ", {})
    # Weights that repeat one number take no room, in memory or in the file.
    state = {
        name: torch.zeros((), dtype=getattr(torch, weight["dtype"])).expand(weight["shape"])
        for name, weight in layout.items()
    }
    channels = layout["noise_estimator.in_conv.conv.weight"]["shape"][1]
    schedule = {"timesteps": 1000, "beta_start": 0.002, "beta_end": 0.02, "schedule_strategy": "scaled_linear"}
    state["noise_scheduler.betas"] = torch.linspace(0.002**0.5, 0.02**0.5, 1000) ** 2
    unet = {
        **{"in_ch": channels, "out_ch": channels, "spatial_dims": 2, "hid_chs": [256, 256, 512, 1024]},
        **{"kernel_sizes": [3, 3, 3, 3], "strides": [1, 2, 2, 2], "time_embedder_kwargs": {"emb_dim": 1024}},
        **{"cond_embedder_kwargs": {"emb_dim": 1024, "num_classes": 2}, "deep_supervision": False},
    }
    settings = {"noise_estimator_kwargs": unet, "noise_scheduler_kwargs": schedule, "estimator_objective": "x_T"}
    torch.save({"state_dict": state, "hyper_parameters": settings}, tmp_path / "last.ckpt")
    config, converted, _ = convert_checkpoint(tmp_path / "last.ckpt")
    assert config == changed(
        MedfusionConfig(),
        autoencoder={"latent_channels": channels},
        label_kind="single",
        label_names=config.label_names,
    )
    sizes = {"unet": 0, "autoencoder": 0, "latent_mean": 0, "latent_std": 0}
    for name, weight in converted.items():
        sizes[name.split(".")[0]] += weight.numel()
    if channels == 8:
        entry = variants["diffusion_pipeline_chest_emb8"]
        assert sizes["unet"] == entry["n_parameters_noise_estimator"]
        assert sizes["autoencoder"] == entry["n_parameters_latent_embedder_without_perceiver"]


def test_a_training_run_of_medgen_becomes_a_checkpoint_with_the_averaged_weights(tmp_path: Path) -> None:
    generator = MedfusionGenerator(MedfusionConfig.tiny())
    state = {f"generator.{name}": torch.zeros_like(weight) for name, weight in generator.state_dict().items()}
    state |= {f"ema.module.{name}": weight for name, weight in generator.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"config": generator.config}}, tmp_path / "last.ckpt")
    folder = convert(tmp_path / "last.ckpt", tmp_path / "out", about=About(licence="CC0-1.0"))
    assert read_checkpoint(folder).about.licence == "CC0-1.0"
    loaded = from_pretrained(folder)
    assert loaded.config == generator.config
    assert torch.equal(loaded.sample(1, seed=0), generator.sample(1, seed=0))


@pytest.mark.slow
@pytest.mark.parametrize("level", ["top", "bottom"])
def test_a_training_run_is_published_from_the_stage_on_that_makes_the_generator_whole(
    level: Literal["top", "bottom"], tmp_path: Path
) -> None:
    module = PriorModule(VQVAE2Config.tiny(), level, previous="before.ckpt")
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(content)
    torch.save(content, tmp_path / "last.ckpt")
    if level == "bottom":
        generator = from_pretrained(convert(tmp_path / "last.ckpt", tmp_path / "out"))
        assert torch.equal(generator.sample(1, 0, seed=0), module.published.sample(1, 0, seed=0))
        return
    with pytest.raises(
        CheckpointError, match=r"last\.ckpt is from a training stage that has no generator yet; convert"
    ):
        convert(tmp_path / "last.ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_training_run_from_before_stages_said_so_is_published(tmp_path: Path) -> None:
    generator = MedfusionGenerator(MedfusionConfig.tiny())
    state = {f"ema.module.{name}": weight for name, weight in generator.state_dict().items()}
    content = {"state_dict": state, "hyper_parameters": {"config": generator.config}}
    torch.save(content, tmp_path / "old.ckpt")
    torch.save(content | {"publishable": False}, tmp_path / "new.ckpt")
    assert read_lightning(tmp_path / "old.ckpt").publishable
    assert not read_lightning(tmp_path / "new.ckpt").publishable
    assert convert(tmp_path / "old.ckpt", tmp_path / "out").is_dir()


@pytest.mark.parametrize("prior", ["top", "bottom"])
def test_priors_beside_a_file_that_takes_none_are_refused(prior: str, tmp_path: Path) -> None:
    content = {"state_dict": {"a": torch.ones(1)}, "hyper_parameters": {}}
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"top and bottom go with .*, which .*last\.ckpt is not; give that"):
        convert(tmp_path / "last.ckpt", tmp_path / "out", **{prior: tmp_path / "pixelsnail.pt"})
    assert not (tmp_path / "out").exists()


def test_an_option_that_no_family_has_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(
        ValueError, match=r"option doubling is unknown; use one of encoder, num_upsamplings, .*, bottom"
    ):
        convert(tmp_path / "a.pth", tmp_path / "out", doubling=5)


@pytest.mark.parametrize("content", [{"weight": torch.ones(1)}, [torch.ones(1)], {}], ids=["weights", "list", "empty"])
def test_a_file_of_no_known_kind_is_told_what_is_converted(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    held = {"dict": "weight" if content else "nothing", "list": "a list"}[type(content).__name__]
    with pytest.raises(CheckpointError, match=rf"a\.pth has {held}; medgen converts a diffusion .* or a checkpoint of"):
        convert(tmp_path / "a.pth", tmp_path / "out")


def test_a_training_run_without_a_generator_is_refused(tmp_path: Path) -> None:
    content = {"state_dict": {"a": torch.ones(1)}, "hyper_parameters": {"config": MedfusionConfig.tiny()}}
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="has no generator yet"):
        convert(tmp_path / "last.ckpt", tmp_path / "out")


@pytest.mark.parametrize("component", official_networks())
def test_official_networks_load_by_the_name_of_their_component(component: str) -> None:
    found = [case.values[0] for case in cases(component)]
    case = next((case for case in found if case and case.weights), None)  # files of whole checkpoints come without
    if case is None:
        pytest.skip(f"no {component}_*.json; set MEDGEN_PARITY")
    network = load_official(component, case.weights, case.kwargs)
    assert not network.training
    *_, last = case.weights.values()  # the first one may be a buffer that our network computes
    assert any(torch.equal(last, weight) for weight in network.state_dict().values())


def test_an_unknown_component_is_named() -> None:
    with pytest.raises(ValueError, match="'medfusion_gan' is unknown; use one of medfusion_unet"):
        load_official("medfusion_gan", {}, {})
