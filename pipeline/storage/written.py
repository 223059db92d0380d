"""When files were written last, as far as a store says so."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

# What fsspec's file systems call it: s3fs, gcsfs, adlfs, memory, and others.
_NAMES = ("LastModified", "updated", "last_modified", "mtime", "modified", "created")


def written_at(found: Mapping[str, Any]) -> datetime | None:
    """Return when an object was written last, UTC, from what an fsspec file system lists of it; None if unknown."""
    value = next((found[name] for name in _NAMES if found.get(name) is not None), None)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, int | float):
        value = datetime.fromtimestamp(value, UTC)
    if not isinstance(value, datetime):
        return None
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
