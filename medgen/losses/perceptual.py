"""Distances between images in the feature space of a trained network."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

_SMALLEST_NORM = 1e-10  # a pixel without any active feature stays at zero


class _FrozenNetwork(nn.Module):
    """A module with a frozen network that moves with it but is no part of its state.

    The network stays in eval mode, its weights reach neither optimisers nor checkpoints.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._hidden = (network.eval().requires_grad_(False),)  # in a tuple, where nn.Module does not see it

    @property
    def network(self) -> nn.Module:
        """The frozen feature network."""
        return self._hidden[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.network._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class _FeatureDistance(_FrozenNetwork, ABC):
    """What perceptual losses on normalised features share."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(network)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """One distance per image.

        Args:
            prediction: Images in [-1, 1], (B, C, H, W) with one or three channels, or volumes (B, C, D, H, W), which
                are compared slice by slice.
            target: Images to compare with, in the shape of ``prediction``; no gradient flows to them.

        Returns:
            (B,), 0 for equal images.

        Raises:
            ValueError: If the shapes differ or there are neither one nor three channels.
        """
        _check_pair(prediction, target)
        with torch.no_grad():
            wanted = self._normalised_features(target)
        distances = [
            self.compare(level, (a - b).square())
            for level, (a, b) in enumerate(zip(self._normalised_features(prediction), wanted, strict=True))
        ]
        per_slice = torch.stack([distance.mean((1, 2, 3)) for distance in distances]).sum(0)
        return per_slice.reshape(len(prediction), -1).mean(1)

    @abstractmethod
    def features(self, x: Tensor) -> list[Tensor]:
        """Feature maps (B, F, H, W) of standardised images (B, 3, H, W), one for each level."""

    def compare(self, level: int, difference: Tensor) -> Tensor:
        """Distance map (B, 1, H, W) of one level from the squared differences of its features."""
        return difference.sum(1, keepdim=True)

    def _normalised_features(self, x: Tensor) -> list[Tensor]:
        x = ((_slices(x) + 1) / 2 - self.mean) / self.std  # one channel becomes three
        maps = [features.float() for features in self.features(x)]
        # vector_norm, unlike the root of a sum, has a finite gradient where all features are zero
        return [f / (torch.linalg.vector_norm(f, dim=1, keepdim=True) + _SMALLEST_NORM) for f in maps]


class FeaturePerceptualLoss(_FeatureDistance):
    """Distance in the features of a timm network at all its resolutions.

    Args:
        network: ``efficientnet_lite1``, which comes with a Python package and so works offline, or the name of any timm
            network; timm downloads the weights of those. A network that trains a model must not judge it: reports use
            EfficientNet-Lite0.
        resize: Height and width in pixels at which images are compared; None for their own.
        levels: How many resolutions to compare, from the finest on; None for all. In small images the last ones are
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
        """The feature maps of the network's stages."""
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
        heads: The learned weight of every channel (``lin0.model.1.weight``), or None to count all channels alike.

    Raises:
        ValueError: If a weight is missing.

    Source: Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric".
    """

    _TAPS = (3, 8, 15, 22, 29)  # the last activation at each resolution, by its place in torchvision's `features`

    def __init__(self, weights: Mapping[str, Tensor], heads: Mapping[str, Tensor] | None = None) -> None:
        from torchvision.models import vgg16

        with torch.device("meta"):  # shapes only: the weights are about to come
            network = vgg16(weights=None).features[: self._TAPS[-1] + 1]
        by_place = _by_place(weights)
        if missing := sorted(set(network.state_dict()) - set(by_place)):
            raise ValueError(f"weights of VGG16 are missing for features.{', features.'.join(missing)}")
        network.load_state_dict({key: by_place[key] for key in network.state_dict()}, assign=True)
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
        """The loss with weights read from files, safetensors or torch: torchvision's vgg16 and LPIPS' ``vgg.pth``."""
        return cls(_read(weights), None if heads is None else _read(heads))

    def features(self, x: Tensor) -> list[Tensor]:
        """The five feature maps, finest first."""
        return _tapped(self.network, x, self._TAPS)

    def compare(self, level: int, difference: Tensor) -> Tensor:
        """Sum over channels, weighted by the learned head if there is one."""
        if not self.calibrated:
            return super().compare(level, difference)
        return nn.functional.conv2d(difference, self.get_buffer(f"head{level}"))


class VGG19Loss(_FrozenNetwork):
    """Absolute difference of the features in five layers of VGG19, as SPADE and pix2pixHD are trained with.

    Images go in as they are, in [-1, 1]; features are not normalised. The first activation of each resolution counts,
    and coarser ones count more: 1/32, 1/16, 1/8, 1/4, 1.

    Args:
        weights: VGG19's convolutions, named as in torchvision (``features.0.weight``) or SPADE (``slice1.0.weight``);
            networks of other widths are possible.

    Raises:
        ValueError: If a weight is missing.

    Source: Johnson et al. 2016, "Perceptual losses for real-time style transfer and super-resolution"; layers and
    shares as in Wang et al. 2018, "High-resolution image synthesis and semantic manipulation with conditional GANs".
    """

    _POOLED = (3, 8, 17, 26)  # activations that are halved next, by their place in torchvision's `features`
    _TAPS = (1, 6, 11, 20, 29)
    _SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__(nn.Sequential(*self._layers(_by_place(weights))))

    @classmethod
    def from_file(cls, weights: str | Path) -> Self:
        """The loss with weights read from a file, safetensors or torch: torchvision's vgg19."""
        return cls(_read(weights))

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """One distance per image.

        Args:
            prediction: Images in [-1, 1], (B, C, H, W) with one or three channels, or volumes (B, C, D, H, W), which
                are compared slice by slice. Each side is at least 16 px.
            target: Images to compare with, in the shape of ``prediction``; no gradient flows to them.

        Returns:
            (B,), 0 for equal images.

        Raises:
            ValueError: If the shapes differ or there are neither one nor three channels.
        """
        _check_pair(prediction, target)
        with torch.no_grad():
            wanted = self.features(_slices(target))
        per_slice = torch.stack(
            [
                share * (ours.float() - theirs.float()).abs().mean((1, 2, 3))
                for share, ours, theirs in zip(self._SHARES, self.features(_slices(prediction)), wanted, strict=True)
            ]
        ).sum(0)
        return per_slice.reshape(len(prediction), -1).mean(1)

    def features(self, x: Tensor) -> list[Tensor]:
        """The five feature maps, finest first, of images (B, 1 or 3, H, W) in [-1, 1]."""
        x = x.expand(-1, 3, -1, -1)
        return _tapped(self.network, x, self._TAPS)

    @classmethod
    def _layers(cls, by_place: Mapping[str, Tensor]) -> list[nn.Module]:
        """Torchvision's layers up to the last one that counts, with the given weights."""
        layers: list[nn.Module] = []
        while len(layers) <= cls._TAPS[-1]:
            place = len(layers)
            if missing := [name for name in (f"{place}.weight", f"{place}.bias") if name not in by_place]:
                raise ValueError(f"weights of VGG19 are missing for features.{', features.'.join(missing)}")
            weight, bias = by_place[f"{place}.weight"], by_place[f"{place}.bias"]
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, device="meta")
            conv.load_state_dict({"weight": weight, "bias": bias}, assign=True)
            layers += [conv, nn.ReLU()]
            if place + 1 in cls._POOLED:
                layers.append(nn.MaxPool2d(2))
        return layers


