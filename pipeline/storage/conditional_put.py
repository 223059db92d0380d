"""Conditional writes of objects: only where there is none, or only over a known version.

S3: If-None-Match and If-Match; Google Cloud Storage: ifGenerationMatch; Azure: the same headers as S3's.
"""

import json
from typing import Any
from urllib.parse import quote

from pipeline.storage.objects import strip_etag
from pipeline.storage.uris import AZURE_SCHEMES, GCS_SCHEMES, S3_SCHEMES

CONDITIONAL_SCHEMES = S3_SCHEMES | GCS_SCHEMES | AZURE_SCHEMES
# Precondition failed; two conditional writes at once. Both mean that another write came first.
_CONFLICTS = {409, 412}
# Cannot occur in JSON.
_BOUNDARY = "==htc-batch=="


def find_version(client: Any, path: str, scheme: str) -> str:
    """Return what `put_if` compares; raises what the client does, FileNotFoundError among it."""
    found = client.info(path)
    version = found["generation"] if scheme in GCS_SCHEMES else strip_etag(found.get("ETag") or found.get("etag"))
    return str(version)


def put_if(client: Any, path: str, scheme: str, payload: bytes, version: str | None) -> str | None:
    """Write an object if it has a version, or if there is none; return the new version, None when the condition fails.

    Args:
        path: as the file system spells it. version: None if there must be no object.

    Raises:
        what the client does, for every other reason.
    """
    try:
        if scheme in GCS_SCHEMES:
            return _put_gcs(client, path, payload, version)
        if scheme in AZURE_SCHEMES:
            return _put_azure(client, path, payload, version)
        return _put_s3(client, path, payload, version)
    except FileExistsError:
        return None
    except FileNotFoundError:
        # An object to replace has been removed.
        if version is not None:
            return None
        raise


def _put_s3(client: Any, path: str, payload: bytes, version: str | None) -> str:
    bucket, key, _ = client.split_path(path)
    condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": f'"{version}"'}
    try:
        answer = client.call_s3("put_object", Bucket=bucket, Key=key, Body=payload, **condition)
    except OSError as error:
        # s3fs raises an OSError for a refused condition, with botocore's error as its cause.
        response = getattr(error.__cause__, "response", None)
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
        raise (FileExistsError(path) if status in _CONFLICTS else error) from error.__cause__
    return str(answer["ETag"]).strip('"')


def _put_gcs(client: Any, path: str, payload: bytes, version: str | None) -> str:
    from gcsfs.retry import HttpError

    bucket, key, _ = client.split_path(path)
    try:
        answer = client.call(
            "POST",
            f"{client._location}/upload/storage/v1/b/{quote(bucket)}/o",
            json_out=True,
            uploadType="multipart",
            ifGenerationMatch=version or "0",
            data=_multipart(key, payload),
            headers={"Content-Type": f'multipart/related; boundary="{_BOUNDARY}"'},
        )
    except HttpError as error:
        raise (FileExistsError(path) if int(error.code or 0) in _CONFLICTS else error) from error.__cause__
    return str(answer["generation"])


def _multipart(key: str, payload: bytes) -> bytes:
    """Encode an object's name and content as one body (Cloud Storage, "Multipart uploads"); RFC 2046."""
    name = json.dumps({"name": key})
    head = (
        f"--{_BOUNDARY}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{name}\r\n"
        f"--{_BOUNDARY}\r\nContent-Type: application/octet-stream\r\n\r\n"
    )
    return head.encode() + payload + f"\r\n--{_BOUNDARY}--\r\n".encode()


def _put_azure(client: Any, path: str, payload: bytes, version: str | None) -> str:
    from azure.core import MatchConditions
    from azure.core.exceptions import HttpResponseError
    from fsspec.asyn import sync

    container, name, _ = client.split_path(path)
    condition = {} if version is None else {"etag": f'"{version}"', "match_condition": MatchConditions.IfNotModified}

    async def put() -> Any:
        async with client.service_client.get_blob_client(container, name) as blob:
            return await blob.upload_blob(payload, overwrite=version is not None, **condition)

    try:
        return str(strip_etag(sync(client.loop, put)["etag"]))
    except HttpResponseError as error:
        raise (FileExistsError(path) if error.status_code in _CONFLICTS else error) from error.__cause__
