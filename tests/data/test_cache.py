"""Caches survive rival builders, kills and full disks, and are found by content."""

import errno
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from medgen.data import cache
from medgen.data.cache import content_key, default_cache_folder, open_or_build


def fill_with_rows(array):
    array[:] = np.arange(len(array), dtype=array.dtype)[:, None]


def test_a_cache_is_built_once_and_then_opened(tmp_path):
    calls = []

    def fill(array):
        calls.append(1)
        fill_with_rows(array)

    for _ in range(2):
        built = open_or_build("k", (5, 3), np.float32, fill, folder=tmp_path)
        np.testing.assert_array_equal(built.array, np.arange(5)[:, None].repeat(3, 1))
    assert len(calls) == 1


def test_latents_with_variants_fit_too(tmp_path):
    latents = np.random.default_rng(0).normal(size=(4, 2, 8, 3, 3)).astype(np.float32)

    def fill(array):
        array[:] = latents

    built = open_or_build("latents", latents.shape, np.float32, fill, folder=tmp_path)
    np.testing.assert_array_equal(built.take(np.array([3, 0, 3])), latents[[3, 0, 3]])


def test_a_finished_cache_cannot_be_written_to(tmp_path):
    built = open_or_build("k", (5, 3), np.uint8, fill_with_rows, folder=tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        built.array[0] = 1


def test_pickles_as_its_path_not_its_content(tmp_path):
    built = open_or_build("k", (1000, 100), np.float32, fill_with_rows, folder=tmp_path)
    packed = pickle.dumps(built)
    assert len(packed) < 1000
    np.testing.assert_array_equal(pickle.loads(packed).array, built.array)


def test_another_shape_under_the_same_key_is_refused(tmp_path):
    open_or_build("k", (5, 3), np.uint8, fill_with_rows, folder=tmp_path)
    with pytest.raises(ValueError, match=r"holds uint8 \(5, 3\), not uint8 \(6, 3\)"):
        open_or_build("k", (6, 3), np.uint8, fill_with_rows, folder=tmp_path)


def test_an_error_while_building_leaves_nothing_and_the_next_attempt_works(tmp_path):
    def fail(array):
        array[:] = 1
        raise RuntimeError("corrupt file")

    with pytest.raises(RuntimeError, match="corrupt file"):
        open_or_build("k", (5, 3), np.uint8, fail, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    assert open_or_build("k", (5, 3), np.uint8, fill_with_rows, folder=tmp_path).array[4, 0] == 4


def test_a_full_disk_is_noticed_before_work_starts_and_leaves_nothing(tmp_path, monkeypatch):
    def no_room(descriptor, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(OSError, match=r"cache needs 3 MB in .*too full; free some or set MEDGEN_CACHE") as full:
        open_or_build("k", (1000, 3000), np.uint8, pytest.fail, folder=tmp_path)
    assert full.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_space_is_claimed_where_the_system_has_no_call_for_it(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    built = open_or_build("k", (3000, 1000), np.uint8, fill_with_rows, folder=tmp_path)
    assert built.array[255, 7] == 255
    assert (tmp_path / "k" / "data.npy").stat().st_blocks * 512 >= 3_000_000


BUILDER = """
import sys, time
from medgen.data.cache import open_or_build
def fill(array):
    array[:] = 1
    array.flush()
    print("half way", flush=True)
    time.sleep(60)
open_or_build("k", (50, 30), "uint8", fill, folder=sys.argv[1])
"""


def test_a_killed_builder_leaves_no_cache_and_blocks_nobody(tmp_path):
    builder = subprocess.Popen([sys.executable, "-c", BUILDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert builder.stdout.readline() == "half way\n"
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    builder.stdout.close()
    assert not (tmp_path / "k").exists()
    built = open_or_build("k", (50, 30), np.uint8, fill_with_rows, folder=tmp_path)
    assert built.array[49, 0] == 49
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k", "k.lock"]


def build_slowly(folder, log):
    def fill(array):
        with Path(log).open("a") as file:
            file.write("built\n")
        time.sleep(0.5)
        fill_with_rows(array)

    assert open_or_build("k", (5, 3), np.uint8, fill, folder=folder).array[4, 0] == 4


@pytest.mark.slow
def test_of_several_processes_one_builds_and_the_others_wait(tmp_path):
    context = multiprocessing.get_context("fork")
    rivals = [context.Process(target=build_slowly, args=(tmp_path / "c", tmp_path / "log")) for _ in range(4)]
    for rival in rivals:
        rival.start()
    for rival in rivals:
        rival.join()
    assert [rival.exitcode for rival in rivals] == [0] * 4
    assert (tmp_path / "log").read_text() == "built\n"


def test_keys_depend_on_every_part():
    keys = {content_key("images", 64, [1, 2]), content_key("images", 64, [2, 1]), content_key("images", 65, [1, 2])}
    assert len(keys) == 3
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})


def test_the_folder_is_chosen_by_environment_else_by_platform(monkeypatch):
    monkeypatch.setenv("MEDGEN_CACHE", "/somewhere")
    assert default_cache_folder() == Path("/somewhere")
    monkeypatch.delenv("MEDGEN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setattr(cache.sys, "platform", "linux")
    assert default_cache_folder() == Path("/xdg/medgen")
    monkeypatch.setattr(cache.sys, "platform", "darwin")
    assert default_cache_folder() == Path.home() / "Library" / "Caches" / "medgen"
    monkeypatch.setattr(cache.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert default_cache_folder() == Path("/local/medgen")
