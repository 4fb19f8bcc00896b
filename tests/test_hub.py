"""Push and pull over HTTP with the real client, against a small Hub on 127.0.0.1."""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

import medgen
from medgen.checkpoint import About, CheckpointError, read_checkpoint, read_info, write_checkpoint
from medgen.families.medfusion.generator import MedfusionConfig, MedfusionGenerator
from medgen.foreign.pickles import UnsafeFileError
from medgen.foreign.published import fetch_official
from medgen.hub import pull, push
from medgen.loading import from_pretrained
from medgen.zoo import ZOO, OfficialEntry
from tests.foreign.test_convert import sample_as_official
from tests.hub_server import TOKEN, HubServer
from tests.parity.conftest import Case, cases

REPO = "clinic/phantoms"

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # inside the client


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


def test_a_branch_is_looked_up_even_if_the_cache_lies_below_a_folder_of_its_name(
    hub: HubServer, pushed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_client_to(hub.url, tmp_path / "main" / "hf", monkeypatch)
    assert pull(REPO, "main").name == pushed
    later = hub.repositories["models", REPO].commit({"notes.txt": b""})
    assert pull(REPO, "main").name == later


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


@pytest.mark.parametrize("damage", [b"{", b'{"format_version": 1}', None])
def test_a_damaged_description_does_not_stay_in_the_cache(pushed: str, damage: bytes | None) -> None:
    config = pull(REPO, pushed) / "config.json"
    content = config.read_bytes()
    stated = read_info(config.parent).files["model.safetensors"].encode()
    config.resolve().write_bytes(content.replace(stated, b"0" * 64) if damage is None else damage)
    with pytest.raises(CheckpointError, match=r"is damaged"):
        pull(REPO, pushed)
    assert (pull(REPO, pushed) / "config.json").read_bytes() == content


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
    assert try_to_load_from_cache(REPO, "config.json")  # the other library needs it


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


def test_a_push_without_network_says_how_to_do_it_later(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_client_to("http://127.0.0.1:9", tmp_path / "hf", monkeypatch)
    with pytest.raises(ConnectionError, match=r"cannot reach .* `medgen push FOLDER clinic/phantoms` later"):
        push(folder, REPO)


def test_the_offline_switch_gives_the_same_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_client_to("http://127.0.0.1:9", tmp_path / "hf", monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"hf download clinic/phantoms --local-dir FOLDER"):
        pull(REPO)


def test_a_checkpoint_downloaded_by_hand_is_a_checkpoint(pushed: str, tmp_path: Path) -> None:
    snapshot_download(REPO, local_dir=tmp_path / "by-hand")
    shutil.rmtree(tmp_path / "by-hand" / ".cache")
    assert read_checkpoint(tmp_path / "by-hand").family == "medfusion"


SPACE = "authors/medfusion-app"
CHEST = "runs/2022_11_27_085654_chest_diffusion/last.ckpt"


@pytest.fixture
def official(hub: HubServer) -> Case:
    """The Space of the authors with two of their runs, both the official file of the parity data."""
    case = cases("medfusion_ckpt")[0].values[0] or pytest.skip("no medfusion_ckpt_*.json; set MEDGEN_PARITY")
    content = case.path.with_name(f"{case.path.stem}_diffusion.ckpt").read_bytes()
    files = {"README.md": b"", CHEST: content, "runs/2022_12_01_000000_eye_diffusion/last.ckpt": content}
    hub.create(SPACE, files, kind="spaces")
    return case


def fetch(case: Case, *patterns: str, **options: str) -> Path:
    size = tuple(case.inputs["image"].shape[2:])
    return fetch_official(
        SPACE, patterns or (CHEST,), image_size=size, about=About(licence="unknown", data="chest"), **options
    )


def test_the_authors_checkpoint_samples_the_official_images(official: Case) -> None:
    generator = from_pretrained(fetch(official))
    official.check("sample_image", sample_as_official(generator, official), relative=1e-4)


@pytest.mark.slow
def test_the_authors_checkpoint_loads_by_its_name(hub: HubServer, official: Case) -> None:
    entry = ZOO["medfusion-chexpert"]
    assert isinstance(entry, OfficialEntry)
    content = hub.repositories["spaces", SPACE].commits[hub.repositories["spaces", SPACE].refs["main"]]
    hub.create(entry.space, content, kind="spaces")
    generator = medgen.load("medfusion-chexpert")
    assert (generator.source, generator.about.licence) == ("medfusion-chexpert", entry.licence)
    images = generator.sample(2, label="Cardiomegaly", seed=0, steps=2)
    assert images.shape == (2, generator.config.channels, 256, 256)
    hub.log.clear()
    again = medgen.load("medfusion-chexpert").sample(2, label="Cardiomegaly", seed=0, steps=2)
    assert hub.log == []
    assert torch.equal(again, images)


def test_the_converted_file_records_where_it_came_from(hub: HubServer, official: Case) -> None:
    commit = hub.repositories["spaces", SPACE].refs["main"]
    about = read_info(fetch(official)).about
    assert about.source == f"https://huggingface.co/spaces/{SPACE}/blob/{commit}/{CHEST}"
    assert about.data == "chest"


def test_the_second_fetch_needs_no_request(hub: HubServer, official: Case) -> None:
    first = fetch(official)
    hub.log.clear()
    hub.repositories["spaces", SPACE].commit({CHEST: b"something else"})
    assert fetch(official) == first
    assert hub.log == []


@pytest.mark.slow
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_damaged_conversion_is_made_again_from_the_same_commit(hub: HubServer, official: Case, file: str) -> None:
    folder = fetch(official)
    content = (folder / file).read_bytes()
    hub.repositories["spaces", SPACE].commit({CHEST: b"something else"})
    (folder / file).write_bytes(content[:-9])
    assert fetch(official) == folder
    assert (folder / file).read_bytes() == content


def test_a_branch_of_the_space_is_converted_once_for_each_commit(hub: HubServer, official: Case) -> None:
    first = fetch(official, revision="main")
    written = (first / "model.safetensors").stat().st_ctime_ns
    assert fetch(official, revision="main") == fetch(official) == first
    assert (first / "model.safetensors").stat().st_ctime_ns == written
    hub.repositories["spaces", SPACE].commit({CHEST: b"something else"})
    with pytest.raises(CheckpointError):
        fetch(official, revision="main")


def test_a_pattern_finds_the_one_file_that_matches(official: Case) -> None:
    folder = fetch(official, "runs/*fundus*/last.ckpt", "runs/*eye*diffusion*/last.ckpt")
    assert "eye" in read_info(folder).about.source


@pytest.mark.parametrize(("pattern", "count"), [("runs/*colon*/last.ckpt", 0), ("runs/*/last.ckpt", 2)])
def test_a_pattern_without_a_single_match_lists_what_there_is(official: Case, pattern: str, count: int) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{count} files of the Space \S+ match.*chest.*eye.*medgen convert"):
        fetch(official, pattern)


def test_a_given_commit_of_the_space_is_used(hub: HubServer, official: Case) -> None:
    space = hub.repositories["spaces", SPACE]
    commit = space.refs["main"]
    space.commit({CHEST: b"something else"})
    assert commit in str(fetch(official, revision=commit))


def test_a_tampered_official_file_is_refused_and_fetched_again(hub: HubServer, official: Case) -> None:
    space = hub.repositories["spaces", SPACE]
    content = space.commits[space.refs["main"]][CHEST]
    hub.damage(SPACE, CHEST, content[:-1] + b"x", kind="spaces")
    with pytest.raises(CheckpointError, match="was damaged on its way"):
        fetch(official)
    hub.damage(SPACE, CHEST, content, kind="spaces")
    assert read_checkpoint(fetch(official)).family == "medfusion"


def test_an_official_file_with_a_payload_is_refused_and_leaves_nothing(hub: HubServer, tmp_path: Path) -> None:
    call = pickle.dumps(os.system, protocol=2)[:-1] + b"X\x01\x00\x00\x00x\x85R."
    hub.create(SPACE, {CHEST: call}, kind="spaces")
    with pytest.raises(UnsafeFileError, match=r"(posix|nt)\.system"):
        fetch_official(SPACE, [CHEST], image_size=(32, 32))
    assert not list(tmp_path.rglob("config.json"))


def test_without_network_the_official_file_can_be_converted_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_client_to("http://127.0.0.1:9", tmp_path / "hf", monkeypatch)
    monkeypatch.setenv("MEDGEN_CACHE", str(tmp_path / "medgen"))
    for patterns in ([CHEST], ["runs/*eye*/last.ckpt", "runs/*fundus*/last.ckpt"]):
        with pytest.raises(ConnectionError) as caught:
            fetch_official(SPACE, patterns, image_size=(256, 256))
        for part in (SPACE, "http://127.0.0.1:9", "hf download", "--repo-type space", "medgen convert", "medgen.load"):
            assert part in str(caught.value)


def test_a_generator_goes_to_the_hub_and_comes_back_with_the_same_images(hub: HubServer) -> None:
    generator = MedfusionGenerator(MedfusionConfig.tiny())
    commit = push(generator, "clinic/tiny")
    back = medgen.load(f"clinic/tiny@{commit}")
    assert torch.equal(back.sample(2, label=1, seed=3), generator.sample(2, label=1, seed=3))


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_generator_of_a_branch_knows_its_commit(hub: HubServer, revision: str | None) -> None:
    commit = push(MedfusionGenerator(MedfusionConfig.tiny()), "clinic/tiny")
    assert from_pretrained("clinic/tiny", revision=revision).revision == commit


@pytest.mark.slow
def test_a_fresh_process_finds_the_hub_by_its_environment(hub: HubServer, tmp_path: Path) -> None:
    commit = push(MedfusionGenerator(MedfusionConfig.tiny()), "clinic/tiny")
    code = "import medgen; print(medgen.load('clinic/tiny').sample(1, seed=0).mean().item())"
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    here = medgen.load("clinic/tiny", revision=commit).sample(1, seed=0).mean().item()
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(here, abs=1e-6)
