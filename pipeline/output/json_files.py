"""JSON files of an output: checked when they are read, written atomically."""

import json
from collections.abc import Mapping
from typing import Any

from pipeline.errors import DamagedFileError, NotFoundError
from pipeline.redaction import redact
from pipeline.storage.damage import damaged, warn
from pipeline.storage.storage import Storage
from pipeline.text import json_problem


def read_json(storage: Storage, uri: str) -> dict[str, Any] | None:
    """Read a JSON object; None when the file does not exist.

    Raises:
        DamagedFileError: the file does not hold a JSON object.
        StorageError: storage failed.
    """
    try:
        content = json.loads(storage.read(uri))
    except NotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise damaged(uri, f"it is not JSON ({json_problem(error)})") from None
    if not isinstance(content, dict):
        raise damaged(uri, "it does not hold a JSON object")
    return content


def read_derived_json(storage: Storage, uri: str) -> dict[str, Any] | None:
    """Read a JSON object that can be derived from other files; None when it does not exist, or is damaged (logged)."""
    try:
        return read_json(storage, uri)
    except DamagedFileError as error:
        warn(error)
        return None


def write_json(
    storage: Storage, uri: str, content: Mapping[str, object], *, is_redacted: bool = False, is_compact: bool = False
) -> None:
    """Write a JSON object, indented.

    Args:
        is_redacted: remove secrets; for texts with quoted errors, not for values that are read back and compared.
        is_compact: on one line; for a large file that is written again and again.
    """
    # ASCII only, because names that are not valid Unicode cannot be encoded otherwise.
    text = json.dumps(content, **({"separators": (",", ":")} if is_compact else {"indent": 2})) + "\n"
    storage.write(uri, (redact(text) if is_redacted else text).encode("ascii"))
