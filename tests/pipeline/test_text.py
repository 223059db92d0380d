"""Exceptions as one line of text."""

import pytest

from pipeline.errors import RunError
from pipeline.text import json_problem, message_of, one_line


@pytest.mark.parametrize("end", ["", ".", "!", "..", "..."])
def test_a_foreign_message_loses_the_end_of_its_sentence(end: str) -> None:
    error = ValueError(f"Please try\nagain later{end}")
    assert message_of(error) == "Please try again later"
    assert one_line(error) == "ValueError: Please try again later"


def test_an_own_sentence_keeps_its_full_stop() -> None:
    assert one_line(RunError("The disk is full.")) == "The disk is full."


def test_an_error_without_a_message_is_its_type() -> None:
    assert one_line(ValueError()) == message_of(ValueError()) == "ValueError"


def test_bytes_that_are_not_text_are_named_plainly() -> None:
    with pytest.raises(UnicodeDecodeError) as caught:
        b"\xff\xff".decode("utf-8")
    assert json_problem(caught.value) == "its bytes are not UTF-8 text"
