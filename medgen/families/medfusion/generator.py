"""Medfusion: images by diffusion in the latent space of an autoencoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from medgen.diffusion.denoiser import NetworkDenoiser, Objective, guided
from medgen.diffusion.samplers import check_eta, find_sampler
from medgen.diffusion.schedule import BetaStrategy, NoiseSchedule
from medgen.generator import Generator, GeneratorConfig
from medgen.labels import Label
from medgen.nn.attention import AttentionKind
from medgen.nn.autoencoder import AutoencoderConfig, KLAutoencoder, VQAutoencoder
from medgen.nn.inference import for_inference
from medgen.nn.unet import UNet, UNetConfig
from medgen.noise import NoiseSource

_PUBLISHED_STEPS = 150


@dataclass(frozen=True, kw_only=True)
class MedfusionConfig(GeneratorConfig):
    """Shape of both stages; the defaults are the published ones for 256 px images.

    Attributes:
        autoencoder: ``kl`` (published) or ``vq``.
        latent_channels: Channels of the latent; the paper found 4 too few and used 8.
        num_codes: Size of the codebook of a ``vq`` autoencoder.
        autoencoder_channels: Width of each level, from full resolution down.
        autoencoder_strides: Downsampling on entering each level; the first belongs to the stem.
        autoencoder_groups: Groups of its group norms.
        autoencoder_attention: Attention in its levels.
        autoencoder_extra_heads: Lower resolutions that deep supervision adds an output for.
        unet_channels: Width of the stem and of each level.
        unet_strides: Downsampling between the levels; see `UNet`.
        unet_groups: Groups of its group norms.
        unet_blocks: Residual blocks per level.
        unet_attention: Attention in each of its levels.
        embedding_dim: Width of the time and label vectors.
        unet_extra_heads: Lower resolutions that deep supervision adds an output for.
        learned_variance: Whether the UNet also predicts the variance of a step.
        self_conditioning: Whether the UNet sees its own last estimate.
        objective: What the UNet predicts: ``eps``, ``x_0`` or ``v``.
        clip: Hold estimates of the clean latent in [-1, 1] while sampling; not done by the published models.
        timesteps: Length of the noise schedule.
        schedule: Shape of the betas.
        beta_start: First beta.
        beta_end: Last beta.

    Source: Mueller-Franzes et al. 2023, "A multimodal comparison of latent denoising diffusion probabilistic models and
    generative adversarial networks for medical image synthesis", and its published settings.
    """

    image_size: tuple[int, int] = (256, 256)
    channels: int = 3
    autoencoder: Literal["kl", "vq"] = "kl"
    latent_channels: int = 8
    num_codes: int = 8192
    autoencoder_channels: tuple[int, ...] = (64, 128, 256, 512)
    autoencoder_strides: tuple[int, ...] = (1, 2, 2, 2)
    autoencoder_groups: int = 8
    autoencoder_attention: AttentionKind | tuple[AttentionKind, ...] = "none"
    autoencoder_extra_heads: int = 1
    unet_channels: tuple[int, ...] = (256, 256, 512, 1024)
    unet_strides: tuple[int, ...] = (1, 2, 2, 2)
    unet_groups: int = 32
    unet_blocks: int = 2
    unet_attention: AttentionKind | tuple[AttentionKind, ...] = "none"
    embedding_dim: int = 1024
    unet_extra_heads: int = 0
    learned_variance: bool = False
    self_conditioning: bool = False
    objective: Objective = "eps"
    clip: bool = False
    timesteps: int = 1000
    schedule: BetaStrategy = "scaled_linear"
    beta_start: float = 0.002
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_levels("autoencoder")
        self._check_levels("unet")
        factor = math.prod(self.autoencoder_strides)
        if any(side % factor for side in self.image_size):
            raise ValueError(
                f"image_size {self.image_size} is not divisible by {factor}, the autoencoder's total stride"
            )
        shrinkage = factor * math.prod(self.unet_strides[:-1])  # the last level is not reduced further
        if any(side % shrinkage for side in self.image_size):
            raise ValueError(
                f"image_size {self.image_size} is not divisible by {shrinkage}, the total stride of the autoencoder "
                "times that of the UNet"
            )
        if self.autoencoder not in ("kl", "vq"):
            raise ValueError(f"autoencoder is {self.autoencoder!r}; use 'kl' or 'vq'")

    def _check_levels(self, network: Literal["autoencoder", "unet"]) -> None:
        """Refuse in the first stage already what would only fail when the second is built."""
        channels: tuple[int, ...] = getattr(self, f"{network}_channels")
        for name in (f"{network}_strides", f"{network}_attention"):
            values = getattr(self, name)
            if not isinstance(values, str) and len(values) != len(channels):
                raise ValueError(
                    f"{name} {values} has {len(values)} entries, {network}_channels {channels} has {len(channels)}; "
                    "give one per level"
                )
        groups = getattr(self, f"{network}_groups")
        if odd := [width for width in channels if width % groups]:
            raise ValueError(
                f"{network}_groups is {groups}, which does not divide {', '.join(map(str, odd))} of "
                f"{network}_channels {channels}; use a number that divides them all"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latent."""
        factor = math.prod(self.autoencoder_strides)
        return self.latent_channels, self.image_size[0] // factor, self.image_size[1] // factor

    @classmethod
    def tiny(cls) -> Self:
        """16 px, 8 to 16 channels, 10 time steps."""
        return cls(
            image_size=(16, 16),
            channels=1,
            label_kind="single",
            label_names=("no finding", "finding"),
            latent_channels=4,
            num_codes=16,
            autoencoder_channels=(8, 8, 16),
            autoencoder_strides=(1, 2, 1),
            autoencoder_extra_heads=1,
            unet_channels=(8, 8, 16),
            unet_strides=(1, 2, 2),
            unet_groups=4,
            unet_blocks=1,
            embedding_dim=16,
            timesteps=10,
        )


