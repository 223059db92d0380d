"""Checks that the name of a new run stays text for the readers of its folders.

The folder `run=007` is a Hive partition. pandas, polars, pyarrow, DuckDB and Spark guess the type of its column from
the names: 007 is read as the number 7, and no longer equals the `run` of other tables.
"""

import re

from pipeline.errors import SpecError

# As C, Java (the d and f at the end, which Spark reads) and DuckDB (0x) write numbers.
_NUMBER = re.compile(r"(\d+\.?\d*(e[+-]?\d+)?[dfl]?)|0[xob][0-9a-f]+", re.IGNORECASE)
# Year, month and day in any order, and perhaps a time after them.
_DATE = re.compile(r"(\d{1,6}-\d{1,2}-\d{1,4}|\d{8}(?=t))([t_.-][\d.:_-]*)?z?", re.IGNORECASE)
_WORDS = {
    **dict.fromkeys(("true", "false", "t", "f", "yes", "no", "y", "n", "on", "off"), "true or false"),
    **dict.fromkeys(("null", "none", "nil", "na", "n.a", "nat", "undefined"), "a missing value"),
    **dict.fromkeys(("nan", "inf", "infinity"), "a number"),
    **dict.fromkeys(("epoch", "now", "today", "tomorrow", "yesterday"), "a date"),
}


def taken_for(name: str) -> str:
    """Return what readers may take a run's name for: "a number", "a date", …; empty when they read it as text."""
    if _NUMBER.fullmatch(name):
        return "a number"
    if _DATE.fullmatch(name):
        return "a date"
    return _WORDS.get(name.lower(), "")


def check_name_stays_text(name: str) -> None:
    """Refuse a name for a new run that readers would not read as text.

    Raises:
        SpecError: they would read it as a number, a date, true, false or a missing value; the message suggests a name.
    """
    kind = taken_for(name)
    if kind:
        raise SpecError(
            f"No new run can be called {name}: pandas, polars, pyarrow, DuckDB or Spark would read the folder "
            f"run={name} as {kind}. Put a word before it, such as --run run-{name}."
        )
