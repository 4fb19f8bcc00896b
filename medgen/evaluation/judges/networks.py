"""Feature networks by name; weights are bundled, read from a file, or downloaded."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medgen.evaluation.judges.features import FeatureNetwork, Interpolation
from medgen.foreign.pickles import Record
from medgen.foreign.torch_files import read_torch_file
from medgen.nn.efficientnet_lite import INPUT_SIZE, LiteVariant, load_efficientnet_lite

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_NETWORK = "efficientnet_lite0"


class _Pooled(nn.Module):
    """A timm network without its classifier."""

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
    "pixels": _pixels,  # for copies, not for quality
}


def feature_network(name: str = DEFAULT_NETWORK, *, weights: str | Path | None = None) -> FeatureNetwork:
    """Build a feature network by name.

    Args:
        name: A name of `FEATURES`, which work offline; ``inception``, the network of the FID; ``timm:NAME`` for one of
            timm, such as ``timm:vit_small_patch14_dinov2.lvd142m`` (DINOv2); or ``xrv:NAME`` for a DenseNet of
            torchxrayvision, such as ``xrv:densenet121-res224-all``.
        weights: File with weights, for the networks outside `FEATURES`; None downloads them.

    Raises:
        ValueError: If the name is unknown, or `weights` is given for a network of `FEATURES`.
        FileNotFoundError: If the file `weights` is missing.
        ConnectionError: If the weights cannot be downloaded.
        ImportError: If a package with weights is missing.
    """
    file = None if weights is None else Path(weights)
    if file is not None and name in FEATURES:
        raise ValueError(f"weights is {str(weights)!r}, but {name} brings its own; leave weights out")
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"there is no file with weights at {file}")
    if name == "inception":
        return _inception(file)
    if name.startswith("timm:"):
        return _timm_network(name, file)
    if name.startswith("xrv:"):
        return _torchxrayvision(name, file)
    if name not in FEATURES:
        choices = f"{', '.join(FEATURES)}, inception, 'timm:NAME' or 'xrv:NAME'"
        raise ValueError(f"feature network {name!r} is unknown; use one of {choices}")
    return FEATURES[name]()


def _timm_network(name: str, weights: Path | None) -> FeatureNetwork:
    import timm

    model = name.removeprefix("timm:")
    if not timm.is_model(model.split(".")[0]):
        raise ValueError(f"feature network {name!r} is unknown; timm {timm.__version__} has no model {model!r}")
    if weights is None:
        try:
            network = timm.create_model(model, pretrained=True)
        except Exception as error:  # timm's download libraries have exceptions of their own
            raise _no_download(name, error) from error
    else:
        try:
            network = timm.create_model(model, checkpoint_path=str(weights))
        except Exception as error:  # depends on the format timm takes the file for
            raise ValueError(f"{weights} does not hold the weights of timm's {model}: {error}") from error
    data = cast("Mapping[str, Any]", network.pretrained_cfg)
    size = (int(data["input_size"][1]), int(data["input_size"][2]))
    pooled = _Pooled(network.eval())
    with torch.no_grad():
        dim = pooled(torch.zeros(1, 3, *size)).shape[1]
    interpolation: Interpolation = "bilinear" if data["interpolation"] == "bilinear" else "bicubic"
    return FeatureNetwork(
        name, pooled, size=size, dim=dim, mean=data["mean"], std=data["std"], interpolation=interpolation
    )


_INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
_XRV_URL = "https://github.com/mlmed/torchxrayvision/releases/download/v1/{}-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt"
_XRV_DATA = {
    "all": "nih-pc-chex-mimic_ch-google-openi-kaggle",
    "nih": "nih",
    "pc": "pc",
    "chex": "chex",
    "rsna": "kaggle",
    "mimic_nb": "mimic_nb",
    "mimic_ch": "mimic_ch",
}


def _inception(weights: Path | None) -> FeatureNetwork:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ImportError('the network of the FID needs torch-fidelity; run: pip install "medgen[fid]"') from error
    file = weights or _downloaded("inception", _INCEPTION_URL, "6726825d")
    state = read_torch_file(file)
    # torch-fidelity unpickles whatever it is given; this is a file of tensors only.
    with tempfile.NamedTemporaryFile(suffix=".pth") as safe:
        torch.save(state, safe.name)
        try:
            network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=safe.name)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} does not hold the weights of the FID's Inception-v3: {error}") from error
    return FeatureNetwork(
        "inception",
        _Inception(network),
        size=(299, 299),
        dim=2048,
        mean=(0, 0, 0),
        std=(1 / 255,) * 3,
        interpolation="tensorflow bilinear",
    )


class _Inception(nn.Module):
    """Network of the FID, which takes bytes and resizes them as TensorFlow 1 did."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        (features,) = self.network(images.round().to(torch.uint8))
        return cast("Tensor", features)


def _torchxrayvision(name: str, weights: Path | None) -> FeatureNetwork:
    from torchvision.models import densenet121

    data = name.removeprefix("xrv:densenet121-res224-")
    if data not in _XRV_DATA:
        choices = ", ".join(f"xrv:densenet121-res224-{known}" for known in _XRV_DATA)
        raise ValueError(f"feature network {name!r} is unknown; use one of {choices}")
    file = weights or _downloaded(name, _XRV_URL.format(_XRV_DATA[data]), None)
    content = read_torch_file(file)  # a whole module, pickled: read as data
    state = dict(_module_tensors(content)) if isinstance(content, Record) else cast("dict[str, Tensor]", content)
    features = densenet121(weights=None).features
    features.conv0 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    part = {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
    try:
        features.load_state_dict(part)
    except RuntimeError as error:
        raise ValueError(f"{file} does not hold the weights of torchxrayvision's DenseNet-121: {error}") from error
    # Expects grey images from -1024 to 1024.
    return FeatureNetwork(
        name,
        _GreyDenseNet(features),
        size=(224, 224),
        dim=1024,
        mean=(0.5,) * 3,
        std=(0.5 / 1024,) * 3,
        interpolation="bilinear",
    )


class _GreyDenseNet(nn.Module):
    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        maps = self.features(images.mean(1, keepdim=True))
        return F.adaptive_avg_pool2d(F.relu(maps), 1).flatten(1)


def _module_tensors(module: Record, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a pickled module, by their names in its state_dict."""
    state = cast("Mapping[str, Mapping[str, object]]", module.state)
    for name, tensor in [*state["_parameters"].items(), *state["_buffers"].items()]:
        if isinstance(tensor, Tensor):
            yield prefix + name, tensor
    for name, child in state["_modules"].items():
        if isinstance(child, Record):
            yield from _module_tensors(child, f"{prefix}{name}.")


def _downloaded(name: str, url: str, hash_prefix: str | None) -> Path:
    """Download a file into torch's cache, unless it is there."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(file), hash_prefix=hash_prefix)
        except (OSError, RuntimeError) as error:
            raise _no_download(name, error) from error
    return file


def _no_download(name: str, error: Exception) -> ConnectionError:
    return ConnectionError(
        f"the weights of {name} could not be downloaded ({error}); "
        "fetch them on a machine with internet access and give the file as weights"
    )
