"""Fixtures: the `htc` command, and an output folder as a run leaves it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.builders.outputs import Output, make_output_folder
from tests.support.htc import Htc, run_htc


@pytest.fixture
def make_output(tmp_path: Path) -> Callable[..., Output]:
    """Build an output with other scores or another name."""
    return partial(make_output_folder, tmp_path)


@pytest.fixture
def output(make_output: Callable[..., Output]) -> Output:
    """The usual output: scores 0.9 and 0.25 in every image."""
    return make_output()


@pytest.fixture
def htc(capsys: pytest.CaptureFixture[str]) -> Htc:
    """Run one command in this process."""
    return partial(run_htc, capsys)
