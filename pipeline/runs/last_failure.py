"""OUTPUT/last_failure.json: the last attempt at a run that could not begin, or broke off.

A run that could not begin leaves no folder under runs/, and monitoring reads the output alone.
"""

import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pipeline.output.json_files import read_derived_json, write_json
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join


def last_failure_uri(output_uri: str) -> str:
    """Return the uri of an output's last_failure.json."""
    return join(output_uri, "last_failure.json")


def write_last_failure(storage: Storage, output_uri: str, *, run: str, exit_code: int, reason: str) -> bool:
    """Note that a run could not begin, or broke off; only where the output holds a run already.

    A first attempt with a misspelt output must leave no folder behind.

    Args:
        run: its name, "" where it has none yet.

    Returns:
        Whether it was noted.

    Raises:
        StorageError: storage failed.
    """
    if next(storage.list(join(output_uri, "runs"), "*/run.json", missing_ok=True), None) is None:
        return False
    content = {
        "ended": datetime.now(UTC).isoformat(),
        "run": run,
        "exit_code": exit_code,
        "reason": reason,
        "host": socket.gethostname(),
    }
    write_json(storage, last_failure_uri(output_uri), content, is_redacted=True)
    return True


def read_last_failure(storage: Storage, output_uri: str) -> Mapping[str, Any] | None:
    """Read an output's last_failure.json; None when there is none, or when it is damaged, which is logged.

    Returns:
        ended (UTC, ISO 8601), run, exit_code, reason, host.

    Raises:
        StorageError: storage failed.
    """
    content = read_derived_json(storage, last_failure_uri(output_uri))
    if content is None or not isinstance(content.get("exit_code"), int):
        return None
    try:
        datetime.fromisoformat(content["ended"])
    except (KeyError, TypeError, ValueError):
        return None
    return content
