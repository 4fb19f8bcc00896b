"""Copies of networks that are faster when called many times without gradients on a CPU.

PyTorch's convolutions reorder their weights for the kernel in every call, which at batch 1 costs more than the
convolution itself. A copy made by `for_inference`

- stores convolution weights in the layout of oneDNN's kernel, and everything else channels last;
- replaces modules by their faster form (`HasInferenceForm`), and in bfloat16 runs convolutions of very small images as
  matrix products;
- under autocast is in bfloat16 throughout, except for norms, where autocast would cast all weights in every call.

Results are equal up to rounding. Other modules and devices run unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_TILE_ROWS = 16
"""Rows of an AMX tile. A convolution fills them with pixels of one output row, a matrix product with any pixels."""
_SAMPLED = 4
"""Values along each side of a weight that are checked for changes."""
_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._NormBase)
"""Layers whose parameters and statistics stay in float32."""


@runtime_checkable
class HasInferenceForm(Protocol):
    """A module with a faster equivalent made of plain torch layers."""

    def inference_form(self) -> nn.Module:
        """Return the faster module, which may share parameters, or the module itself."""


def for_inference(network: nn.Module) -> Callable[..., Tensor]:
    """Prepare a network for many calls with the same shapes.

    Inside `torch.autocast(dtype=torch.bfloat16)` the result is in bfloat16. A copy is cached with its network until the
    weights change, and doubles the memory of its convolutions.

    Args:
        network: Network in evaluation mode, called with tensors only.

    Returns:
        A prepared copy; the network itself in training, with gradients enabled, or where oneDNN has no kernels for the
        device or processor.
    """
    dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
    weights = [*network.parameters(), *network.buffers()]
    if network.training or torch.is_grad_enabled() or not all(_is_supported(weight, dtype) for weight in weights):
        return network
    state = [dtype, *map(_fingerprint, weights)]
    if network not in _PREPARED or _PREPARED[network].state != state:
        _PREPARED[network] = PreparedNetwork(network, dtype, state)
    return _PREPARED[network]


def _fingerprint(weight: Tensor) -> tuple[int, int, float]:
    """Address, version and a sum over some values of a weight, by which changes are detected."""
    # The version misses fused optimisers and writes to `.data`; inference tensors have none.
    some = weight.detach()[tuple(slice(None, None, max(1, side // _SAMPLED)) for side in weight.shape)]  # a view
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version, float(some.sum(dtype=torch.float64))


def _is_supported(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether oneDNN has fast kernels for such a weight."""
    if weight.device.type != "cpu" or weight.dtype == torch.float64:
        return False
    if not (torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PreparedNetwork:
    """A copy of a network for inference; see `for_inference`."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, state: list[object]) -> None:
        self.dtype = dtype
        self.state = state
        self.network = _copy(network, dtype)

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """Call the copy; the result has its dtype."""
        with torch.autocast("cpu", enabled=False):
            out: Tensor = self.network(*(self._prepare(x) for x in inputs))
        return out.contiguous()

    def _prepare(self, x: Tensor | None) -> Tensor | None:
        if x is None or x.ndim < 4:  # times and labels
            return x
        return x.to(self.dtype, memory_format=torch.channels_last if x.ndim == 4 else torch.preserve_format)


# Outside the networks, so that copies are not part of deepcopy, pickle and state_dict.
_PREPARED: WeakKeyDictionary[nn.Module, PreparedNetwork] = WeakKeyDictionary()


def _copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy a module tree, sharing unchanged parts."""
    if isinstance(module, HasInferenceForm):
        module = module.inference_form()
    if (
        isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    ):
        return PackedConvolution(module, dtype)
    new = copy.copy(module)
    new._modules = {name: child and _copy(child, dtype) for name, child in module._modules.items()}
    if not isinstance(module, _NORMS):
        new._parameters = {
            name: parameter if parameter is None else nn.Parameter(parameter.to(dtype), requires_grad=False)
            for name, parameter in module._parameters.items()
        }
    return new


class PackedConvolution(nn.Module):
    """A (transposed) convolution with its weights in the kernel's layout for the input's shape.

    Args:
        conv: Convolution, which is not changed.
        dtype: Type of the computation.
    """

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = conv.weight.detach()
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.dtype = dtype
        self.padding: list[int] = [int(n) for n in conv.padding]
        self.stride: list[int] = [int(n) for n in conv.stride]
        self.dilation: list[int] = [int(n) for n in conv.dilation]
        self.groups = conv.groups
        self.output_padding = list(conv.output_padding) if isinstance(conv, nn.ConvTranspose2d) else None
        self._run: Callable[[Tensor], Tensor] | None = None
        self._shape: torch.Size | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H', W'), channels last."""
        if self._run is None or x.shape != self._shape:
            self._run, self._shape = self._pack(x.shape), x.shape
        return self._run(x)

    def _pack(self, shape: torch.Size) -> Callable[[Tensor], Tensor]:
        """Reorder the weights for inputs of this shape."""
        if self.output_padding is not None:
            return self._pack_transposed(shape)
        batch, _, height, width = (n // stride for n, stride in zip(shape, (1, 1, *self.stride), strict=True))
        fits_matrix = self.dilation == [1, 1] and self.groups == 1 and max(self.weight.shape[2:]) > 1
        if self.dtype == torch.bfloat16 and fits_matrix and width < _TILE_ROWS <= batch * height:
            return self._pack_matrix(shape)
        return self._pack_convolution(shape)

    def _pack_convolution(self, shape: torch.Size) -> Callable[[Tensor], Tensor]:
        sizes = (self.padding, self.stride, self.dilation, self.groups)
        weight = self.weight.to(self.dtype).to_mkldnn()
        weight = torch._C._nn.mkldnn_reorder_conv2d_weight(weight, *sizes, list(shape))  # type: ignore[call-arg]
        run = torch.ops.mkldnn._convolution_pointwise
        return lambda x: run(x, weight, self.bias, *sizes, "none", [], "")

    def _pack_transposed(self, shape: torch.Size) -> Callable[[Tensor], Tensor]:
        sizes = (self.padding, self.output_padding, self.stride, self.dilation, self.groups)
        weight = self.weight.to(self.dtype)
        weight = torch.ops.mkldnn._reorder_convolution_transpose_weight(weight, *sizes, list(shape))
        run = torch.ops.mkldnn._convolution_transpose_pointwise
        return lambda x: run(x, weight, self.bias, *sizes, "none", [], "")

    def _pack_matrix(self, shape: torch.Size) -> Callable[[Tensor], Tensor]:
        """Use one matrix product, with a row for the input patch of every output pixel."""
        out_channels, channels, kernel_h, kernel_w = self.weight.shape
        (pad_h, pad_w), (stride_h, stride_w) = self.padding, self.stride
        batch = shape[0]
        height = (shape[2] + 2 * pad_h - kernel_h) // stride_h + 1
        width = (shape[3] + 2 * pad_w - kernel_w) // stride_w + 1
        rows = batch * height * width
        matrix = self.weight.to(self.dtype).permute(0, 2, 3, 1).reshape(out_channels, -1)
        matrix = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), rows)

        def run(x: Tensor) -> Tensor:
            padded = nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, pad_w, pad_w, pad_h, pad_h)).contiguous()
            image, row, pixel, _ = padded.stride()
            patches = padded.as_strided(  # a line of a patch, kernel_w pixels with all channels, is contiguous
                (batch, height, width, kernel_h, kernel_w * channels),
                (image, row * stride_h, pixel * stride_w, row, 1),
            ).reshape(rows, -1)
            out: Tensor = torch.ops.mkldnn._linear_pointwise(patches, matrix, self.bias, "none", [], "")
            return out.view(batch, height, width, out_channels).permute(0, 3, 1, 2)

        return run
