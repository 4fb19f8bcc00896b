"""Perceptual losses: distances of images in the features of a trained network."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

_SMALLEST_NORM = 1e-10  # keeps pixels without active features at zero


class _PerceptualLoss(nn.Module, ABC):
    """Distance of features of a frozen network, which moves with the module but is not part of its state.

    The network stays in eval mode, and its weights reach neither optimisers nor checkpoints.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._hidden = (network.eval().requires_grad_(False),)  # a tuple hides it from nn.Module

    @property
    def network(self) -> nn.Module:
        """The frozen feature network."""
        return self._hidden[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.network._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """One distance per image, (B,), 0 for equal images.

        Args:
            prediction: Images in [-1, 1], (B, C, H, W) with one or three channels, or volumes (B, C, D, H, W), which
                are compared slice by slice.
            target: Images to compare with, in the shape of ``prediction``; no gradient flows to them.

        Raises:
            ValueError: If the shapes differ or there are neither one nor three channels.
        """
        if prediction.shape != target.shape or prediction.dim() not in (4, 5) or prediction.shape[1] not in (1, 3):
            raise ValueError(
                f"prediction has shape {tuple(prediction.shape)}, target {tuple(target.shape)}; "
                "give two equal (B, C, H, W) or (B, C, D, H, W) with one or three channels"
            )
        with torch.no_grad():
            wanted = self._compared(_slices(target))
        pairs = zip(self._compared(_slices(prediction)), wanted, strict=True)
        per_slice = torch.stack([self._distance(level, *pair) for level, pair in enumerate(pairs)]).sum(0)
        return per_slice.reshape(len(prediction), -1).mean(1)

    @abstractmethod
    def _compared(self, x: Tensor) -> list[Tensor]:
        """Feature maps of images (B, 1 or 3, H, W) in [-1, 1], one for each level."""

    @abstractmethod
    def _distance(self, level: int, ours: Tensor, theirs: Tensor) -> Tensor:
        """Distance (B,) of feature maps of one level."""


class _FeatureDistance(_PerceptualLoss):
    """Base of perceptual losses on normalised features."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(network)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1), persistent=False)

    @abstractmethod
    def features(self, x: Tensor) -> list[Tensor]:
        """Feature maps (B, F, H, W) of standardised images (B, 3, H, W), one for each level."""

    def compare(self, level: int, difference: Tensor) -> Tensor:
        """Distance map (B, 1, H, W) of one level from the squared differences of its features."""
        return difference.sum(1, keepdim=True)

    def _compared(self, x: Tensor) -> list[Tensor]:
        maps = [features.float() for features in self.features(((x + 1) / 2 - self.mean) / self.std)]
        # vector_norm, unlike the root of a sum, has a finite gradient where all features are zero.
        return [f / (torch.linalg.vector_norm(f, dim=1, keepdim=True) + _SMALLEST_NORM) for f in maps]

    def _distance(self, level: int, ours: Tensor, theirs: Tensor) -> Tensor:
        return self.compare(level, (ours - theirs).square()).mean((1, 2, 3))


class FeaturePerceptualLoss(_FeatureDistance):
    """Distance in the features of a timm network at all its resolutions.

    Args:
        network: ``efficientnet_lite1``, whose weights come with a Python package, or any timm network, whose weights
            timm downloads. Reports judge by EfficientNet-Lite0, since a network that trains a model must not judge it.
        resize: Height and width in pixels at which images are compared; None for their own.
        levels: Number of resolutions to compare, from the finest on; None for all. In small images the last ones are
            a pixel or two wide and cost as much as all others.

    Raises:
        ImportError: If the weights of ``efficientnet_lite1`` are not installed.
        ValueError: If the network has fewer resolutions.
    """

    def __init__(
        self, network: str = "efficientnet_lite1", resize: int | None = None, levels: int | None = None
    ) -> None:
        from timm.data.config import resolve_model_data_config

        if network == "efficientnet_lite1":
            from medgen.nn.efficientnet_lite import load_efficientnet_lite

            model = load_efficientnet_lite(1)
        else:
            import timm

            model = timm.create_model(network, pretrained=True)
        data = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
        super().__init__(model, data["mean"], data["std"])
        available = len(model.feature_info)  # type: ignore[arg-type]  # timm's networks list their levels
        if levels is not None and not 1 <= levels <= available:
            raise ValueError(f"levels is {levels}; {network} has 1 to {available}")
        self.resize = resize
        self.levels = list(range(levels or available))

    def features(self, x: Tensor) -> list[Tensor]:
        """Feature maps of the network's stages."""
        if self.resize is not None:
            x = interpolate(x, size=(self.resize, self.resize), mode="bicubic", antialias=True)
        maps: list[Tensor] = self.network.forward_intermediates(  # type: ignore[operator]
            x, indices=self.levels, stop_early=True, intermediates_only=True
        )
        return maps


class VGGPerceptualLoss(_FeatureDistance):
    """LPIPS: distance in five layers of VGG16, with or without the weights learned from human judgements.

    Images must be at least 16 px wide and high.

    Args:
        weights: VGG16's convolutions, named as in torchvision (``features.0.weight``) or LPIPS (``slice1.0.weight``).
        heads: The learned weight of every channel (``lin0.model.1.weight``), or None to weigh all channels equally.

    Raises:
        ValueError: If a weight is missing.

    Source: Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric".
    """

    _TAPS = (3, 8, 15, 22, 29)  # indices in torchvision's `features` of the last activation at each resolution

    def __init__(self, weights: Mapping[str, Tensor], heads: Mapping[str, Tensor] | None = None) -> None:
        network = _vgg("VGG16", weights, pooled=self._TAPS[:-1], last=self._TAPS[-1])
        super().__init__(network, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        self.calibrated = heads is not None
        for level in range(len(self._TAPS) if self.calibrated else 0):
            key = f"lin{level}.model.1.weight"
            found = next((tensor for name, tensor in (heads or {}).items() if name.endswith(key)), None)
            if found is None:
                raise ValueError(f"heads have no {key}")
            self.register_buffer(f"head{level}", found, persistent=False)

    @classmethod
    def from_files(cls, weights: str | Path, heads: str | Path | None = None) -> Self:
        """Load weights from safetensors or torch files: torchvision's vgg16 and LPIPS' ``vgg.pth``."""
        return cls(_read(weights), None if heads is None else _read(heads))

    def features(self, x: Tensor) -> list[Tensor]:
        """Five feature maps, finest first."""
        return _tapped(self.network, x, self._TAPS)

    def compare(self, level: int, difference: Tensor) -> Tensor:
        """Sum over channels, weighted by the learned head if there is one."""
        if not self.calibrated:
            return super().compare(level, difference)
        return nn.functional.conv2d(difference, self.get_buffer(f"head{level}"))


class VGG19Loss(_PerceptualLoss):
    """Absolute difference of features in five layers of VGG19, as in SPADE and pix2pixHD.

    Images, of at least 16 px a side, go in as they are, in [-1, 1]; features are not normalised. The layers are the
    first activation of each resolution, with weights 1/32, 1/16, 1/8, 1/4 and 1.

    Args:
        weights: VGG19's convolutions, named as in torchvision (``features.0.weight``) or SPADE (``slice1.0.weight``);
            networks of other widths are possible.

    Raises:
        ValueError: If a weight is missing.

    Source: Johnson et al. 2016, "Perceptual losses for real-time style transfer and super-resolution"; layers and
    weights as in Wang et al. 2018, "High-resolution image synthesis and semantic manipulation with conditional GANs".
    """

    _POOLED = (3, 8, 17, 26)  # indices in torchvision's `features` of the activations before pooling
    _TAPS = (1, 6, 11, 20, 29)
    _SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__(_vgg("VGG19", weights, pooled=self._POOLED, last=self._TAPS[-1]))

    @classmethod
    def from_file(cls, weights: str | Path) -> Self:
        """Load weights from a safetensors or torch file: torchvision's vgg19."""
        return cls(_read(weights))

    def features(self, x: Tensor) -> list[Tensor]:
        """Five feature maps, finest first, of images (B, 1 or 3, H, W) in [-1, 1]."""
        return _tapped(self.network, x.expand(-1, 3, -1, -1), self._TAPS)

    def _compared(self, x: Tensor) -> list[Tensor]:
        return self.features(x)

    def _distance(self, level: int, ours: Tensor, theirs: Tensor) -> Tensor:
        return self._SHARES[level] * (ours.float() - theirs.float()).abs().mean((1, 2, 3))


_VGG_KEY = r"(?:features|slice\d)\.(\d+\.(?:weight|bias))$"


def _vgg(name: str, weights: Mapping[str, Tensor], *, pooled: Sequence[int], last: int) -> nn.Sequential:
    """Build torchvision's `features` up to the layer `last`, with a pool after each activation at `pooled`."""
    found = {match[1]: tensor for key, tensor in weights.items() if (match := re.search(_VGG_KEY, key))}
    layers: list[nn.Module] = []
    while len(layers) <= last:
        place = len(layers)
        if missing := [key for key in (f"{place}.weight", f"{place}.bias") if key not in found]:
            raise ValueError(f"weights of {name} are missing for features.{', features.'.join(missing)}")
        weight, bias = found[f"{place}.weight"], found[f"{place}.bias"]
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, device="meta")
        conv.load_state_dict({"weight": weight, "bias": bias}, assign=True)
        layers += [conv, nn.ReLU()]
        if place + 1 in pooled:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def _tapped(network: nn.Module, x: Tensor, places: Sequence[int]) -> list[Tensor]:
    """Outputs of the layers at some indices."""
    maps = []
    for place, layer in enumerate(network.children()):
        x = layer(x)
        if place in places:
            maps.append(x)
    return maps


def _slices(x: Tensor) -> Tensor:
    """Slices of volumes, (B, C, D, H, W) to (B D, C, H, W); images are returned unchanged."""
    return x.movedim(2, 1).flatten(0, 1) if x.dim() == 5 else x


def _read(path: str | Path) -> Mapping[str, Tensor]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path} with weights for the perceptual loss")
    if Path(path).suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    weights: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights
