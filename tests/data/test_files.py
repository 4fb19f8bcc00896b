"""Files in folders and in zip archives: told apart, listed, and refused by name where they are damaged."""

import os
import time
import zipfile

import pytest

from medgen.data.files import FileRoot

TIME = 1_700_000_000


def written(folder, content):
    folder.mkdir(exist_ok=True)
    (folder / "a.png").write_bytes(content)
    os.utime(folder / "a.png", (TIME, TIME))
    return FileRoot(folder)


def test_files_of_the_same_name_size_and_date_in_two_folders_are_told_apart(tmp_path):
    one, other = written(tmp_path / "one", b"1234"), written(tmp_path / "other", b"5678")
    assert one.identity("a.png") != other.identity("a.png")


def test_a_file_is_the_same_however_its_folder_is_written(tmp_path, monkeypatch):
    whole = written(tmp_path / "one", b"1234").identity("a.png")
    monkeypatch.chdir(tmp_path)
    assert FileRoot("one").identity("a.png") == FileRoot("one/../one").identity("a.png") == whole


def test_a_rewritten_file_is_noticed_even_if_its_date_is_set_back(tmp_path):
    before = written(tmp_path, b"1234").identity("a.png")
    time.sleep(0.05)  # clocks of file systems tick every few milliseconds
    assert written(tmp_path, b"5678").identity("a.png") != before


def test_a_file_in_a_zip_goes_by_its_content_wherever_the_zip_lies(tmp_path):
    for name in ("one.zip", "other.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("a.png", b"1234")
    assert FileRoot(tmp_path / "one.zip").identity("a.png") == FileRoot(tmp_path / "other.zip").identity("a.png")
    assert FileRoot(tmp_path / "one.zip").identity("b.png") is None


def test_what_macos_adds_and_hidden_files_are_not_listed(tmp_path):
    names = ["scans/b/1.png", "scans/a/2.png", "__MACOSX/scans/a/._2.png", "scans/.DS_Store", "scans/.git/3.png"]
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        for name in ["scans/", *names]:
            archive.writestr(name, b"")
    with zipfile.ZipFile(tmp_path / "scans.zip") as archive:
        archive.extractall(tmp_path / "folder")
    for root in ("scans.zip", "folder"):
        assert FileRoot(tmp_path / root).names() == ["scans/a/2.png", "scans/b/1.png"]
        assert FileRoot(tmp_path / root / "scans").names() == ["a/2.png", "b/1.png"]


@pytest.fixture
def damaged(tmp_path):
    """A function that makes a zip with a.png in it and sets one byte, counted from a mark of its directory."""

    def make(mark, offset):
        path = tmp_path / "scans.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.png", b"1234")
        data = bytearray(path.read_bytes())
        data[data.index(mark) + offset] = 0xFF
        path.write_bytes(data)
        return path

    return make


def test_a_zip_with_a_damaged_version_is_refused_by_name(damaged):
    with pytest.raises(ValueError, match=r"scans\.zip is not a readable zip archive: zip file version 25"):
        FileRoot(damaged(b"PK\x01\x02", 6))


def test_a_zip_with_a_damaged_position_of_its_files_is_refused_by_name(damaged):
    with pytest.raises(ValueError, match=r"scans\.zip/a\.png cannot be unpacked"):
        FileRoot(damaged(b"PK\x05\x06", 16)).read("a.png")
