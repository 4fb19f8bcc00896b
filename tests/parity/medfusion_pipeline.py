"""Our parts in place of those of an official Medfusion DiffusionPipeline that a fixture describes."""

from typing import Any

from torch import Tensor, nn

from medgen.diffusion.schedule import NoiseSchedule
from medgen.families.medfusion.convert import build_autoencoder, build_discriminators, build_unet, load_weights
from medgen.nn.autoencoder import KLAutoencoder, VQAutoencoder
from medgen.nn.unet import UNet
from tests.parity.conftest import Case

OBJECTIVES = {"x_T": "eps", "x_0": "x_0"}
PIXEL_LOSSES = {"L1Loss": "l1", "MSELoss": "mse", "SmoothL1Loss": "huber"}


def pixel_loss(kwargs: dict[str, Any]) -> str:
    """Our name of the official argument `loss`, which is a class of torch and L1 by default."""
    return PIXEL_LOSSES[(kwargs.get("loss") or "L1Loss").rpartition(".")[2]]


def build_schedule(kwargs: dict[str, Any]) -> NoiseSchedule:
    """The schedule for the arguments of the official GaussianNoiseScheduler; the defaults of both are the same."""
    return NoiseSchedule(**{{"schedule_strategy": "shape"}.get(key, key): value for key, value in kwargs.items()})


def load_unet(case: Case) -> UNet:
    """The noise estimator with the weights the official one samples with."""
    constructor, pipeline = case.meta["constructor"], case.kwargs
    flags = {key: pipeline[key] for key in ("estimate_variance", "use_self_conditioning")}
    kind = "additive" if ".unet." in constructor.get("noise_estimator", "unet2") else "concatenated"
    unet = build_unet(constructor["noise_estimator_kwargs"] | flags, kind)
    load_weights(unet, part(case, "ema_model.averaged_model." if pipeline["use_ema"] else "noise_estimator."))
    return unet.eval()


def load_autoencoder(case: Case) -> KLAutoencoder | VQAutoencoder | None:
    """The latent embedder, if there is one."""
    arguments = case.meta["constructor"]["latent_embedder_kwargs"]
    if arguments is None:
        return None
    weights = part(case, "latent_embedder.")
    autoencoder = build_autoencoder(arguments, "vq" if "quantizer.embedder.weight" in weights else "kl")
    load_weights(autoencoder, weights)
    return autoencoder.eval()


def load_autoencoder_and_discriminators(case: Case) -> tuple[KLAutoencoder | VQAutoencoder, nn.ModuleList]:
    """Both sides of an official VAEGAN or VQGAN."""
    kind = "kl" if "VAEGAN" in case.official_class else "vq"
    autoencoder, discriminators = build_autoencoder(case.kwargs, kind), build_discriminators(case.kwargs, kind)
    load_weights(autoencoder, part(case, "vqvae."))
    for scale, discriminator in enumerate(discriminators):
        load_weights(discriminator, part(case, f"discriminator.{scale}."))
    return autoencoder.eval(), discriminators.eval()


def part(case: Case, prefix: str) -> dict[str, Tensor]:
    """The weights whose name begins with `prefix`, without it."""
    return {name.removeprefix(prefix): w for name, w in case.weights.items() if name.startswith(prefix)}
