"""Models on the Hugging Face Hub: pull and push.

Everything pulled is verified against the hashes in ``config.json``, since the Hub's client checks no content. Its
settings apply: ``HF_HOME`` for the download cache, ``HF_TOKEN`` for private repositories, ``HF_HUB_OFFLINE=1`` to use
the cache only, ``HF_ENDPOINT`` for a mirror.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from medgen.checkpoint import CONFIG_FILE, CheckpointError, read_info, sha256_of, verify_files

if TYPE_CHECKING:
    from medgen.published import PublishedModel

Kind: TypeAlias = Literal["repository", "Space"]


def pull(repo: str, revision: str | None = None) -> Path:
    """Download and verify a checkpoint; returns its folder in the Hub's cache.

    All files come from one commit, even if the repository changes meanwhile. A cached commit needs no network; if the
    Hub cannot be reached, the last cached state of a branch or tag is used.

    The revision is a commit, tag or branch of the repository ``org/name``, by default the main branch.

    Raises:
        FileNotFoundError: If there is no such repository, revision or file.
        PermissionError: If the repository needs a login or accepted terms.
        ConnectionError: If the Hub cannot be reached.
        CheckpointError: If a file is damaged, changed, foreign, or of a newer format.
    """
    advice = f"run `hf download {repo} --local-dir FOLDER` on a machine with network, then medgen.load('FOLDER') here"
    folder = download(repo, CONFIG_FILE, revision, advice=advice).parent
    try:
        info = read_info(folder)
        for name in info.files:
            download(repo, name, folder.name, advice=advice)  # the cache names the folder after the commit
        verify_files(info)
    except CheckpointError:
        _evict_damaged(folder)
        raise
    return folder


def _evict_damaged(folder: Path) -> None:
    """Remove the damaged files of a checkpoint from the Hub's cache, so that they are fetched again."""
    with suppress(CheckpointError):
        for name, digest in read_info(folder).files.items():
            if (folder / name).is_file() and sha256_of(folder / name) != digest:
                evict(folder / name)
    config = folder / CONFIG_FILE
    content = config.read_bytes()
    # The cache names small files by their git hash; one that matches is sound, such as that of another library.
    if config.resolve().name != hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest():
        evict(config)


def evict(file: Path) -> None:
    """Remove a file from the Hub's download cache, so that it is fetched again."""
    file.resolve().unlink()
    file.unlink(missing_ok=True)


def push(
    source: PublishedModel | str | Path, repo: str, *, private: bool = False, message: str = "Upload medgen checkpoint"
) -> str:
    """Upload a checkpoint with its model card; returns the hash of the commit, to pin as ``org/name@hash``.

    A folder is verified first. The repository ``org/name`` is created if it does not exist, and private if asked for.

    Raises:
        FileNotFoundError: If the checkpoint is incomplete.
        PermissionError: If the login is missing or has no write access.
        ConnectionError: If the Hub cannot be reached.
        CheckpointError: If a file of the checkpoint is damaged.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    with tempfile.TemporaryDirectory(prefix="medgen-push-") as scratch:
        if isinstance(source, str | Path):
            folder = Path(source)
        else:
            folder = source.save_pretrained(Path(scratch) / repo.rpartition("/")[2])
        info = read_info(folder)
        verify_files(info)
        files = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in (CONFIG_FILE, *info.files)
        ]
        later = f"keep it with model.save_pretrained('FOLDER'), and run `medgen push FOLDER {repo}` later"
        with plain_errors(repo, None, advice=later):
            api = HfApi()
            api.create_repo(repo, private=private, exist_ok=True)
            return api.create_commit(repo, files, commit_message=message).oid


def download(repo: str, name: str, revision: str | None, *, advice: str, kind: Kind = "repository") -> Path:
    """Download a file to the Hub's cache; use the cached one if it is of this commit or the Hub is not reachable."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    repo_type = "space" if kind == "Space" else "model"
    with plain_errors(repo, revision, advice=advice, kind=kind, file=name):
        cached = try_to_load_from_cache(repo, name, revision=revision, repo_type=repo_type)
        if isinstance(cached, str) and Path(cached).parents[name.count("/")].name == revision:  # a commit never changes
            return Path(cached)
        try:  # one request first: the download retries for half a minute
            get_hf_file_metadata(hf_hub_url(repo, name, revision=revision, repo_type=repo_type))
        except Exception as error:
            if isinstance(cached, str) and _is_outage(error):
                return Path(cached)
            raise
        try:
            return Path(hf_hub_download(repo, name, revision=revision, repo_type=repo_type))
        except OSError as error:
            if "Consistency check failed" not in str(error):
                raise
            raise CheckpointError(f"{name} of the {kind} {repo} arrived incomplete, try again: {error}") from error


def _is_outage(error: Exception) -> bool:
    """Whether the Hub could not be reached or failed, rather than refused."""
    from huggingface_hub import errors

    http_error = errors.HfHubHTTPError.__mro__[1]  # the base class of the HTTP library, which differs by version
    response = getattr(error, "response", None)
    unreachable = (http_error, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
    return isinstance(error, unreachable) and (response is None or response.status_code >= 500)


@contextmanager
def plain_errors(
    repo: str, revision: str | None, *, advice: str, kind: Kind = "repository", file: str = ""
) -> Iterator[None]:
    """Replace errors of the Hub's client by built-in ones that say what to do; `advice` is for work offline."""
    from huggingface_hub import constants, errors

    where = constants.ENDPOINT
    try:
        yield
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"the {kind} {repo} is gated: accept its terms at {where}/{repo}, then log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"no {kind} {repo} at {where}, or it is private: check the name, or log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"the {kind} {repo} at {where} has no revision {revision!r}; use a commit, tag or branch it has"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise FileNotFoundError(
            f"the {kind} {repo} at {where} has no file {file} at revision {revision or 'main'}; the checkpoint is "
            "incomplete, or not from medgen"
        ) from error
    except errors.HFValidationError as error:
        raise ValueError(f"{repo!r} is not the name of a {kind}: {error}") from error
    except Exception as error:
        if _is_outage(error):
            raise ConnectionError(
                f"cannot reach the {kind} {repo} at {where} (revision {revision or 'main'}; cache: "
                f"{constants.HF_HUB_CACHE}): {error.__cause__ or error}. To go on offline: {advice}. The checkpoints "
                "that `medgen list` calls bundled need no network"
            ) from error
        if isinstance(error, errors.HfHubHTTPError):
            raise PermissionError(
                f"{where} refuses the request for {repo}: {error}. Check the rights of your token, or log in with "
                "`hf auth login`"
            ) from error
        raise
