"""VQ-VAE2: an autoencoder with two maps of codes per image, and a prior for each map."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from medgen.config import Moved
from medgen.data.encoded import weights_hash
from medgen.generator import Generator, GeneratorConfig
from medgen.images import check_images
from medgen.labels import Label
from medgen.nn.inference import for_inference
from medgen.nn.modes import evaluating
from medgen.nn.pixelsnail import PixelSNAIL, PixelSNAILConfig, check_range
from medgen.nn.pixelsnail_sampling import Choice, draw_codes
from medgen.nn.vqvae2 import BOTTOM_STRIDE, TOP_STRIDE, VQVAE2, Codes, VQVAE2AutoencoderConfig
from medgen.noise import NoiseSource


def _in_both(name: str) -> tuple[Moved, Moved]:
    return Moved(name, "top"), Moved(name, "bottom")


@dataclass(frozen=True, kw_only=True)
class VQVAE2Config(GeneratorConfig):
    """Config of the autoencoder and of both priors; the defaults are published for 256 px images.

    Attributes:
        autoencoder: Config of the autoencoder.
        top: Config of the prior of the top map.
        bottom: Config of the prior of the bottom map, which has twice the height and width.

    Source: Razavi et al. 2019, "Generating diverse high-fidelity images with VQ-VAE-2"; sizes are those of the
    implementation that "The beauty or the beast" trained on chest X-rays and histology.
    """

    image_size: tuple[int, int] = (256, 256)
    channels: int = 3
    autoencoder: VQVAE2AutoencoderConfig = VQVAE2AutoencoderConfig()
    top: PixelSNAILConfig = PixelSNAILConfig()
    bottom: PixelSNAILConfig = PixelSNAILConfig(attention=False)

    moved: ClassVar = {
        **{
            name: Moved(name, "autoencoder")
            for name in ("hidden_channels", "residual_blocks", "residual_channels", "code_dim", "num_codes")
        },
        "prior_channels": _in_both("hidden_channels"),
        "prior_kernel_size": _in_both("kernel_size"),
        "prior_blocks": _in_both("blocks"),
        "prior_residual_blocks": _in_both("residual_blocks"),
        "prior_residual_channels": _in_both("residual_channels"),
        "top_attention": Moved("attention", "top"),
        "bottom_attention": Moved("attention", "bottom"),
        "top_output_blocks": Moved("output_blocks", "top"),
        "condition_blocks": Moved("condition_blocks", "bottom"),
        "condition_channels": Moved("condition_channels", "bottom"),
        "label_dim": _in_both("label_dim"),
        "dropout": _in_both("dropout"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(side % TOP_STRIDE for side in self.image_size):
            raise ValueError(f"image_size is {self.image_size}; both sides must be divisible by {TOP_STRIDE}")

    @property
    def top_size(self) -> tuple[int, int]:
        """Height and width of the top map."""
        return self.image_size[0] // TOP_STRIDE, self.image_size[1] // TOP_STRIDE

    @property
    def bottom_size(self) -> tuple[int, int]:
        """Height and width of the bottom map."""
        return self.image_size[0] // BOTTOM_STRIDE, self.image_size[1] // BOTTOM_STRIDE

    @classmethod
    def tiny(cls) -> Self:
        """16 px, 8 to 16 channels, 16 codes."""
        prior = PixelSNAILConfig(
            hidden_channels=16, kernel_size=3, blocks=1, residual_blocks=1, residual_channels=8, label_dim=8
        )
        return cls(
            image_size=(16, 16),
            channels=1,
            label_kind="single",
            label_names=("no finding", "finding"),
            autoencoder=VQVAE2AutoencoderConfig(
                hidden_channels=16, residual_blocks=1, residual_channels=8, code_dim=8, num_codes=16
            ),
            top=prior,
            bottom=replace(prior, attention=False, condition_blocks=1, condition_channels=8),
        )


class _Known(NamedTuple):
    """Given codes: the whole top map, or the first rows of both maps."""

    top: Tensor | None = None
    top_rows: Tensor | None = None
    bottom_rows: Tensor | None = None


class VQVAE2Generator(Generator, family="vqvae2"):
    """Draws the top map of codes, then the bottom map given the top map, then decodes both."""

    config_class = VQVAE2Config
    config: VQVAE2Config

    def __init__(self, config: VQVAE2Config) -> None:
        super().__init__(config)
        codes, labels = config.autoencoder.num_codes, config.label_space
        self.autoencoder = VQVAE2(config.autoencoder, config.channels)
        self.top = PixelSNAIL(config.top, size=config.top_size, num_codes=codes, label_space=labels)
        self.bottom = PixelSNAIL(
            config.bottom, size=config.bottom_size, num_codes=codes, condition_codes=codes, label_space=labels
        )

    @property
    def codebook_hash(self) -> str:
        """Hash of both codebooks; a prior is trained for one pair of codebooks."""
        levels = {"top": self.autoencoder.top_codes, "bottom": self.autoencoder.bottom_codes}
        return weights_hash({name: level.codebook for name, level in levels.items()})

    @torch.no_grad()
    def encode(self, images: Tensor) -> Codes:
        """Encode images (B, C, H, W) in [0, 1].

        Raises:
            ValueError: If their size, channels or range are wrong.
        """
        check_images(images, channels=self.config.channels, size=self.config.image_size)
        with evaluating(self.autoencoder):  # in training mode, encoding would update the codebooks
            return self.autoencoder.encode(images.to(self.device, torch.float32) * 2 - 1).codes

    @torch.no_grad()
    def decode(self, codes: Codes) -> Tensor:
        """Decode codes to images (B, C, H, W) in [0, 1].

        Raises:
            ValueError: If a map is of another size, or codes are out of range.
        """
        return (self._decoded(self._checked(codes)).clamp(-1, 1) + 1) / 2

    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode images (B, C, H, W) in [0, 1]."""
        return self.decode(self.encode(images))

    @torch.no_grad()
    def log_prob(self, codes: Codes, label: Label = None) -> dict[str, Tensor]:
        """Compute exact log-probabilities of maps of codes, in bits per code.

        Args:
            codes: Codes of B images.
            label: Conditions, see `Generator.sample`.

        Returns:
            ``top`` and ``bottom``, (B,) each; the latter given the top map. 0 for codes that are certain, minus the
            binary logarithm of their number for codes that are all equally likely.

        Raises:
            ValueError: If maps are of another size, or have codes out of range.
        """
        top, bottom = self._checked(codes)
        condition = self.label_space.resolve(label, len(top))
        condition = None if condition is None else condition.to(self.device)
        with evaluating(self):
            return {
                "top": -bits_per_dimension(self.top(top, label=condition), top),
                "bottom": -bits_per_dimension(self.bottom(bottom, top, condition), bottom),
            }

    def bits_of(self, images: Tensor, label: Label = None) -> Tensor:
        """Compute the bits per code of images over both maps, (B,); more bits mean less likely images.

        Args:
            images: Images (B, C, H, W) in [0, 1].
            label: Conditions, see `Generator.sample`.

        Raises:
            ValueError: If images are of another size or range, or a label is unknown.
        """
        found = self.log_prob(self.encode(images), label)
        top, bottom = math.prod(self.config.top_size), math.prod(self.config.bottom_size)
        return -(found["top"] * top + found["bottom"] * bottom) / (top + bottom)

    @torch.no_grad()
    def complete(
        self, images: Tensor, rows: int, label: Label = None, *, seed: int = 0, first_index: int = 0, **options: Any
    ) -> Tensor:
        """Redraw the lower part of images; the upper part is kept as the autoencoder reconstructs it.

        Args:
            images: Images (B, C, H, W) in [0, 1].
            rows: Number of pixel rows that are kept, a multiple of 8.
            label: Conditions, see `Generator.sample`.
            seed: Seed of the run.
            first_index: Number of the first image in the run.
            **options: Options of `Generator.sample`, such as ``temperature``.

        Raises:
            ValueError: If `rows` or an option is out of range.
        """
        height = self.config.image_size[0]
        if rows % TOP_STRIDE or not 0 <= rows <= height:
            raise ValueError(f"rows is {rows}; use a multiple of {TOP_STRIDE} from 0 to {height}")
        codes = self.encode(images)
        top, bottom = codes.top[:, : rows // TOP_STRIDE], codes.bottom[:, : rows // BOTTOM_STRIDE]
        return self._partly(label, len(images), seed, first_index, options, _Known(top_rows=top, bottom_rows=bottom))

    @torch.no_grad()
    def redraw_details(
        self, top: Tensor, label: Label = None, *, seed: int = 0, first_index: int = 0, **options: Any
    ) -> Tensor:
        """Draw images (B, C, H, W) in [0, 1] of given top maps (B, H / 8, W / 8); arguments are those of `complete`."""
        known = _Known(top=self._checked_map("top", top))
        return self._partly(label, len(top), seed, first_index, options, known)

    def _checked(self, codes: Codes) -> Codes:
        if not isinstance(codes, tuple) or len(codes) != 2:
            raise ValueError(f"codes are {type(codes).__name__}; expected the top and the bottom map, as of encode")
        top, bottom = codes
        return Codes(self._checked_map("top", top), self._checked_map("bottom", bottom))

    def _checked_map(self, level: str, codes: Tensor) -> Tensor:
        """Check codes (B, h, w) of any integer type, and bring them to int64 on the generator's device."""
        if not isinstance(codes, Tensor):
            raise ValueError(f"the {level} map is {type(codes).__name__}; expected a tensor of codes")
        height, width = self.config.top_size if level == "top" else self.config.bottom_size
        if codes.shape[1:] != (height, width):
            raise ValueError(f"the {level} map has shape {tuple(codes.shape)}; expected (B, {height}, {width})")
        check_range(f"codes of the {level} map", codes, self.config.autoencoder.num_codes)
        return codes.to(self.device, torch.int64)

    def _partly(
        self, label: Label, n: int, seed: int, first_index: int, options: dict[str, Any], known: _Known
    ) -> Tensor:
        self.check_options(options)
        with self.session(n, label, seed=seed, first_index=first_index) as session:
            images = self._sample(session.condition, session.noise, known, **options)
        return (images.clamp(-1, 1).cpu() + 1) / 2

    def _decoded(self, codes: Codes) -> Tensor:
        autoencoder = self.autoencoder
        upsampled = autoencoder.upsample_top(autoencoder.top_codes.lookup(codes.top))
        both = torch.cat([upsampled, autoencoder.bottom_codes.lookup(codes.bottom)], dim=1)
        return for_inference(autoencoder.decode_both)(both)

    def _check_values(self, *, progress: bool = False, **options: Any) -> None:
        _choices(**options)

    def _sample(
        self,
        label: Tensor | None,
        noise: NoiseSource,
        known: _Known | None = None,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        bottom_temperature: float | None = None,
        bottom_top_k: int | None = None,
        bottom_top_p: float | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Draw one batch of images, see `Generator._sample`.

        Args:
            label: Conditions, (B,) or (B, K), or None.
            noise: One random stream per image.
            known: Given codes; None draws all.
            temperature: Values below 1 draw likelier codes, and images that vary less.
            top_k: Draws among this number of likeliest codes; None among all.
            top_p: Draws among the likeliest codes that together have at least this probability; None among all.
            bottom_temperature: Temperature for the bottom map; None for that of the top map.
            bottom_top_k: `top_k` for the bottom map, likewise.
            bottom_top_p: `top_p` for the bottom map, likewise.
            progress: Whether to show a progress bar for each map.
        """
        first, second = _choices(temperature, top_k, top_p, bottom_temperature, bottom_top_k, bottom_top_p)
        top, top_rows, bottom_rows = known or _Known()
        shared: dict[str, Any] = {"label": label, "progress": progress}
        # Codes are drawn in float32: under bf16 all weights would be cast at every code.
        with torch.autocast(noise.device.type, enabled=False):
            uniform = noise.uniform(*self.config.top_size), noise.uniform(*self.config.bottom_size)
            if top is None:
                top = draw_codes(self.top, uniform[0], choice=first, given=top_rows, **shared)
            bottom = draw_codes(self.bottom, uniform[1], condition=top, choice=second, given=bottom_rows, **shared)
        return self._decoded(Codes(top, bottom))


def _choices(
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    bottom_temperature: float | None = None,
    bottom_top_k: int | None = None,
    bottom_top_p: float | None = None,
) -> tuple[Choice, Choice]:
    """Build the rules by which codes of the top and of the bottom map are drawn."""
    first = Choice(temperature, top_k, top_p)
    second = Choice(
        first.temperature if bottom_temperature is None else bottom_temperature,
        first.top_k if bottom_top_k is None else bottom_top_k,
        first.top_p if bottom_top_p is None else bottom_top_p,
        level="bottom_",
    )
    return first, second


def bits_per_dimension(logits: Tensor, codes: Tensor) -> Tensor:
    """Compute the bits per code (B,) of maps (B, H, W) under logits (B, num_codes, H, W)."""
    nats = F.cross_entropy(logits.float(), codes, reduction="none").flatten(1).mean(1)
    bits: Tensor = nats / torch.log(torch.tensor(2.0))
    return bits
