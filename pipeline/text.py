"""Names and messages as a terminal may safely see them."""

from pipeline.errors import (
    HtcError,
)
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


def one_line(error: BaseException) -> str:
    """An exception as one line of text without secrets, its type named unless it is one of ours."""
    text = redact(" ".join(str(error).split()))
    if isinstance(error, HtcError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
