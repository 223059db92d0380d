"""Text for people: escaped names, counts, durations, and exceptions as one line."""

import re

from pipeline.errors import HtcError
from pipeline.redaction import redact

_SENTENCE_ENDS = ".!"
# ECMA-48's control sequences (CSI) and the two-character escapes beside them: colours, cursor movements.
_CONTROL_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")


def printable(text: str, *, keep: str = "") -> str:
    """Escape characters that are not printable (`\\x1b`), so that an object's name cannot control a terminal.

    Args:
        keep: characters to leave as they are, such as line breaks.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text)


def without_colors(text: str) -> str:
    """Remove what colours text on a terminal, as Ray and others do in messages that end in a table."""
    return _CONTROL_SEQUENCE.sub("", text)


def count_of(number: int, noun: str, plural: str | None = None) -> str:
    """Return "1 image" or "1,204 images"; `plural` is the noun's plural where it is not the noun and an s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {plural or f'{noun}s'}"


def format_duration(seconds: float | None) -> str:
    """Format seconds as `42 s`, `3 min 10 s` or `2 h 05 min`; `unknown` for None."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def one_line(error: BaseException, *, max_chars: int | None = None) -> str:
    """Return an exception as one line without secrets: its type and its message.

    An `HtcError` has no type and keeps its full stop; of other messages it is removed.

    Args:
        max_chars: cut a longer message to this length.
    """
    text = _joined(str(error), max_chars)
    if isinstance(error, HtcError):
        return text
    text = text.rstrip(_SENTENCE_ENDS)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def message_of(error: BaseException | str, *, max_chars: int | None = None) -> str:
    """Return an exception's message, or a text, as one line without secrets or its final full stop or exclamation mark.

    Args:
        max_chars: cut a longer message to this length.

    Returns:
        The message; the name of the exception's type where the message is empty.
    """
    return _joined(str(error), max_chars).rstrip(_SENTENCE_ENDS) or (
        "" if isinstance(error, str) else type(error).__name__
    )


def json_problem(error: Exception) -> str:
    """Return in a few words why bytes are not JSON."""
    if isinstance(error, UnicodeDecodeError):
        return f"its bytes are not {error.encoding.upper()} text"
    return str(error)


def _joined(text: str, max_chars: int | None) -> str:
    return redact(" ".join(without_colors(text).split()))[:max_chars]
