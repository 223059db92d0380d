"""Durations as users write them."""

import re

from pipeline.errors import SpecError

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_duration(text: str | None, flag: str) -> float | None:
    """Read "90s", "30m", "6h", "2d", "1h30m" or a number of seconds; None stays None.

    Raises:
        SpecError: the text is none of these.
    """
    if text is None:
        return None
    compact = text.replace(" ", "").lower()
    if re.fullmatch(r"(?:\d+(?:\.\d+)?[smhd])+|\d+(?:\.\d+)?", compact):
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", compact)
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    raise SpecError(f"{flag} must be a time such as 90s, 30m, 6h or 2d, not {text!r}.")
