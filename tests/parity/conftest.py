"""Reads the parity fixtures: numbers that the official code of each family produced on tiny networks.

A test module covers one component and runs over every file of it that the folder holds:

    @pytest.mark.parametrize("case", cases("medfusion_unet"))
    def test_output_equals_the_official_one(case: Case) -> None: ...

The folder is `MEDGEN_PARITY`, by default `../shared/parity` beside the repository. Tests skip where it is absent.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

REPOSITORY = Path(__file__).parents[2]
PARITY = Path(os.environ.get("MEDGEN_PARITY", REPOSITORY.parent / "shared" / "parity")).resolve()


@dataclass(frozen=True)
class Case:
    """One fixture: `<stem>.json` describes it, `<stem>.safetensors` holds its weights, inputs and outputs."""

    path: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments of the official constructor; those it takes by position stand in the file as ``name=value``."""
        positional = dict(item.split("=") for item in self.meta["constructor"].get("positional", ()))
        return {name: json.loads(value) for name, value in positional.items()} | self.meta["constructor"]["kwargs"]

    @property
    def official_class(self) -> str:
        return self.meta["constructor"]["class"]

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        return load_file(self.path.with_suffix(".safetensors"))

    def _section(self, name: str) -> dict[str, Tensor]:
        return {key.removeprefix(name): value for key, value in self._tensors.items() if key.startswith(name)}

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return self._section("weights/")

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return self._section("in/")

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        return self._section("out/")

    def bound(self, name: str, relative: float = 1e-5) -> float:
        """Largest absolute difference allowed for an output: ten times what float32 rounding moves it.

        Args:
            name: Name of the output.
            relative: Share of the output's largest magnitude that is always allowed; 1e-4 for images after a whole
                sampling run.
        """
        if not self.outputs[name].is_floating_point():
            return 0.0
        rounding = self.meta["numeric_spread"].get(name, {}).get("fp32_vs_fp64_max_abs", 0.0)
        return max(10 * rounding, relative * self.outputs[name].abs().max().item())

    def check(self, name: str, actual: Tensor, relative: float = 1e-5) -> None:
        """Fails unless `actual` has the shape of the output called `name` and equals it within `bound`."""
        torch.testing.assert_close(
            actual.detach(), self.outputs[name], rtol=0, atol=self.bound(name, relative), msg=lambda m: f"{name}: {m}"
        )


def cases(component: str) -> list[Any]:
    """Every fixture of a component (`<component>_*.json`) as pytest parameters whose ids are the files' stems.

    Files without a constructor (`*_published_keys.json`) list the names of a real checkpoint; read them with
    `published_keys`.
    """
    found = [path for path in sorted(PARITY.glob(f"{component}_*.json")) if not path.stem.endswith("published_keys")]
    if not found:
        reason = f"no {component}_*.json in {PARITY}; set MEDGEN_PARITY"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id=f"{component}_absent")]
    return [pytest.param(Case(path), id=path.stem) for path in found]


def published_keys(prefix: str) -> list[Any]:
    """Every `<prefix>*_published_keys.json` as pytest parameters: names and shapes of a published state dict."""
    found = sorted(PARITY.glob(f"{prefix}*published_keys.json"))
    if not found:
        reason = f"no {prefix}*published_keys.json in {PARITY}; set MEDGEN_PARITY"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id=f"{prefix}_absent")]
    return [pytest.param(json.loads(path.read_text()), id=path.stem) for path in found]
