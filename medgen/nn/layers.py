"""Layers by name, for images (2-D) and volumes (3-D)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

Size = int | Sequence[int]
"""One number for every spatial dimension, or one per dimension."""

LayerSpec = str | tuple[str, Mapping[str, object]]
"""A layer by name, or a name with keyword arguments of its torch class: `("group", {"num_groups": 8})`."""

_Layers = Mapping[int, Callable[..., nn.Module]]

_CONVOLUTIONS: _Layers = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_AVERAGE_POOLS: _Layers = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_BATCH_NORMS: _Layers = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE_NORMS: _Layers = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_DROPOUTS: _Layers = {1: nn.Dropout, 2: nn.Dropout2d, 3: nn.Dropout3d}

ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "swish": nn.SiLU,
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leakyrelu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


def per_dimension(size: Size, spatial_dims: int) -> tuple[int, ...]:
    """Expand a size to one number per spatial dimension.

    Raises:
        ValueError: If the size has a wrong number of entries.
    """
    sizes = (size,) * spatial_dims if isinstance(size, int) else tuple(size)
    if len(sizes) != spatial_dims:
        raise ValueError(f"size {size!r} has {len(sizes)} entries; give one number or {spatial_dims}")
    return sizes


def _same_size(kernel_size: Size, stride: Size, spatial_dims: int) -> tuple[tuple[int, ...], ...]:
    """Kernel, stride and padding per dimension that map size n to n / stride (for odd kernels and divisible n)."""
    kernels, strides = per_dimension(kernel_size, spatial_dims), per_dimension(stride, spatial_dims)
    if any(k + 1 < s for k, s in zip(kernels, strides, strict=True)):
        raise ValueError(f"kernel_size {kernel_size!r} skips pixels at stride {stride!r}; use a larger kernel")
    return kernels, strides, tuple((k - s + 1) // 2 for k, s in zip(kernels, strides, strict=True))


def convolution(
    spatial_dims: int, in_channels: int, out_channels: int, kernel_size: Size = 3, stride: Size = 1
) -> nn.Module:
    """A convolution with bias, padded to map size n to n / stride (for odd kernels and divisible n).

    Raises:
        ValueError: If spatial_dims is not 1, 2 or 3, the sizes do not fit it, or the kernel would skip pixels.
    """
    if spatial_dims not in _CONVOLUTIONS:
        raise ValueError(f"spatial_dims {spatial_dims!r} is not supported; use 2 for images or 3 for volumes")
    return _CONVOLUTIONS[spatial_dims](in_channels, out_channels, *_same_size(kernel_size, stride, spatial_dims))


def average_pool(spatial_dims: int, kernel_size: Size, stride: Size) -> nn.Module:
    """An average pool with the output size of a `convolution` of this kernel and stride."""
    return _AVERAGE_POOLS[spatial_dims](*_same_size(kernel_size, stride, spatial_dims))


def normalisation(spec: LayerSpec, spatial_dims: int, channels: int) -> nn.Module:
    """A normalisation: "group", "instance", "batch", "syncbatch", "layer" or "localresponse", in any case.

    "group" needs the argument `num_groups`, "layer" needs `normalized_shape` (the trailing dimensions).

    Raises:
        ValueError: If the name is unknown or the arguments do not fit the number of channels.
    """
    name, options = _name_and_options(spec)
    layers: dict[str, Callable[[], nn.Module]] = {
        "group": lambda: nn.GroupNorm(num_channels=channels, **options),
        "instance": lambda: _INSTANCE_NORMS[spatial_dims](channels, **options),
        "batch": lambda: _BATCH_NORMS[spatial_dims](channels, **options),
        "syncbatch": lambda: nn.SyncBatchNorm(channels, **options),
        "layer": lambda: nn.LayerNorm(**options),
        "localresponse": lambda: nn.LocalResponseNorm(**options),
    }
    if name not in layers:
        raise ValueError(f"norm {name!r} is unknown; use one of {', '.join(layers)}")
    try:
        return layers[name]()
    except TypeError as error:
        raise ValueError(f"norm {name!r} does not fit its arguments {options!r}: {error}") from error


def activation(spec: LayerSpec) -> nn.Module:
    """An activation by its name in `ACTIVATIONS`, in any case.

    Raises:
        ValueError: If the name is unknown.
    """
    name, options = _name_and_options(spec)
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown; use one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name](**options)


def dropout(probability: float, spatial_dims: int) -> nn.Module:
    """Dropout of whole channels for images and volumes; the identity for probability 0.

    Source: Tompson et al. 2015, "Efficient object localization using convolutional networks", section 3.2.
    """
    return _DROPOUTS[spatial_dims](probability) if probability else nn.Identity()


def zero_init(module: nn.Module) -> nn.Module:
    """Set all parameters of a module to zero, so that its residual block starts as the identity; returns the module."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def _name_and_options(spec: LayerSpec) -> tuple[str, dict[str, Any]]:
    name, options = (spec, {}) if isinstance(spec, str) else spec
    return name.lower(), dict(options)
