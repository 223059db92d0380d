"""Reads COCO annotation files from any storage: plain or gzipped JSON, with or without a byte order mark."""

import gzip
import json
import zlib
from typing import Any

from pipeline.errors import NotFoundError, SpecError
from pipeline.storage.storage import Storage
from pipeline.storage.uris import absolute_uri
from pipeline.text import json_problem

# RFC 1952, 2.3.1.
_GZIP_MAGIC = b"\x1f\x8b"


def read_coco(uri: str, storage: Storage) -> Any:
    """Read a JSON document in UTF-8, UTF-16 or UTF-32; `read_annotations` checks that it is COCO's.

    Raises:
        SpecError: it does not exist, or is not JSON.
        StorageError: it cannot be read.
    """
    uri = absolute_uri(uri)
    try:
        payload = storage.read(uri)
    except NotFoundError as error:
        raise SpecError(str(error)) from error
    if payload.startswith(_GZIP_MAGIC):
        try:
            payload = gzip.decompress(payload)
        except (OSError, EOFError, zlib.error) as error:
            raise SpecError(f"{uri} is a damaged gzip file: {error}.") from error
    try:
        return json.loads(payload)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SpecError(f"{uri} is not JSON: {json_problem(error)}.") from error
    except RecursionError:
        raise SpecError(f"{uri} is not a COCO annotation file: its JSON is nested too deeply.") from None
