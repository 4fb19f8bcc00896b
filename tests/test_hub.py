"""Push and pull over HTTP with the real client, against a small Hub on 127.0.0.1."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, snapshot_download

from medgen.checkpoint import About, CheckpointError, read_checkpoint, write_checkpoint
from medgen.hub import pull, push
from tests.hub_server import TOKEN, HubServer

REPO = "clinic/phantoms"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A running Hub that the client uses, with an empty download cache."""
    server = HubServer()
    point_client_to(server.url, tmp_path / "hf", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("MEDGEN_CACHE", str(tmp_path / "medgen"))
    yield server
    server.close()


def point_client_to(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client reads its environment at import, which has long happened; it looks these up at every call."""
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    state = {"weight": torch.randn(3, 50), "bias": torch.randn(3)}
    about = About(licence="CC-BY-4.0", data="phantoms")
    extra = {"figures/grid.png": b"\x89PNG"}
    return write_checkpoint(
        tmp_path / "model", family="medfusion", config={"size": (1, 2)}, state=state, about=about, extra_files=extra
    )


@pytest.fixture
def pushed(hub: HubServer, folder: Path) -> str:
    """The commit of the checkpoint on the Hub."""
    return push(folder, REPO)


def main_files(hub: HubServer) -> dict[str, bytes]:
    repository = hub.repositories["models", REPO]
    return repository.commits[repository.refs["main"]]


def test_what_is_pushed_comes_back_the_same(pushed: str, folder: Path) -> None:
    there, back = read_checkpoint(folder), read_checkpoint(pull(REPO))
    assert (back.config, back.about, back.files) == (there.config, there.about, there.files)
    assert all(torch.equal(back.state[name], tensor) for name, tensor in there.state.items())


def test_a_push_is_one_commit_with_every_file(hub: HubServer, pushed: str) -> None:
    assert set(main_files(hub)) == {"config.json", "model.safetensors", "README.md", "figures/grid.png"}
    assert len([line for line in hub.log if "/commit/" in line]) == 1
    assert hub.repositories["models", REPO].refs["main"] == pushed


def test_a_damaged_folder_is_not_pushed(hub: HubServer, folder: Path) -> None:
    (folder / "README.md").write_text("changed")
    with pytest.raises(CheckpointError, match=r"README\.md"):
        push(folder, REPO)
    assert hub.log == []


def test_a_revision_pins_what_is_loaded(hub: HubServer, pushed: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "new", family="medfusion", config={}, state={"weight": torch.zeros(1)})
    second = push(tmp_path / "new", REPO)
    assert read_checkpoint(pull(REPO, pushed)).config == {"size": (1, 2)}
    assert read_checkpoint(pull(REPO, second)).config == read_checkpoint(pull(REPO)).config == {}


def test_a_commit_in_the_cache_needs_no_request(hub: HubServer, pushed: str) -> None:
    first = pull(REPO, pushed)
    hub.log.clear()
    assert pull(REPO, pushed) == first
    assert hub.log == []


def test_a_branch_in_the_cache_is_used_when_the_hub_is_gone(hub: HubServer, pushed: str) -> None:
    first = pull(REPO)
    hub.close()
    assert pull(REPO) == first


@pytest.mark.parametrize("file", ["model.safetensors", "README.md"])
def test_a_tampered_file_is_refused_by_its_hash(hub: HubServer, pushed: str, file: str) -> None:
    content = main_files(hub)[file]
    hub.damage(REPO, file, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=rf"{file} is damaged or was changed: its sha256"):
        pull(REPO)
    hub.damage(REPO, file, content)  # the server is mended: the damaged file must not have stayed in the cache
    assert read_checkpoint(pull(REPO)).family == "medfusion"


def test_a_transfer_that_breaks_off_is_refused(hub: HubServer, pushed: str) -> None:
    hub.damage(REPO, "model.safetensors", main_files(hub)["model.safetensors"][:-8])
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors of the repository clinic/phantoms arrived incomplete"
    ):
        pull(REPO)


def test_a_file_that_was_truncated_at_the_source_is_refused_by_its_hash(hub: HubServer, pushed: str) -> None:
    weights = main_files(hub)["model.safetensors"]
    hub.repositories["models", REPO].commit({"model.safetensors": weights[:-8]})
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or was changed: its sha256"):
        pull(REPO)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(hub: HubServer, pushed: str, file: str) -> None:
    del main_files(hub)[file]
    with pytest.raises(FileNotFoundError, match=rf"clinic/phantoms at \S* has no file {file} at"):
        pull(REPO)


def test_a_repository_of_another_library_is_refused(hub: HubServer) -> None:
    hub.create(REPO, {"config.json": b'{"architectures": ["Bert"]}', "model.safetensors": b""})
    with pytest.raises(CheckpointError, match="is not from medgen"):
        pull(REPO)


def test_a_name_that_leads_out_of_the_folder_is_refused(hub: HubServer, pushed: str) -> None:
    config = main_files(hub)["config.json"].replace(b"README.md", b"../../escape")
    hub.repositories["models", REPO].commit({"config.json": config})
    with pytest.raises(CheckpointError, match="escape"):
        pull(REPO)


def test_an_unknown_repository_is_named(hub: HubServer) -> None:
    with pytest.raises(FileNotFoundError, match=r"no repository clinic/phantoms at http://127.*private"):
        pull(REPO)


def test_an_unknown_revision_is_named(pushed: str) -> None:
    with pytest.raises(FileNotFoundError, match="has no revision 'v9'"):
        pull(REPO, "v9")


def test_a_gated_repository_says_how_to_get_access(hub: HubServer, pushed: str) -> None:
    hub.repositories["models", REPO].gated = True
    with pytest.raises(PermissionError, match=r"is gated: accept its terms at .*hf auth login"):
        pull(REPO)


def test_an_invalid_name_is_refused(hub: HubServer) -> None:
    with pytest.raises(ValueError, match="'a//b' is not the name of a repository"):
        pull("a//b")


def test_a_push_without_login_says_how_to_log_in(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PermissionError, match="hf auth login"):
        push(folder, REPO)


def test_a_failing_hub_is_reported_with_its_status(hub: HubServer, pushed: str, tmp_path: Path) -> None:
    hub.failure = 501
    with pytest.raises(ConnectionError, match=r"cannot reach the repository clinic/phantoms at http.*501"):
        pull(REPO)


def test_without_network_the_error_says_what_was_tried_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_client_to("http://127.0.0.1:9", tmp_path / "hf", monkeypatch)
    with pytest.raises(ConnectionError) as caught:
        pull(REPO, "v1")
    for part in (REPO, "v1", "http://127.0.0.1:9", str(tmp_path / "hf"), "hf download clinic/phantoms", "medgen.load"):
        assert part in str(caught.value)


def test_the_offline_switch_gives_the_same_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_client_to("http://127.0.0.1:9", tmp_path / "hf", monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"hf download clinic/phantoms --local-dir FOLDER"):
        pull(REPO)


def test_a_checkpoint_downloaded_by_hand_is_a_checkpoint(pushed: str, tmp_path: Path) -> None:
    snapshot_download(REPO, local_dir=tmp_path / "by-hand")
    shutil.rmtree(tmp_path / "by-hand" / ".cache")
    assert read_checkpoint(tmp_path / "by-hand").family == "medfusion"
