"""Adds to a run's summary.json whether its notifications were delivered."""

import json
from collections.abc import Mapping

from pipeline.redaction import redact
from pipeline.runs.summary import summary_uri
from pipeline.storage.cas_file import CasFile
from pipeline.storage.storage import Storage


def record_notifications(
    storage: Storage, output_uri: str, run: str, *, ended: str, notifications: Mapping[str, str]
) -> bool:
    """Set `notifications` of a run's summary.json, unless another session has written one since.

    The lease is released by then, so the file is compared and swapped.

    Args:
        ended: of the summary that is meant. notifications: see `RunSummary`.

    Returns:
        Whether it was set.

    Raises:
        StorageError: storage failed.
    """
    file = CasFile(storage, summary_uri(output_uri, run))
    seen = file.read()
    if seen is None:
        return False
    try:
        content = json.loads(seen.payload)
    except ValueError:
        return False
    if not isinstance(content, dict) or content.get("ended") != ended:
        return False
    content["notifications"] = dict(notifications)
    payload = redact(json.dumps(content, indent=2) + "\n").encode("ascii")
    return file.replace(payload, seen.version) is not None
