"""Networks that turn images into feature vectors, shared by metrics; each owns its preprocessing and range check."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from medgen.images import from_uint8, to_uint8
from medgen.nn.efficientnet_lite import INPUT_SIZE, LiteVariant, load_efficientnet_lite

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_NETWORK = "efficientnet_lite0"
_ROUNDING = 1e-3  # resizing of real images may leave [0, 1] by less than a grey level


class FeatureNetwork(nn.Module):
    """A frozen network that turns images (B, C, H, W) in [0, 1] into feature vectors (B, dim).

    Images are rounded to 8 bits first, so that a generator and a folder of its saved images get the same numbers.

    Args:
        name: The name results carry.
        network: Gives vectors (B, dim) for normalised RGB images (B, 3, *size).
        size: Height and width in pixels `network` sees; images are squeezed to it.
        dim: Length of a feature vector.
        mean: What is subtracted from each RGB channel in [0, 1].
        std: What each channel is divided by afterwards.
        interpolation: How images are resized; always antialiased.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        size: tuple[int, int],
        dim: int,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        interpolation: Literal["bilinear", "bicubic"] = "bicubic",
    ) -> None:
        super().__init__()
        self.name = name
        # Convolutions on CPUs take half the time in this layout.
        self.network = network.eval().requires_grad_(requires_grad=False).to(memory_format=torch.channels_last)
        self.size = size
        self.dim = dim
        self.interpolation = interpolation
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    @property
    def slug(self) -> str:
        """The name as part of a file name or of a logged key."""
        return self.name.replace(":", "_")

    @property
    def resize(self) -> str:
        """How images reach the network, such as ``bicubic 224x224``; part of what a number means."""
        return f"{self.interpolation} {self.size[0]}x{self.size[1]}"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of name, preprocessing and weights: the network's part of the key of a feature cache."""
        digest = hashlib.sha256(f"{self.name}|{self.resize}".encode())
        for key, value in self.state_dict().items():
            digest.update(key.encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Feature vectors (B, dim) float32 of images (B, C, H, W) in [0, 1]; one channel is repeated to three.

        Raises:
            ValueError: If the images are not floating point in [0, 1] with one or three channels.
        """
        check_images(images)
        images = from_uint8(to_uint8(images)).to(self.mean.device).expand(-1, 3, -1, -1)
        resized = F.interpolate(images, size=self.size, mode=self.interpolation, antialias=True).clamp(0, 1)
        with torch.autocast(self.mean.device.type, enabled=False):  # a judge is the same inside bf16 training
            features: Tensor = self.network((resized - self.mean) / self.std).float()
        return features


class FeatureMetric(Metric):
    """Base of the metrics that compare two sets of feature vectors.

    Args:
        features: The network that turns images into features; or, where features are made elsewhere and shared between
            metrics, the length of a feature vector, and `update` takes vectors (B, D) in place of images.

    Attributes:
        network_in_name: Whether the value has no meaning without the network, so that results must be named after it.
    """

    full_state_update = False
    network_in_name: ClassVar[bool] = False

    def __init__(self, features: FeatureNetwork | int) -> None:
        super().__init__()
        self.network = features if isinstance(features, FeatureNetwork) else None
        self.dim = features.dim if isinstance(features, FeatureNetwork) else features

    def vectors(self, images: Tensor) -> Tensor:
        """Feature vectors (B, D) on the metric's device.

        Raises:
            ValueError: If vectors were given and have another length, or hold NaN or infinity.
        """
        features: Tensor = images if self.network is None else self.network(images)
        if features.dim() != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features have shape {tuple(features.shape)}; expected (B, {self.dim})")
        if not bool(features.isfinite().all()):
            raise ValueError("features hold NaN or infinity")
        return features.to(self.device)

    def update(self, images: Tensor, real: bool) -> None:
        """Add images (B, C, H, W) in [0, 1], or vectors (B, D), to the real or to the generated set."""
        raise NotImplementedError

    def compute(self) -> dict[str, Tensor]:
        """The metric's numbers by name."""
        raise NotImplementedError


def check_images(images: Tensor) -> None:
    """Refuse what is not a batch of images in [0, 1].

    Raises:
        ValueError: Naming what is wrong.
    """
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (B, 1, H, W) or (B, 3, H, W)")
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; expected floating point in [0, 1], see medgen.images.from_uint8")
    if images.numel() == 0:
        return
    low, high = images.aminmax()
    if not bool(low >= -_ROUNDING) or not bool(high <= 1 + _ROUNDING):  # also true for NaN
        raise ValueError(f"images span [{float(low):.3g}, {float(high):.3g}]; expected values in [0, 1]")


class _Pooled(nn.Module):
    """A timm network cut before its classifier."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        maps = self.network.forward_features(images)  # type: ignore[operator]
        pooled: Tensor = self.network.forward_head(maps, pre_logits=True)  # type: ignore[operator]
        return pooled


class _Grey(nn.Module):
    """Grey pixels as a vector whose Euclidean distances are root mean square differences."""

    def forward(self, images: Tensor) -> Tensor:
        grey: Tensor = images.mean(1).flatten(1)
        return grey / math.sqrt(grey.shape[1])


def _pixels() -> FeatureNetwork:
    return FeatureNetwork("pixels", _Grey(), size=(64, 64), dim=64 * 64, mean=(0, 0, 0), std=(1, 1, 1))


def _efficientnet_lite(variant: LiteVariant) -> FeatureNetwork:
    size = INPUT_SIZE[variant]
    network = _Pooled(load_efficientnet_lite(variant))
    return FeatureNetwork(f"efficientnet_lite{variant}", network, size=(size, size), dim=1280)


FEATURES: Mapping[str, Callable[[], FeatureNetwork]] = {
    "efficientnet_lite0": partial(_efficientnet_lite, 0),
    "efficientnet_lite1": partial(_efficientnet_lite, 1),
    "efficientnet_lite2": partial(_efficientnet_lite, 2),
    "pixels": _pixels,  # not a judge of quality: for copies, which are near in any space
}


def feature_network(name: str = DEFAULT_NETWORK, *, weights: str | Path | None = None) -> FeatureNetwork:
    """A feature network by name.

    Args:
        name: A name of `FEATURES`, all of which work offline, or ``timm:NAME`` for any network of timm, such as
            ``timm:vit_small_patch14_dinov2.lvd142m``.
        weights: For a timm network, a file with its weights; None downloads them.

    Raises:
        ValueError: If there is no such network, or `weights` is given for a network that brings its own.
        FileNotFoundError: If there is no file `weights`.
        ConnectionError: If the weights cannot be downloaded.
        ImportError: If a package with weights is missing.
    """
    if name.startswith("timm:"):
        return _timm_network(name, None if weights is None else Path(weights))
    if name not in FEATURES:
        raise ValueError(f"feature network {name!r} is unknown; use one of {', '.join(FEATURES)}, or 'timm:NAME'")
    if weights is not None:
        raise ValueError(f"weights is {str(weights)!r}, but {name} brings its own; leave weights out")
    return FEATURES[name]()


def _timm_network(name: str, weights: Path | None) -> FeatureNetwork:
    import timm

    model = name.removeprefix("timm:")
    if not timm.is_model(model.split(".")[0]):
        raise ValueError(f"feature network {name!r} is unknown; timm {timm.__version__} has no model {model!r}")
    if weights is None:
        try:
            network = timm.create_model(model, pretrained=True)
        except Exception as error:  # each of the download libraries timm may use has exceptions of its own
            raise ConnectionError(
                f"the weights of {name} could not be downloaded ({error}); "
                "fetch them on a machine with internet access and give the file as weights"
            ) from error
    elif weights.is_file():
        network = timm.create_model(model, checkpoint_path=str(weights))
    else:
        raise FileNotFoundError(f"there is no file with weights at {weights}")
    data = cast("Mapping[str, Any]", network.pretrained_cfg)
    size = (int(data["input_size"][1]), int(data["input_size"][2]))
    pooled = _Pooled(network.eval())
    with torch.no_grad():
        dim = pooled(torch.zeros(1, 3, *size)).shape[1]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear" if data["interpolation"] == "bilinear" else "bicubic"
    return FeatureNetwork(
        name, pooled, size=size, dim=dim, mean=data["mean"], std=data["std"], interpolation=interpolation
    )
