"""Finds, downloads and checks weights files; keeps them in a cache on this machine.

The cache is `$HTC_CACHE/weights`, else `~/.cache/htc-batch/weights`. A download goes to a `.part` file, which the next
attempt continues, and is renamed when its hash is right. Workers that start together share one download.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from htc_model.weights.model_zoo import (
    PublishedWeights,
    UnknownWeightsError,
    bundled_weights,
    find,
    sha256_prefix_of,
)
from pipeline.errors import NotFoundError, StorageError, WeightsUnavailableError
from pipeline.job_spec.model import ModelSection
from pipeline.storage.storage import Storage
from pipeline.storage.uris import base_name, home_path, is_local, local_path
from pipeline.text import message_of

CHUNK_BYTES = 16 * 2**20
"""Bytes per read, and so the most that an interrupted download loses."""

Progress = Callable[[int, int | None], None]
"""Called after each chunk with the bytes downloaded so far and the total (None if unknown)."""


def cache_folder() -> Path:
    """Return the cache folder of downloaded weights; it may not exist yet."""
    root = os.environ.get("HTC_CACHE")
    return (home_path(root) if root else home_path("~/.cache/htc-batch")) / "weights"


def resolve_weights(section: ModelSection, storage: Storage | None = None) -> Path | None:
    """Return the local file of a spec's `model.weights`, downloading it if it is not on this machine.

    Returns:
        a local path; None for "untrained", and for a factory's own "default". A factory may also take a folder.

    Raises:
        WeightsUnavailableError: no such file, nothing published for the preset, or the download fails.
    """
    if section.weights == "untrained" or _is_factorys_own(section):
        return None
    if section.weights == "demo":
        return bundled_weights()
    if section.weights == "coco":
        return fetch_weights(section.preset, storage=storage)
    if is_local(section.weights):
        path = Path(local_path(section.weights))
        if not path.is_file() and (section.factory is None or not path.is_dir()):
            raise WeightsUnavailableError(f"There is no weights file {path}.")
        return path
    return _copy_remote(section.weights, storage or Storage())


def weights_here(section: ModelSection) -> Path | None:
    """Return the local file of the spec's weights; None for "untrained" and for a file that is not downloaded yet."""
    if section.weights == "untrained" or _is_factorys_own(section):
        return None
    if section.weights == "demo":
        return bundled_weights()
    if section.weights != "coco":
        return Path(local_path(section.weights)) if is_local(section.weights) else None
    try:
        file_name = find(section.preset).file_name
    except UnknownWeightsError:
        return None
    path = cache_folder() / file_name if file_name else None
    return path if path and path.is_file() else None


def _is_factorys_own(section: ModelSection) -> bool:
    return section.factory is not None and section.weights == "default"


