"""The training loss of the second stage and its gradients against the official DiffusionPipeline's."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from medgen.diffusion.objective import DiffusionLoss, diffusion_loss
from medgen.nn.unet import UNet
from tests.parity.conftest import Case, cases
from tests.parity.medfusion_pipeline import OBJECTIVES, build_schedule, load_autoencoder, load_unet, pixel_loss

TERMS = {"log_L1": "l1", "log_L2": "mse", "log_variance_loss": "variance", "log_variance_scale": "variance_fraction"}


def clean_input(case: Case) -> Tensor:
    """What the diffusion starts from: the drawn latent or the image, moved to [-1, 1] if the pipeline does so."""
    x, autoencoder = case.inputs["source"], load_autoencoder(case)
    if autoencoder is not None:
        with torch.no_grad():
            noise = case.inputs.get("vae_noise")
            x = autoencoder.encode(x) if noise is None else autoencoder.encode(x, noise)
    return 2 * x - 1 if case.kwargs["do_input_centering"] else x


def train_step(case: Case, unet: UNet, call: dict[str, Any]) -> DiffusionLoss:
    pipeline = case.kwargs
    label = case.inputs.get("target") if call["rand"] >= pipeline["classifier_free_guidance_dropout"] else None

    def network(x_t: Tensor, t: Tensor, x_0: Tensor | None) -> list[Tensor]:
        return unet.multiscale(x_t, t, label, x_0)

    step = partial(diffusion_loss, network, clean_input(case), case.inputs["t"], case.inputs["x_T"])
    return step(
        build_schedule(case.meta["constructor"]["noise_scheduler_kwargs"]),
        prediction_type=OBJECTIVES[pipeline["estimator_objective"]],
        distance=pixel_loss(pipeline),
        clip=pipeline["clip_x0"],
        self_conditioning=pipeline["use_self_conditioning"],
        variance_mean="truth",
    )


@pytest.mark.parametrize("case", cases("medfusion_trainstep"))
def test_loss_and_its_terms_equal_the_official_ones(case: Case) -> None:
    for name, call in case.meta["calls"].items():
        loss = train_step(case, load_unet(case), call)
        case.check(f"{name}/loss", loss.total)
        for official, term in TERMS.items():
            if f"{name}/{official}" in case.outputs:
                case.check(f"{name}/{official}", loss.terms[term])


@pytest.mark.parametrize("case", cases("medfusion_trainstep"))
def test_gradients_equal_the_official_ones(case: Case) -> None:
    for name, call in case.meta["calls"].items():
        unet = load_unet(case)
        train_step(case, unet, call).total.backward()
        case.check(f"{name}/grad_in_conv", unet.stem.weight.grad)
        case.check(f"{name}/grad_outc_bias", unet.heads[0].bias.grad)
