"""The shared development data, where it is there, and a cache folder of each test's own."""

import os
from pathlib import Path

import pytest


def data_folder(name: str) -> Path:
    home = Path(os.environ.get("MEDGEN_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    return home / name


@pytest.fixture
def shared_data():
    """A function from the name of a data set to its folder; skips the test where it is not there."""

    def find(name: str) -> Path:
        folder = data_folder(name)
        if not folder.is_dir():
            pytest.skip(f"needs the development data {name!r}; set MEDGEN_DATA to the folder that holds it")
        return folder

    return find


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("MEDGEN_CACHE", str(folder))
    return folder
