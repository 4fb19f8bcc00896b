"""What all tests share: few threads, a cache of their own, tiny data and tiny trained models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; networks of 16 pixels only lose by more

import pytest

if TYPE_CHECKING:  # fixtures import it themselves: what only starts the processes that test then needs no torch
    from tests.tiny import Run

TRAINED = {"finished", "maps", "run", "stages", "straight"}
"""Fixtures that train a model from a recipe to the end; tests with one are `slow`. No other may have such a name."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and TRAINED.intersection(item.fixturenames):
            item.add_marker("slow")


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or fills the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDGEN_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The shared development data; skips where it is not there."""
    folder = Path(os.environ.get("MEDGEN_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the development data; set MEDGEN_DATA to its folder ({folder} is not there)")
    return folder


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV beside 40 pictures: healthy or ill, an age, two findings."""
    from tests.tiny import write_data

    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Both stages of a tiny Medfusion, trained for two epochs from recipes as a user would."""
    from tests.tiny import train_both_stages

    return train_both_stages(table, tmp_path_factory.mktemp("run"))
