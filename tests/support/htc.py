"""The `htc` command in this process."""

from collections.abc import Callable

import pytest

from jobs.cli import program

Htc = Callable[..., tuple[int, str, str]]
"""Runs one command; returns its exit code, stdout and stderr."""


def run_htc(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run one command; returns its exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as left:
        program.main(arguments)
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err
