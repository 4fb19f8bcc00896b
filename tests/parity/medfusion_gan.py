"""What the tests of the official VAEGAN and VQGAN share: the two alternate steps of adversarial training."""

from typing import NamedTuple

from torch import Tensor, nn

from medgen.families.medfusion.convert import convert_weights
from medgen.losses.autoencoder import AutoencoderLoss
from medgen.losses.divergence import kl_divergence
from medgen.nn.autoencoder import KLAutoencoder, VQAutoencoder
from tests.parity.conftest import Case
from tests.parity.medfusion_pipeline import load_autoencoder_and_discriminators


class Setup(NamedTuple):
    autoencoder: KLAutoencoder | VQAutoencoder
    discriminators: nn.ModuleList
    loss: AutoencoderLoss
    outputs: list[Tensor]
    latent_loss: Tensor
    latent_weight: float


def set_up(case: Case) -> Setup:
    autoencoder, discriminators = load_autoencoder_and_discriminators(case)
    x = case.inputs["x"]
    if isinstance(autoencoder, KLAutoencoder):
        mean, log_variance = autoencoder.encode_moments(x)
        outputs = autoencoder.decode_multiscale(autoencoder.encode(x, case.inputs["noise"]))
        latent_loss, latent_weight = kl_divergence(mean, log_variance).mean(), 1e-6
    else:
        outputs, quantized = autoencoder.decode_multiscale(autoencoder.encode(x))
        latent_loss, latent_weight = quantized.loss, 1
    # Both official classes ignore the argument `pixel_loss`
    loss = AutoencoderLoss(reduction="sum" if latent_weight != 1 else "mean", downscaling="area")
    latent_weight = case.kwargs.get("embedding_loss_weight", latent_weight)
    return Setup(autoencoder, discriminators, loss, outputs, latent_loss, latent_weight)


def check_gradients(case: Case, network: nn.Module, step: str, prefix: str) -> None:
    """Compares the gradients stored for a network, whose names are the official ones."""
    stored = [name for name in case.outputs if name.startswith(f"{step}_grad/{prefix}")]
    assert stored
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    for name in stored:
        official = name.removeprefix(f"{step}_grad/{prefix}")
        (ours,) = convert_weights(network, {official: case.outputs[name]})
        case.check(name, gradients[ours])


def check_autoencoder_step(case: Case) -> None:
    setup = set_up(case)
    last_layers = [head.weight for head in setup.autoencoder.decoder.heads]
    image_loss, terms = setup.loss(setup.outputs, case.inputs["x"], setup.discriminators, last_layers)
    total = image_loss + setup.latent_weight * setup.latent_loss
    total.backward()
    case.check("opt0_log_emb_loss", setup.latent_loss)
    case.check("opt0_log_img_loss", image_loss)
    case.check("loss_opt0", total)
    for scale in range(len(setup.discriminators)):
        case.check(f"opt0_log_lambda_{scale}", terms[f"adaptive_weight_{scale}"])
        case.check(f"opt0_log_gan_loss_{scale}", terms[f"adversarial_{scale}"])
    check_gradients(case, setup.autoencoder, "opt0", "vqvae.")


def check_discriminator_step(case: Case) -> None:
    setup = set_up(case)
    total, terms = setup.loss.discriminator_loss(setup.outputs, case.inputs["x"], setup.discriminators)
    total.backward()
    case.check("loss_opt1", total)
    for scale, discriminator in enumerate(setup.discriminators):
        # What the official VAEGAN logs as the first loss becomes the sum: the others are added to it in place
        is_sum = scale == 0 and setup.loss.reduction == "sum"
        case.check(f"opt1_log_loss_1_{scale}", total if is_sum else terms[f"discriminator_{scale}"])
        prefix = f"discriminator.{scale}."
        if any(name.startswith(f"opt1_grad/{prefix}") for name in case.outputs):
            check_gradients(case, discriminator, "opt1", prefix)
