"""Renamed arguments, whose old names work for one release, with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def current_arguments(given: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Rename arguments to their current names, with a `FutureWarning` for each old name.

    Raises:
        ValueError: If an argument is given under both names.
    """
    found = dict(given)
    for old in [name for name in renamed if name in given]:
        new = renamed[old]
        if new in given:
            raise ValueError(f"{old} and {new} are given, but they are the same; leave out {old}, the old name")
        warnings.warn(f"{old} is now {new}; the old name goes with the next release", FutureWarning, stacklevel=3)
        found[new] = found.pop(old)
    return found


def renamed_arguments(**renamed: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Let a function take keyword arguments by their old names too, see `current_arguments`."""

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        @wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            return function(*args, **current_arguments(kwargs, renamed))

        return call

    return decorate
