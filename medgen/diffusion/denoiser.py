"""Denoisers made of networks: prediction types, classifier-free guidance, self-conditioning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from medgen.diffusion.schedule import NoiseSchedule

PredictionType = Literal["eps", "x_0", "v"]


class Estimate(NamedTuple):
    """Estimate of a denoiser for x_t.

    Attributes:
        x_0: Clean image, (B, C, ...).
        eps: Noise in x_t, (B, C, ...).
        variance: Position of the step's variance between its bounds, 0 to 1, (B, C, ...); None if not learned.
    """

    x_0: Tensor
    eps: Tensor
    variance: Tensor | None = None


Denoiser = Callable[[Tensor, Tensor], Estimate]
"""Called by samplers as ``denoise(x_t, t)`` with x_t (B, C, ...) and times t (B,) int64."""
Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Called as ``network(x_t, t, x_0)``, x_0 being the previous estimate or None; gives a prediction (B, C, ...), or
(B, 2 C, ...) with learned variance."""
ConditionalNetwork = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""Called as ``network(x_t, t, label, x_0)``; otherwise like `Network`. The label is (B,) int64 with -1 for none,
(B, K) float32 with NaN for none, or None."""

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
    """Compute the clean image (B, C, ...) from a prediction, clamped to [-1, 1] if ``clip``.

    Raises:
        ValueError: If the prediction type is unknown.
    """
    if prediction_type not in X_0:
        raise ValueError(
            f"prediction_type is {prediction_type!r}; use one of {', '.join(map(repr, get_args(PredictionType)))}"
        )
    x_0 = X_0[prediction_type](schedule, x_t, prediction, t)
    return x_0.clamp(-1, 1) if clip else x_0


def split_variance(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Split a network's output into the prediction and the variance fraction in its second half, if it has one.

    The output is -1 at the lower bound of the variance and 1 at the upper one; the fraction is 0 and 1.

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
    """A `Denoiser` made of a network. Create a new one for every sampling run.

    Args:
        network: Network that predicts noise, clean image or velocity.
        schedule: Forward process that the network was trained on.
        prediction_type: Quantity that the network predicts.
        clip: Clamp x_0 to [-1, 1], for pixels but not for latents; predicted noise is unchanged.
        self_conditioning: Pass the x_0 of the previous step to the network (Chen et al. 2022, "Analog bits").
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
    """The label for "no label", in the shape and type of ``label``."""
    return torch.full_like(label, torch.nan if label.is_floating_point() else -1)


def guided(
    network: ConditionalNetwork, label: Tensor | None, *, weight: float = 1.0, negative: Tensor | None = None
) -> Network:
    """Classifier-free guidance: prediction_u + weight (prediction_c - prediction_u), for any prediction type.

    Both passes run as one batch of twice the size; with weight 1, or without a label, there is only one pass. A learned
    variance is taken from the pass with the label.

    Args:
        network: Network that takes a label.
        label: Wanted label, (B,) int64 or (B, K) float32; None for no label.
        weight: 1 follows the label as trained, more exaggerates it, 0 ignores it.
        negative: Unwanted label, in the shape of ``label``; None for no label.

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
        previous = None if x_0 is None else torch.cat([x_0, x_0])
        both = network(torch.cat([x_t, x_t]), torch.cat([t, t]), both_labels, previous)
        with_label, without = both.to(x_t.dtype).chunk(2)
        channels = x_t.shape[1]
        prediction = without[:, :channels] + weight * (with_label[:, :channels] - without[:, :channels])
        return torch.cat([prediction, with_label[:, channels:]], dim=1)

    return guide
