"""Checks a condition in SQL that a user gave, before it is put between other words of SQL."""

from collections.abc import Callable, Sequence
from typing import Any

import duckdb

from pipeline.errors import SpecError
from pipeline.output.views import translated_sql_errors


def check_condition(condition: str, view: str, describe: Callable[[str], Sequence[Sequence[Any]]]) -> None:
    """Check that a text is one condition on the columns of a view, in itself and between parentheses.

    By itself first: `a) OR (b` has no meaning, and between parentheses a wrong one.

    Args:
        describe: runs a DESCRIBE in the database of the view and returns its rows.

    Raises:
        SpecError: it is none. Also whatever `describe` raises.
    """
    if not condition.strip():
        raise SpecError("The condition is empty.")
    try:
        # The line break ends a comment.
        with translated_sql_errors():
            statements = duckdb.extract_statements(f"SELECT true FROM {view} WHERE {condition}\n")  # noqa: S608
            if len(statements) == 1:
                statements = duckdb.extract_statements(f"SELECT ({condition}\n) FROM {view}")  # noqa: S608
    except SpecError as error:
        reason = str(error).removeprefix("Parser Error: ")
        raise SpecError(f"The condition {condition!r} cannot be read: {reason}") from None
    if len(statements) != 1:
        raise SpecError(f"The condition {condition!r} is several statements; give one condition.")
    described = describe(f"DESCRIBE SELECT ({condition}\n) FROM {view}")  # noqa: S608  # nosec B608
    if [row[1] for row in described] != ["BOOLEAN"]:
        raise SpecError(
            f"{condition!r} is no condition (its type is {described[0][1]}); give one such as "
            "\"category = 'person' AND area > 1000\"."
        )
