"""Listing Google Cloud Storage and Azure Blob Storage page by page, with answers in the form of S3's.

It uses the clients of gcsfs and adlfs; their own `find` would hold all names in memory at once.
"""

from collections.abc import Callable, Iterator
from typing import Any

from pipeline.storage.listing import list_keys
from pipeline.storage.listing_s3 import Call, find_on_s3
from pipeline.storage.uris import AZURE_SCHEMES, GCS_SCHEMES, S3_SCHEMES

PAGE_KEYS = 1000
# The answer holds these fields only.
_GCS_FIELDS = "nextPageToken,prefixes,items(name,size,etag)"


Find = Callable[[Any, str, Call, str, str], Iterator[tuple[str, int | None, str | None]]]


def finder_of(scheme: str) -> Find | None:
    """Return the function that lists a store of this scheme by pages; None where only fsspec's own listing exists."""
    if scheme in S3_SCHEMES:
        return find_on_s3
    if scheme in GCS_SCHEMES:
        return find_on_gcs
    return find_on_azure if scheme in AZURE_SCHEMES else None


def find_on_gcs(
    client: Any, path: str, call: Call, after: str = "", name_prefix: str = ""
) -> Iterator[tuple[str, int | None, str | None]]:
    """List what is below a path, as `listing_s3.find_on_s3` does."""
    bucket, prefix = _split(path)

    def fetch(request: dict[str, Any]) -> dict[str, Any]:
        return call(lambda: _gcs_page(client, bucket, request))

    # "Lexicographical order, by UTF-8" (Cloud Storage, "List objects", which also documents startOffset).
    for found in list_keys(fetch, f"{prefix}{name_prefix}", f"{prefix}{after}" if after else "", is_flat=True):
        if found.key.startswith(prefix):
            yield found.key[len(prefix) :], found.bytes, found.etag


def find_on_azure(
    client: Any, path: str, call: Call, after: str = "", name_prefix: str = ""
) -> Iterator[tuple[str, int | None, str | None]]:
    """List what is below a path, as `listing_s3.find_on_s3` does; Azure always lists from the beginning."""
    container, prefix = _split(path)

    def fetch(request: dict[str, Any]) -> dict[str, Any]:
        from fsspec.asyn import sync

        return call(lambda: sync(client.loop, _azure_page, client, container, request))

    for found in list_keys(fetch, f"{prefix}{name_prefix}", f"{prefix}{after}" if after else "", is_flat=False):
        if found.key.startswith(prefix):
            yield found.key[len(prefix) :], found.bytes, found.etag


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.lstrip("/").partition("/")
    return bucket, f"{key.rstrip('/')}{key[len(key.rstrip('/')) :] or '/'}" if key else ""


def _gcs_page(client: Any, bucket: str, request: dict[str, Any]) -> dict[str, Any]:
    names = {
        "Prefix": "prefix",
        "Delimiter": "delimiter",
        "StartAfter": "startOffset",
        "ContinuationToken": "pageToken",
    }
    parameters = {names[name]: value for name, value in request.items() if name in names}
    # The listing includes startOffset itself; the caller drops it.
    page: dict[str, Any] = client.call(
        "GET", "b/{}/o", bucket, json_out=True, maxResults=PAGE_KEYS, fields=_GCS_FIELDS, **parameters
    )
    token = page.get("nextPageToken")
    return {
        "Contents": [
            {"Key": each["name"], "Size": int(each.get("size", 0)), "ETag": each.get("etag")}
            for each in page.get("items", [])
        ],
        "CommonPrefixes": [{"Prefix": prefix} for prefix in page.get("prefixes", [])],
        "IsTruncated": token is not None,
        "NextContinuationToken": token,
    }


async def _azure_page(client: Any, container: str, request: dict[str, Any]) -> dict[str, Any]:
    from azure.storage.blob.aio import BlobPrefix

    answer: dict[str, Any] = {"Contents": [], "CommonPrefixes": []}
    async with client.service_client.get_container_client(container) as connection:
        options = {"name_starts_with": request["Prefix"] or None, "results_per_page": PAGE_KEYS}
        if "Delimiter" in request:
            blobs = connection.walk_blobs(include=["metadata"], delimiter=request["Delimiter"], **options)
        else:
            blobs = connection.list_blobs(include=["metadata"], **options)
        pages = blobs.by_page(continuation_token=request.get("ContinuationToken"))
        async for page in pages:
            async for each in page:
                if isinstance(each, BlobPrefix):
                    answer["CommonPrefixes"].append({"Prefix": each.name})
                # Accounts with real folders list them among the blobs, with this metadata.
                elif (each.metadata or {}).get("hdi_isfolder") != "true":
                    answer["Contents"].append({"Key": each.name, "Size": each.size, "ETag": each.etag})
            break
        token = pages.continuation_token
    return answer | {"IsTruncated": bool(token), "NextContinuationToken": token or None}
