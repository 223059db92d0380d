"""Validation of `storage.options`: options of a store's client, but no credentials.

The spec is copied into run.json, schedules and manifests, and so would be credentials in it. This module does not
import fsspec, because `htc --help` imports it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.redaction import is_secret_option, redact

SAME_STORE = {"s3a": "s3", "gcs": "gs", "abfss": "abfs", "az": "abfs", "adl": "abfs"}
"""Schemes that are other names for one store."""

# Options that this program sets itself, and what to do instead.
_RESERVED = {
    "anon": "set `storage: {anonymous: true}`",
    "max_concurrency": "set storage.read_concurrency",
    "max_pool_connections": "set storage.read_concurrency",
    "retries": "set storage.patience_s",
    "version_aware": "leave it out; every read is checked against the listed version",
    "session": "leave it out",
    "loop": "leave it out",
    "asynchronous": "leave it out",
    "use_listings_cache": "leave it out",
    "skip_instance_cache": "leave it out",
}
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_EXAMPLE = "`options: {s3: {requester_pays: true}}`"


def check_options(options: object) -> dict[str, dict[str, Any]]:
    """Check the spec's `storage.options`: by scheme, the options of its fsspec file system.

    Raises:
        ValueError: it is not a mapping of mappings of plain values, holds a credential, or sets a reserved option.
    """
    if not isinstance(options, Mapping):
        raise ValueError(f"it must hold a section for each scheme, such as {_EXAMPLE}")
    return {str(scheme): _check_store(str(scheme), section) for scheme, section in options.items()}


def options_of(options: Mapping[str, Mapping[str, Any]], scheme: str) -> dict[str, Any]:
    """Return a scheme's options, given under any of its names."""
    store = SAME_STORE.get(scheme, scheme)
    found: dict[str, Any] = {}
    for name, section in options.items():
        if SAME_STORE.get(name, name) == store:
            found |= section
    return found


def merge_options(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the user's options over this program's, section by section."""
    merged = dict(ours)
    for name, value in theirs.items():
        below = merged.get(name)
        merged[name] = merge_options(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _check_store(scheme: str, section: object) -> dict[str, Any]:
    if not isinstance(section, Mapping):
        raise ValueError(f"{scheme} must be a scheme with a section of its options, such as {_EXAMPLE}")
    if not _SCHEME.fullmatch(scheme):
        raise ValueError(f"{scheme!r} is not a scheme; write s3, gs, abfs or https, such as {_EXAMPLE}")
    if scheme in ("file", "local"):
        raise ValueError("local files have no options; remove that section")
    for path, value in _walk(scheme, section):
        name = path.rpartition(".")[2]
        if is_secret_option(name):
            raise ValueError(
                f"{path} is a credential, and credentials are not written into a spec; set them in the environment or "
                "a profile"
            )
        if name in _RESERVED:
            raise ValueError(f"{path} is set by htc itself; {_RESERVED[name]}")
        if isinstance(value, str) and redact(value) != value:
            raise ValueError(
                f"{path} looks like a credential, and credentials are not written into a spec; set them in the "
                "environment or a profile"
            )
        if not isinstance(value, Mapping | list | str | int | float | bool | None):
            raise ValueError(f"{path} must be text, a number, true, false, null, or a section of these")
    return dict(section)


def _walk(path: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield each value below a section with its dotted path; values of a list with the list's path."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield f"{path}.{name}", inner
            yield from _walk(f"{path}.{name}", inner)
    elif isinstance(value, list):
        for inner in value:
            yield path, inner
            yield from _walk(path, inner)
