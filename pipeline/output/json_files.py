"""JSON files of an output: read whole or not at all, written atomically."""

import json
from collections.abc import Mapping
from typing import Any

from pipeline.errors import DamagedFileError, NotFoundError
from pipeline.redaction import redact
from pipeline.storage.damage import damaged, warn
from pipeline.storage.storage import Storage


def read_json(storage: Storage, uri: str) -> dict[str, Any] | None:
    """Read a JSON object; None when the file is not there.

    Raises:
        DamagedFileError: it holds something else.
    """
    try:
        content = json.loads(storage.read(uri))
    except NotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise damaged(uri, f"it is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise damaged(uri, "it does not hold a JSON object")
    return content


def read_derived_json(storage: Storage, uri: str) -> dict[str, Any] | None:
    """Read a JSON object that is derived from others; None when it is not there, or damaged, which is reported."""
    try:
        return read_json(storage, uri)
    except DamagedFileError as error:
        warn(error)
        return None


def write_json(storage: Storage, uri: str, content: Mapping[str, object], *, is_redacted: bool = False) -> None:
    """Write a JSON object, indented for people.

    Args:
        is_redacted: take secrets out of it; for texts that quote others, not for what is read back and compared.
    """
    # ASCII only: names that are no valid Unicode would not encode otherwise.
    text = json.dumps(content, indent=2) + "\n"
    storage.write(uri, (redact(text) if is_redacted else text).encode("ascii"))
