"""An object's name must not control the terminal."""

import io
import subprocess
import sys

import pytest

from jobs.terminal.console import say, write_line, write_table
from pipeline.driver.progress import LineProgress
from pipeline.text import printable

TITLE = "a\x1b]0;owned\x07b\x9bc\u202ed.jpg"
SPELT = r"a\x1b]0;owned\x07b\x9bc\u202ed.jpg"


def test_only_unprintable_characters_are_escaped() -> None:
    assert printable("Straße 東京 🙂.jpg") == "Straße 東京 🙂.jpg"
    assert printable(TITLE) == SPELT
    assert printable("one\ntwo\t") == r"one\ntwo\t"
    assert printable("one\ntwo\x1b", keep="\n") == "one\ntwo\\x1b"


def test_the_console_spells_names_out(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"Not found: {TITLE}.")
    write_line(TITLE)
    write_table(["image"], [[TITLE]])
    written = capsys.readouterr()
    assert (written.out.count(SPELT), written.err.count(SPELT)) == (2, 1)
    assert "\x1b" not in written.out + written.err


def test_notes_of_a_run_keep_to_their_line() -> None:
    stream = io.StringIO()
    LineProgress(stream).note(f"{TITLE}\nRun complete.")
    assert stream.getvalue() == SPELT + r"\nRun complete." + "\n"


def test_the_last_sentence_of_a_command_spells_names_out() -> None:
    program = f"from jobs import cli\ncli.main(['query', {TITLE!r}, 'SELECT 1'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert SPELT in done.stderr
    assert "\x1b" not in done.stderr