def fetch_weights(
    name: str,
    cache_dir: Path | None = None,
    *,
    storage: Storage | None = None,
    on_progress: Progress | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Path:
    """Download a published checkpoint unless it is on this machine, and check its hash.

    Args:
        name: a preset, or a name of `htc_model.weights.model_zoo`.
        cache_dir: the folder to keep it in, instead of the cache.
        chunk_bytes: the bytes per read.

    Raises:
        WeightsUnavailableError: unknown name, offline, disk full, or a wrong hash; the message
            states the way out.
    """
    try:
        published = find(name)
    except UnknownWeightsError as error:
        raise WeightsUnavailableError(
            f"{error} Use --weights with a file of your own, or --weights untrained."
        ) from error
    target = (cache_dir or cache_folder()) / published.file_name
    try:
        download(
            published.url,
            target,
            published.sha256_prefix,
            storage=storage,
            on_progress=on_progress,
            chunk_bytes=chunk_bytes,
        )
    except StorageError as error:
        raise WeightsUnavailableError(_offline_advice(published, target, error)) from error
    return target


def place_in_cache(path: Path) -> str | None:
    """Return the name of a weights file below the cache folder, None for one that lies elsewhere."""
    folder = cache_folder()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else None


def store_in_cache(name: str, payload: memoryview) -> None:
    """Write a weights file into this machine's cache, unless it is there.

    Args:
        name: below the cache folder, see `place_in_cache`. payload: the file's bytes.

    Raises:
        WeightsUnavailableError: it cannot be written.
    """
    target = cache_folder() / name
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _sole_writer(target):
            if not target.exists():
                part.write_bytes(payload)
                part.replace(target)
    except OSError as error:
        raise _not_writable(target, error) from error


def _not_writable(target: Path, error: OSError) -> WeightsUnavailableError:
    return WeightsUnavailableError(
        f"{target} cannot be written: {error.strerror or error}; set HTC_CACHE to another folder."
    )


def download(
    uri: str,
    target: Path,
    sha256_prefix: str | None = None,
    *,
    storage: Storage | None = None,
    on_progress: Progress | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> None:
    """Copy a remote file to a local path, continuing an earlier attempt; does nothing if the target exists.

    Args:
        chunk_bytes: the bytes per read.

    Raises:
        StorageError: the source cannot be read.
        WeightsUnavailableError: the hash is wrong, or the target cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _sole_writer(target):
            if target.exists():
                _check_hash(target, target, sha256_prefix)
                return
            _append_rest(storage or Storage(), uri, part, on_progress, chunk_bytes)
            _check_hash(part, target, sha256_prefix)
            part.replace(target)
    except OSError as error:
        raise _not_writable(target, error) from error


@contextmanager
def _sole_writer(target: Path) -> Iterator[None]:
    """Lock a file for one process of this machine at a time; the kernel releases the lock when a process dies."""
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _append_rest(storage: Storage, uri: str, part: Path, on_progress: Progress | None, chunk_bytes: int) -> None:
    total = storage.stat(uri).bytes
    with part.open("ab") as file:
        if total is None:  # a server that does not report the size has no ranges either
            file.truncate(0)
            file.write(storage.read(uri))
            return
        if file.tell() > total:  # not the beginning of this file
            file.truncate(0)
            file.seek(0)
        while (here := file.tell()) < total:
            file.write(storage.read(uri, here, min(chunk_bytes, total - here)))
            file.flush()
            if on_progress is not None:
                on_progress(file.tell(), total)


def _check_hash(path: Path, target: Path, sha256_prefix: str | None) -> None:
    if sha256_prefix is None:
        return
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256.startswith(sha256_prefix):
        return
    if path != target:
        path.unlink()  # continuing it would give the same wrong hash
        raise WeightsUnavailableError(
            f"The download of {target.name} has the sha256 {sha256[:8]}... instead of {sha256_prefix}... and was "
            "deleted; try again."
        )
    raise WeightsUnavailableError(
        f"{target} is damaged: its sha256 is {sha256[:8]}... instead of {sha256_prefix}...; delete it and try again."
    )


def _offline_advice(published: PublishedWeights, target: Path, error: StorageError) -> str:
    reason = message_of(error)
    return (
        f"The weights {published.name} could not be downloaded ({reason}). On a machine with network access download "
        f"{published.url}, copy it here to {target}, and check it with: htc weights verify {target}"
    )


def _copy_remote(uri: str, storage: Storage) -> Path:
    """Copy a weights file from remote storage into the cache, in a folder for its version."""
    try:
        listed = storage.stat(uri)
        version = hashlib.sha256(f"{uri}\0{listed.etag}\0{listed.bytes}".encode()).hexdigest()[:16]
        target = cache_folder() / version / base_name(uri)
        download(uri, target, sha256_prefix_of(target.name), storage=storage)
    except NotFoundError as error:
        raise WeightsUnavailableError(f"There is no weights file {uri}.") from error
    except StorageError as error:
        raise WeightsUnavailableError(f"The weights {uri} cannot be read: {error}") from error
    return target
