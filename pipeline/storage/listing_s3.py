"""Listing an S3 prefix: `pipeline.storage.listing` with the requests of an s3fs client."""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from pipeline.storage.listing import list_keys

Call = Callable[[Callable[[], dict[str, Any]]], dict[str, Any]]
"""Makes one request, with retries and translated errors."""


def find_on_s3(
    client: Any, path: str, call: Call, after: str = "", name_prefix: str = ""
) -> Iterator[tuple[str, int | None, str | None]]:
    """List what is below a path, as (name relative to it, bytes, ETag).

    Args:
        client: an s3fs file system.
        path: bucket and prefix as the client spells them; several slashes at the end are part of the prefix.
        after: a name relative to the path; only names behind it are listed.
        name_prefix: what the relative names begin with.
    """
    bucket, key, _ = client.split_path(path)
    prefix = f"{key.rstrip('/')}{path[len(path.rstrip('/')) :] or '/'}" if key else ""

    def fetch(request: dict[str, Any]) -> dict[str, Any]:
        return call(lambda: client.call_s3("list_objects_v2", Bucket=bucket, **request))

    for found in list_keys(fetch, f"{prefix}{name_prefix}", f"{prefix}{after}" if after else ""):
        # Servers that keep keys as paths collapse repeated slashes, and answer with keys of another prefix.
        if found.key.startswith(prefix):
            yield found.key[len(prefix) :], found.bytes, found.etag


def written_on_s3(client: Any, path: str, call: Call) -> Iterator[tuple[str, datetime]]:
    """List the objects right below a path, as (name, when it was written).

    Asks by the first version of the request, because the answers of the second lose their times, see
    `s3_page_parser`.

    Args:
        client: an s3fs file system. path: bucket and prefix as the client spells them.
    """
    bucket, key, _ = client.split_path(path)
    prefix = f"{key.rstrip('/')}/" if key else ""
    request = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/"}
    while True:
        page = call(lambda: client.call_s3("list_objects", **request))
        found = page.get("Contents", [])
        for each in found:
            if each["Key"].startswith(prefix) and each["Key"] != prefix:
                yield each["Key"][len(prefix) :], each["LastModified"]
        after = page.get("NextMarker") or (found[-1]["Key"] if found else "")
        if not page.get("IsTruncated") or not after or after == request.get("Marker"):
            return
        request["Marker"] = after
