"""Fetching a repository's files from the Hugging Face hub into its cache, going on where a download was cut off.

`huggingface_hub` does the talking and owns the cache. What it doesn't do is go on with a file that an earlier process
left half fetched (each of its downloads begins a file of its own), which matters for files of 5 to 15 GB. So the
bytes are fetched here into a partial file that stays, and put among the cache's blobs when complete.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .errors import DownloadError, StorageError

logger = logging.getLogger(__name__)

_SHA256_DIGITS = 64
_SPARE_BYTES = 64 << 20


def fetch(repo: str, filename: str, progress: type | None = None) -> Path | None:
    """The path in the cache of a hub repository's file, downloaded if need be; None if the repository has no such file.

    Without network, or with `HF_HUB_OFFLINE=1`, the cached copy is used.

    Args:
        repo: `owner/name`.
        filename: path inside the repository.
        progress: a class with tqdm's interface to show a download with; None shows nothing.

    Raises:
        DownloadError: no network and no cached copy, no such repository, no access to it.
        StorageError: no room for the file.
    """
    import huggingface_hub as hub  # takes a third of a second to import: only who downloads pays for it
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError

    cached = hub.try_to_load_from_cache(repo, filename)
    if hub.is_offline_mode():
        return _from_cache_only(repo, filename, cached, "HF_HUB_OFFLINE turns the network off")
    try:
        remote = hub.get_hf_file_metadata(hub.hf_hub_url(repo, filename))
        blob = _blob(repo, remote)
        if isinstance(cached, str) and blob is not None and Path(cached).resolve() == blob.resolve():
            return Path(cached)
        _download(repo, filename, remote, blob, progress)
        return Path(hub.hf_hub_download(repo, filename, tqdm_class=progress or _silent()))
    except (DownloadError, StorageError):
        raise
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise DownloadError(
            f"The hub has no repository {repo}, or it isn't open to you. Check the name; if it is right, accept its "
            "terms on huggingface.co and log in with `hf auth login`."
        ) from error
    except RemoteEntryNotFoundError:
        if cached is None:
            _remember_absence(repo, filename)
        return None
    except Exception as error:  # whatever the transport raises: its library changes with huggingface_hub's versions
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"No room for {filename} in {_cache()}. Free some space or set HF_HOME.") from error
        logger.info("fetching %s of %s: %s", filename, repo, error)
        return _from_cache_only(repo, filename, cached, _reason(error), error)


def is_cached(repo: str, filename: str) -> bool:
    """Whether a repository's file is in the cache, complete; asks nobody."""
    folder = _cache() / f"models--{repo.replace('/', '--')}" / "snapshots"
    return any(path.exists() for path in folder.glob(f"*/{filename}"))


def _from_cache_only(repo: str, filename: str, cached: Any, why: str, cause: Exception | None = None) -> Path | None:
    if isinstance(cached, str):
        return Path(cached)
    if cached is not None:
        return None  # known not to be in the repository
    raise DownloadError(
        f"{filename} of {repo} can't be downloaded ({why}) and isn't in the cache: connect to the internet and run "
        "this again (a download goes on where it stopped), or give a folder with the files instead of a repository."
    ) from cause


def _remember_absence(repo: str, filename: str) -> None:
    """Have the cache note that a repository has no such file, for the next time without network."""
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError

    with suppress(EntryNotFoundError):
        hub.hf_hub_download(repo, filename)


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"{urlsplit(str(response.url)).hostname} answered {response.status_code}"
    return str(error).strip().split("\n")[0] or type(error).__name__


def _cache() -> Path:
    from huggingface_hub import constants  # quick to import, unlike the package's functions

    return Path(constants.HF_HUB_CACHE)


def _blob(repo: str, remote: Any) -> Path | None:
    """Where the cache keeps the file's content, named by its etag."""
    if not remote.etag:
        return None
    return _cache() / f"models--{repo.replace('/', '--')}" / "blobs" / str(remote.etag)


def _download(repo: str, filename: str, remote: Any, blob: Path | None, progress: type | None) -> None:
    """Fetch a file's content into the cache's blobs; what is missing of it, if a part is there already."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported lazily

    if blob is None or remote.size is None or blob.exists():
        return
    with _lock(blob):
        if blob.exists():
            return
        partial = blob.with_name(f"{blob.name}.partial")
        start = partial.stat().st_size if partial.exists() else 0
        if start > remote.size:
            partial.unlink()
            start = 0
        _need_space(blob.parent, remote.size - start, filename)
        headers = build_hf_headers()
        if urlsplit(remote.location).hostname != urlsplit(_endpoint()).hostname:
            headers.pop("authorization", None)  # a signed address on another host doesn't need it
        with partial.open("ab") as file:
            http_get(
                remote.location, file, resume_size=start, headers=headers, expected_size=remote.size,
                displayed_filename=filename, tqdm_class=progress or _silent(),
            )  # fmt: skip
        if len(blob.name) == _SHA256_DIGITS and _sha256(partial) != blob.name:
            partial.unlink()
            raise DownloadError(f"{filename} of {repo} arrived damaged. Run this again to download it anew.")
        os.replace(partial, blob)


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _lock(blob: Path) -> AbstractContextManager[Any]:
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    blob.parent.mkdir(parents=True, exist_ok=True)
    locks = blob.parents[2] / ".locks" / blob.parents[1].name
    locks.mkdir(parents=True, exist_ok=True)
    return WeakFileLock(locks / f"{blob.name}.partial.lock")


def _need_space(folder: Path, size: int, filename: str) -> None:
    import shutil

    free = shutil.disk_usage(folder).free
    if free < size + _SPARE_BYTES:
        raise StorageError(
            f"{filename} needs {size / 1e9:.1f} GB in {_cache()}, which has {free / 1e9:.1f} GB left. "
            "Free some space or set HF_HOME to a folder on another disk."
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _silent() -> type:
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent
