"""Names and messages as a terminal may safely see them."""

from pipeline.errors import HtcError
from pipeline.redaction import redact


def printable(text: str, *, keep: str = "") -> str:
    """Spell out what is no printable character (`\\x1b`), so that an object's name can command no terminal.

    Args:
        keep: characters to leave as they are, such as line breaks of our own.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text)


def count_of(number: int, noun: str) -> str:
    """Return "1 image", "1,204 images"; nouns whose plural only takes an s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_duration(seconds: float | None) -> str:
    """Seconds as a person says them: `42 s`, `3 min 10 s`, `2 h 05 min`; `unknown` for None."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def one_line(error: BaseException, *, max_chars: int | None = None) -> str:
    """Return an exception as one line without secrets: its type, unless it is an `HtcError`, and its message.

    Args:
        max_chars: cut a longer message to this length.
    """
    text = _joined(str(error), max_chars)
    if isinstance(error, HtcError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def message_of(error: BaseException | str, *, max_chars: int | None = None) -> str:
    """Return an exception's message, or a text, as one line without secrets and full stop, to quote in a sentence.

    Args:
        max_chars: cut a longer message to this length.

    Returns:
        The name of the exception's type where it has no message.
    """
    return _joined(str(error), max_chars).rstrip(".") or ("" if isinstance(error, str) else type(error).__name__)


def _joined(text: str, max_chars: int | None) -> str:
    return redact(" ".join(text.split()))[:max_chars]
