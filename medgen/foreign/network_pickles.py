"""Reader of the network pickles (``.pkl``) of the official StyleGAN2-ADA and StyleGAN3 code.

A file is one pickle of a dictionary of modules: ``G``, ``D``, the averaged ``G_ema`` and ``augment_pipe``. Each comes
with the source text of its class, which unpickling would run. This reader ignores the text, runs nothing, and refuses
files with names other than those that the official code writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from medgen.checkpoint import CheckpointError
from medgen.foreign.pickles import PLAIN_CALLS, Calls, Interpreter, Record, reading
from medgen.foreign.torch_files import is_torch_file, read_torch_bytes

NETWORKS = ("G", "D", "G_ema", "augment_pipe")
_KIND = "a network pickle of NVIDIA's official PyTorch code"


@dataclass(frozen=True)
class PickledNetwork:
    """One module of a file.

    Attributes:
        class_name: Name of the official class, such as ``Generator``, which StyleGAN2 and StyleGAN3 share.
        arguments: Keyword arguments of the constructor.
        state_dict: Weights and buffers by their official names.
        attributes: Plain attributes of the modules, by dotted name.
    """

    class_name: str
    arguments: dict[str, Any]
    state_dict: dict[str, Tensor] = field(repr=False)
    attributes: dict[str, object] = field(repr=False)


def is_pickle(path: str | Path) -> bool:
    """Whether a file is a pickle that ``torch.save`` did not write.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    with reading(path, _KIND), path.open("rb") as file:
        head = file.read(2)
    return len(head) == 2 and head[0] == 0x80 and head[1] >= 2 and not is_torch_file(path)


def read_network_pickle(path: str | Path) -> dict[str, PickledNetwork]:
    """Read the networks of a file, by those names of `NETWORKS` that it has.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, of the older TensorFlow code, or of another program.
        UnsafeFileError: If the file has names that the official code does not write.
    """
    path = Path(path)
    with reading(path, _KIND), path.open("rb") as file:
        content = Interpreter(calls=_CALLS, strict=True).run(file)
        expected = f"{_KIND} has a dictionary of networks, {', '.join(NETWORKS)}"
        if not isinstance(content, dict):
            raise CheckpointError(f"found {type(content).__name__}, but {expected}")
        found = {name: _network(name, content[name]) for name in NETWORKS if content.get(name) is not None}
        if not found:
            names = ", ".join(f"{name:.40}" for name in content if isinstance(name, str)) or "nothing"
            raise CheckpointError(f"found a dictionary of {names}, but {expected}")
        return found


@dataclass(frozen=True, eq=False)
class _Module:
    class_name: str
    state: dict[str, Any]

    def part(self, name: str) -> dict[str, Any]:
        found = self.state.get(name, {})
        if not isinstance(found, dict):
            raise CheckpointError(f"{name} of a {self.class_name} is of type {type(found).__name__}")
        return found


def _module(description: Mapping[str, Any]) -> _Module:
    """Build a module from its description, ignoring its source text."""
    name, state = description["class_name"], description["state"]
    if description["type"] != "class" or not isinstance(name, str) or not isinstance(state, dict):
        raise CheckpointError("a network is no object with a state")
    return _Module(name, state)


def _storage(content: bytes) -> Tensor:
    """Read the storage of a tensor, which is a ``torch.save`` file of its own."""
    found = read_torch_bytes(content, {})
    if not isinstance(found, Tensor):
        raise CheckpointError(f"found {type(found).__name__} in place of the numbers of a tensor")
    return found


def _refuse_tensorflow(*_: object) -> object:
    raise CheckpointError(
        "it is of the older TensorFlow code, which is not read; write it anew with legacy.py of the official PyTorch "
        "code (python legacy.py --source=OLD.pkl --dest=NEW.pkl) and convert the new file. legacy.py runs what is in "
        "the old one, so use it for files you trust only"
    )


_SAME = (
    "collections.OrderedDict",
    "builtins.set",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)
_CALLS: Calls = {
    **{name: PLAIN_CALLS[name] for name in _SAME},
    "torch_utils.persistence._reconstruct_persistent_obj": _module,
    "dnnlib.util.EasyDict": PLAIN_CALLS["collections.OrderedDict"],
    "torch.storage._load_from_bytes": _storage,
    # Some networks keep sizes as arrays, which are not needed.
    "numpy.ndarray": Record,
    "numpy.core.multiarray._reconstruct": Record,
    "numpy._core.multiarray._reconstruct": Record,
    "dnnlib.tflib.network.Network": _refuse_tensorflow,
}


def _network(name: str, module: object) -> PickledNetwork:
    if not isinstance(module, _Module):
        raise CheckpointError(f"{name} is of type {type(module).__name__}, and not a network")
    if module.state.get("_init_args"):
        raise CheckpointError(f"{name} was given arguments by position, which the official code never does")
    state_dict: dict[str, Tensor] = {}
    attributes: dict[str, object] = {}
    _collect(module, "", state_dict, attributes)
    return PickledNetwork(module.class_name, module.part("_init_kwargs"), state_dict, attributes)


def _collect(module: object, prefix: str, state_dict: dict[str, Tensor], attributes: dict[str, object]) -> None:
    """Collect weights and attributes in the order of ``Module.state_dict``."""
    if not isinstance(module, _Module):
        raise CheckpointError(f"{prefix.rstrip('.')} is of type {type(module).__name__}, and not a network")
    left_out = module.state.get("_non_persistent_buffers_set", ())
    buffers = {name: value for name, value in module.part("_buffers").items() if name not in left_out}
    for name, value in (module.part("_parameters") | buffers).items():
        if value is not None and not isinstance(value, Tensor):
            raise CheckpointError(f"{prefix}{name} is of type {type(value).__name__}, and not a tensor")
        if value is not None:
            state_dict[f"{prefix}{name}"] = value
    for name, value in module.state.items():
        if value is None or isinstance(value, bool | int | float | str):
            attributes[f"{prefix}{name}"] = value
    for name, part in module.part("_modules").items():
        if part is not None:
            _collect(part, f"{prefix}{name}.", state_dict, attributes)
