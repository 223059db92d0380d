"""Removes what dead attempts leave: unfinished files and uploads, and leases of runs that were never begun.

The tables do not show them, but they fill the disk, and unfinished uploads cost money. Only the holder of the run's
lease may remove them: for any other process they may be files that are being written.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import StorageError
from pipeline.output.layout import COMMIT_ORDER, run_folder
from pipeline.output.run_record import runs_with_file
from pipeline.runs.lease import clear_dead_lease
from pipeline.storage.local import TEMP_SUFFIX
from pipeline.storage.storage import Storage
from pipeline.storage.uris import is_local, join, local_path, scheme_of

log = logging.getLogger(__name__)
TEMP_NAME = re.compile(rf"\..+\.\d+-[0-9a-f]+{re.escape(TEMP_SUFFIX)}", re.DOTALL)


def remove_leftovers(storage: Storage, output_uri: str, run: str) -> int:
    """Remove a run's unfinished local files or S3 uploads, and return how many there were.

    What cannot be removed stays, which is logged: it does not affect the tables.
    """
    folders = [join(output_uri, table, f"run={run}") for table in COMMIT_ORDER]
    folders.append(run_folder(output_uri, run))
    if is_local(output_uri):
        return sum(_remove_files(local_path(folder)) for folder in folders)
    if scheme_of(output_uri) in ("s3", "s3a"):
        try:
            return sum(_abort_uploads(storage, folder) for folder in folders)
        except StorageError as error:
            # Policies that allow writing often forget s3:ListBucketMultipartUploads.
            log.info("unfinished uploads were not listed: %s", error)
    return 0


def remove_dead_beginnings(storage: Storage, output_uri: str) -> int:
    """Remove the leases of runs whose driver died before it had written run.json, and return how many there were.

    Raises:
        StorageError: storage failed.
    """
    count = 0
    for name in runs_with_file(storage, output_uri, "lease.json"):
        folder = run_folder(output_uri, name)
        if not storage.exists(join(folder, "run.json")) and clear_dead_lease(storage, output_uri, name):
            count += 1
            if is_local(folder):
                # If it is not empty, another process has written into it.
                with suppress(OSError):
                    Path(local_path(folder)).rmdir()
    return count


def _remove_files(folder: str) -> int:
    count = 0
    # A file in a folder's place is reported when a part cannot be written there.
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        # There may be millions of them, and almost none is unfinished.
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                count += _remove_files(entry.path)
            elif entry.name.startswith(".") and TEMP_NAME.fullmatch(entry.name):
                with suppress(OSError):
                    Path(entry.path).unlink()
                    count += 1
    return count


def _abort_uploads(storage: Storage, folder: str) -> int:
    client, path = storage.client(join(folder, ""))
    bucket, prefix, _ = client.split_path(path)
    # The client drops the last slash of a folder, and the prefix `run=a` must not match `run=ab`.
    prefix = f"{prefix.rstrip('/')}/"
    count = 0
    for upload in _uploads(storage, client, folder, {"Bucket": bucket, "Prefix": prefix}):
        names = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
        storage.call(partial(client.call_s3, "abort_multipart_upload", **names), folder, "delete")
        count += 1
    return count


def _uploads(storage: Storage, client: Any, folder: str, request: dict[str, str]) -> Iterator[dict[str, str]]:
    markers: dict[str, str] | None = {}
    while markers is not None:
        list_page = partial(client.call_s3, "list_multipart_uploads", **request, **markers)
        page: dict[str, Any] = storage.call(list_page, folder, "list")
        yield from page.get("Uploads", [])
        markers = None
        if page.get("IsTruncated"):
            markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