_VGG_KEY = r"(?:features|slice\d)\.(\d+\.(?:weight|bias))$"


def _by_place(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a VGG network by the place of their layer in torchvision's `features`, such as ``0.weight``."""
    return {match[1]: tensor for key, tensor in weights.items() if (match := re.search(_VGG_KEY, key))}


def _tapped(network: nn.Module, x: Tensor, places: Sequence[int]) -> list[Tensor]:
    """What the layers at some places give."""
    maps = []
    for place, layer in enumerate(network.children()):
        x = layer(x)
        if place in places:
            maps.append(x)
    return maps


def _check_pair(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape or prediction.dim() not in (4, 5) or prediction.shape[1] not in (1, 3):
        raise ValueError(
            f"prediction has shape {tuple(prediction.shape)}, target {tuple(target.shape)}; "
            "give two equal (B, C, H, W) or (B, C, D, H, W) with one or three channels"
        )


def _slices(x: Tensor) -> Tensor:
    """Images as they are; the slices of volumes: (B, C, D, H, W) -> (B D, C, H, W)."""
    return x.movedim(2, 1).flatten(0, 1) if x.dim() == 5 else x


def _read(path: str | Path) -> Mapping[str, Tensor]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path} with weights for the perceptual loss")
    if Path(path).suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    weights: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights
