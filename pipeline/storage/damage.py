"""Errors for damaged files of an output: which file, what is wrong, and that `htc doctor` repairs it."""

import logging
import re
import shlex

from pipeline.errors import DamagedFileError

log = logging.getLogger(__name__)
"""Logs damage that does not stop the command; the commands write its lines to stderr."""

UNKNOWN_OUTPUT = "OUTPUT"
_PLACE = re.compile(
    r"(?P<output>.*)/(?:(?:images|instances|deletions)/run=[^/]+/[^/]+|runs/[^/]+/(?:manifest/)?[^/]+)", re.DOTALL
)


def damaged(uri: str, reason: str) -> DamagedFileError:
    """Return the error for a damaged file.

    Args:
        uri: the file's.
        reason: a clause without a full stop, such as "it is not a valid Parquet file".
    """
    return DamagedFileError(f"{uri} is damaged: {reason}; {advice(output_of(uri))}")


def missing(uri: str, reason: str) -> DamagedFileError:
    """Return the error for a missing file."""
    return DamagedFileError(f"{uri} is missing: {reason}; {advice(output_of(uri))}")


def warn(error: DamagedFileError) -> None:
    """Log a damaged file that the command can do without."""
    log.warning("%s", error)


def advice(output_uri: str) -> str:
    """Return the clause that names the command to run."""
    return f"`htc doctor {shlex.quote(output_uri)}` finds all that is damaged and says how to repair it."


def output_of(uri: str) -> str:
    """Return the output folder of a file; UNKNOWN_OUTPUT when its name is not one of an output's files."""
    match = _PLACE.fullmatch(uri)
    return match["output"] if match else UNKNOWN_OUTPUT
