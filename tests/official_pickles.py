"""Writes files as the official StyleGAN code does: modules as calls that bring the source text of their class along."""

import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch


class EasyDict(dict):
    """Pickled as the authors' dictionary."""


class Network:
    """Pickled as a network of the TensorFlow code."""


def _reconstruct_persistent_obj(meta: dict[str, object]) -> object:
    exec(meta["module_src"])
    return meta


class Persistent:
    """Pickled as the authors' modules are: a call with a description, the source text of the class included."""

    def __init__(self, class_name: str, source: str, **state: object) -> None:
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}

    def __reduce__(self) -> tuple[object, tuple[object]]:
        return _reconstruct_persistent_obj, (self.meta,)


@contextmanager
def official_names() -> Iterator[None]:
    """Lets pickle write and find our stand-ins under the names of the official code."""
    places = {
        "torch_utils.persistence": _reconstruct_persistent_obj,
        "dnnlib.util": EasyDict,
        "dnnlib.tflib.network": Network,
    }
    with pytest.MonkeyPatch.context() as patch:
        for place, thing in places.items():
            for end in range(1, place.count(".") + 2):
                name = ".".join(place.split(".")[:end])
                if name not in sys.modules:
                    patch.setitem(sys.modules, name, types.ModuleType(name))
            setattr(sys.modules[place], thing.__name__, thing)
            patch.setattr(thing, "__module__", place)
        yield


def module(class_name: str, weights: Mapping[str, torch.Tensor], **state: Any) -> Persistent:
    """A module with weights, in modules within it where their names have dots."""
    own = OrderedDict((name, weight) for name, weight in weights.items() if "." not in name)
    parts: OrderedDict[str, dict[str, torch.Tensor]] = OrderedDict()
    for name, weight in weights.items():
        first, dot, rest = name.partition(".")
        if dot:
            parts.setdefault(first, {})[rest] = weight
    modules = OrderedDict((name, module("Layer", part)) for name, part in parts.items())
    source = "raise RuntimeError('the source text was run')"
    return Persistent(class_name, source, _parameters=OrderedDict(), _buffers=own, _modules=modules, **state)
