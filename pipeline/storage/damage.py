"""The sentence about a damaged file of an output: which file, what is wrong, and that `htc doctor` tells more."""

import logging
import re
import shlex

from pipeline.errors import DamagedFileError

log = logging.getLogger(__name__)
"""Takes what is damaged and does not stop the work; the commands write its lines to stderr."""

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
    """Return the error for a file that must be there and is not."""
    return DamagedFileError(f"{uri} is missing: {reason}; {advice(output_of(uri))}")


def warn(error: DamagedFileError) -> None:
    """Report a damaged file without which the work goes on."""
    log.warning("%s", error)


def advice(output_uri: str) -> str:
    """Return the clause that names the way out."""
    return f"`htc doctor {shlex.quote(output_uri)}` finds all that is damaged and says how to repair it."


def output_of(uri: str) -> str:
    """Return the output folder that a file of an output lies in; "OUTPUT" when the name does not tell."""
    match = _PLACE.fullmatch(uri)
    return match["output"] if match else UNKNOWN_OUTPUT