def build_autoencoder(config: MedfusionConfig) -> KLAutoencoder | VQAutoencoder:
    """The first stage that a config describes."""
    shape = AutoencoderConfig(
        in_channels=config.channels,
        latent_channels=config.latent_channels,
        hidden=config.autoencoder_channels,
        strides=config.autoencoder_strides,
        norm=("group", {"num_groups": config.autoencoder_groups}),
        attention=config.autoencoder_attention,
        extra_heads=config.autoencoder_extra_heads,
    )
    return VQAutoencoder(shape, config.num_codes) if config.autoencoder == "vq" else KLAutoencoder(shape)


def build_unet(config: MedfusionConfig) -> UNet:
    """The noise estimator that a config describes."""
    return UNet(
        UNetConfig(
            in_channels=config.latent_channels,
            hidden=config.unet_channels,
            strides=config.unet_strides,
            norm=("group", {"num_groups": config.unet_groups}),
            attention=config.unet_attention,
            blocks_per_level=config.unet_blocks,
            extra_heads=config.unet_extra_heads,
            embedding_dim=config.embedding_dim,
            label_kind=config.label_kind,
            num_labels=len(config.label_names),
            learned_variance=config.learned_variance,
            self_conditioning=config.self_conditioning,
        )
    )


class MedfusionGenerator(Generator, family="medfusion"):
    """Conditional latent diffusion model.

    The UNet works on latents of mean 0 and standard deviation 1 per channel: `latent_mean` and `latent_std` are
    measured on the training set. The published models use the latent as it is, which is mean 0 and std 1 here.
    """

    config_class = MedfusionConfig
    config: MedfusionConfig
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: MedfusionConfig) -> None:
        super().__init__(config)
        self.autoencoder = build_autoencoder(config)
        self.unet = build_unet(config)
        self.schedule = NoiseSchedule(config.timesteps, config.schedule, config.beta_start, config.beta_end)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(config.latent_channels, 1, 1))

    @torch.inference_mode()
    def reconstruct(self, images: Tensor) -> Tensor:
        """What the autoencoder keeps of images, (B, C, H, W) in [0, 1] both."""
        mean = self.autoencoder.encode_mean(images * 2 - 1)
        return (self.autoencoder.decode(mean).clamp(-1, 1) + 1) / 2

    def decode(self, latent: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of normalised latents (B, c, h, w)."""
        decoder = for_inference(self.autoencoder.decoder)
        return decoder(self.autoencoder.settle(latent * self.latent_std + self.latent_mean))

    def _check_values(
        self,
        *,
        steps: int | None = None,
        eta: float | None = None,
        guidance: float = 1.0,
        negative_label: Label = None,
        sampler: str = "ddim",
        decode_batch: int = 16,
        **others: Any,
    ) -> None:
        if steps is not None:
            self.schedule.timesteps(steps)
        find_sampler(sampler)
        if eta is not None and sampler != "ddim":
            raise ValueError(f"eta is an option of sampler 'ddim', not of {sampler!r}")
        if eta is not None:
            check_eta(eta)
        if decode_batch < 1:
            raise ValueError(f"decode_batch is {decode_batch}; use at least 1")
        if negative_label is not None and guidance == 1:
            raise ValueError("negative_label has no effect at guidance 1; use a larger guidance")

    def _sample(
        self,
        label: Tensor | None,
        noise: NoiseSource,
        *,
        steps: int | None = None,
        eta: float | None = None,
        guidance: float = 1.0,
        negative_label: Label = None,
        sampler: str = "ddim",
        decode_batch: int = 16,
    ) -> Tensor:
        """One batch of images.

        Args:
            label: Conditions, (B,) or (B, K), or None.
            noise: One random stream per image.
            steps: Sampling steps; default: 150, until which the paper's quality rises, or all of a shorter schedule.
            eta: DDIM's noise, 0 (none) to 1 (as published, the default).
            guidance: 1 follows the label as trained, more exaggerates it.
            negative_label: What guidance leads away from, one for all images; default: from no label.
            sampler: ``ddim``, ``ancestral`` or a diffusers scheduler such as ``dpm++``.
            decode_batch: Latents decoded together, which bounds the memory.
        """
        steps = min(_PUBLISHED_STEPS, self.config.timesteps) if steps is None else steps
        extra = {} if eta is None else {"eta": eta}
        if guidance != 1 and label is None:
            raise ValueError(
                f"guidance is {guidance}, but there is no label to guide by; give one or leave guidance at 1"
            )
        negative = self.label_space.resolve(negative_label, len(noise))
        network = guided(
            for_inference(self.unet),
            label,
            weight=guidance,
            negative=None if negative is None else negative.to(noise.device),
        )
        denoise = NetworkDenoiser(
            network,
            self.schedule,
            objective=self.config.objective,
            clip=self.config.clip,
            self_conditioning=self.config.self_conditioning,
        )
        latent = find_sampler(sampler)(denoise, noise, self.config.latent_shape, self.schedule, steps=steps, **extra)
        return torch.cat([self.decode(part) for part in latent.split(decode_batch)])
