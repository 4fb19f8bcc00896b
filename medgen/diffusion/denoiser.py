"""From a network to a denoiser: what its output means, guidance by a label, self-conditioning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from medgen.diffusion.schedule import NoiseSchedule

PredictionType = Literal["eps", "x_0", "v"]


class Estimate(NamedTuple):
    """What a denoiser makes of x_t.

    Attributes:
        x_0: The clean image, (B, C, ...).
        eps: The noise in x_t, (B, C, ...).
        variance: Where the variance of the step lies between its bounds, 0 to 1, (B, C, ...); None if not learned.
    """

    x_0: Tensor
    eps: Tensor
    variance: Tensor | None = None


class Denoiser(Protocol):
    """What samplers call."""

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        """Estimate the clean image and the noise in x_t (B, C, ...) at the times t (B,) int64."""
        ...


class Network(Protocol):
    """A network whose label, if it takes one, has been settled."""

    def __call__(self, x_t: Tensor, t: Tensor, x_0: Tensor | None) -> Tensor:
        """Prediction (B, C, ...), or (B, 2 C, ...) with learned variance; x_0 is the last estimate, if there is one."""
        ...


class ConditionalNetwork(Protocol):
    """A network that takes a label."""

    def __call__(self, x_t: Tensor, t: Tensor, label: Tensor | None, x_0: Tensor | None) -> Tensor:
        """As `Network`; label is (B,) int64 with -1 for none, or (B, K) float32 with NaN for none, or None at all."""
        ...


X_0: Mapping[PredictionType, Callable[[NoiseSchedule, Tensor, Tensor, Tensor], Tensor]] = {
    "eps": NoiseSchedule.x_0_from_eps,
    "x_0": lambda schedule, x_t, prediction, t: prediction,
    "v": NoiseSchedule.x_0_from_velocity,
}


def estimate_x_0(
    schedule: NoiseSchedule,
    x_t: Tensor,
    prediction: Tensor,
    t: Tensor,
    prediction_type: PredictionType,
    *,
    clip: bool = False,
) -> Tensor:
    """The clean image that a prediction implies, (B, C, ...), held in [-1, 1] if ``clip``.

    Raises:
        ValueError: If there is no such prediction type.
    """
    if prediction_type not in X_0:
        raise ValueError(
            f"prediction_type is {prediction_type!r}; use one of {', '.join(map(repr, get_args(PredictionType)))}"
        )
    x_0 = X_0[prediction_type](schedule, x_t, prediction, t)
    return x_0.clamp(-1, 1) if clip else x_0


def split_variance(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Separate a network's output into its prediction and the variance fraction in its second half, if it has one.

    The network says -1 for the smaller and 1 for the larger bound of the variance; the fraction goes from 0 to 1.

    Raises:
        ValueError: If the output has neither ``channels`` channels nor twice as many.
    """
    if output.shape[1] == channels:
        return output, None
    if output.shape[1] != 2 * channels:
        raise ValueError(
            f"the network gave {output.shape[1]} channels for an x_t of {channels}; expected as many or twice"
        )
    prediction, variance = output.chunk(2, dim=1)
    return prediction, variance / 2 + 0.5


class NetworkDenoiser:
    """A network's output read as an `Estimate`. Make a new one for every sampling run.

    Args:
        network: Prediction of noise, clean image or velocity; a second half of channels is the learned variance.
        schedule: The forward process the network was trained on.
        prediction_type: What the network predicts.
        clip: Hold x_0 in [-1, 1]; right for pixels, wrong for latents. The noise stays what the network said.
        self_conditioning: Give the network the x_0 of the step before (Chen et al. 2022, "Analog bits").
    """

    def __init__(
        self,
        network: Network,
        schedule: NoiseSchedule,
        *,
        prediction_type: PredictionType = "eps",
        clip: bool = False,
        self_conditioning: bool = False,
    ) -> None:
        self.network = network
        self.schedule = schedule
        self.prediction_type: PredictionType = prediction_type
        self.clip = clip
        self.self_conditioning = self_conditioning
        self._previous: Tensor | None = None

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        """Estimate the clean image and the noise in x_t (B, C, ...) at the times t (B,) int64."""
        output = self.network(x_t, t, self._previous).to(x_t.dtype)  # a half-precision network, full-precision steps
        prediction, variance = split_variance(output, x_t.shape[1])
        x_0 = estimate_x_0(self.schedule, x_t, prediction, t, self.prediction_type, clip=self.clip)
        eps = prediction if self.prediction_type == "eps" else self.schedule.eps_from_x_0(x_t, x_0, t)
        if self.self_conditioning:
            self._previous = x_0
        return Estimate(x_0, eps, variance)


def unlabelled(label: Tensor) -> Tensor:
    """The label that says "no label" to a network, in the shape and type of ``label``."""
    return torch.full_like(label, torch.nan if label.is_floating_point() else -1)


def guided(
    network: ConditionalNetwork, label: Tensor | None, *, weight: float = 1.0, negative: Tensor | None = None
) -> Network:
    """Classifier-free guidance: prediction_u + weight (prediction_c - prediction_u), for any prediction type.

    Both passes run as one batch of twice the size; with weight 1, or without a label, there is only one pass. A learned
    variance is taken from the pass with the label.

    Args:
        network: The network that takes a label.
        label: What the images should show, (B,) int64 or (B, K) float32; None for no label.
        weight: 1 follows the label as trained, more exaggerates it, 0 ignores it.
        negative: What the images should not show, as ``label``; None stands for no label.

    Returns:
        A network without a label.

    Source: Ho and Salimans 2022, "Classifier-free diffusion guidance", eq. 6 (with its 1 + w written as w).
    """
    if label is None or weight == 1:
        return lambda x_t, t, x_0: network(x_t, t, label, x_0)
    if negative is not None and negative.shape != label.shape:
        raise ValueError(
            f"negative has shape {tuple(negative.shape)}, the label {tuple(label.shape)}; give one per image"
        )
    both_labels = torch.cat([label, unlabelled(label) if negative is None else negative])

    def guide(x_t: Tensor, t: Tensor, x_0: Tensor | None) -> Tensor:
        both = network(_twice(x_t), _twice(t), both_labels, None if x_0 is None else _twice(x_0))
        with_label, without = both.to(x_t.dtype).chunk(2)
        channels = x_t.shape[1]
        prediction = without[:, :channels] + weight * (with_label[:, :channels] - without[:, :channels])
        return torch.cat([prediction, with_label[:, channels:]], dim=1)

    return guide


def _twice(x: Tensor) -> Tensor:
    return torch.cat([x, x])
