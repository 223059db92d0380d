"""The prompt of `htc query`: what it answers, what ends an entry, and what Ctrl-C ends."""

import os
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from jobs.results import prompt as prompt_module
from jobs.results.prompt import QueryPrompt, history_file, is_whole, run_prompt
from pipeline.errors import InputError
from tests.support.builders.outputs import Output


@pytest.fixture
def prompt(output: Output) -> Iterator[QueryPrompt]:
    opened = QueryPrompt(output.uri, None, is_external_allowed=False)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        (".tables", True),
        ("quit", True),
        ("SELECT 1", False),
        ("SELECT 1;", True),
        ("SELECT 1;\n", True),
        ("SELECT ';", False),
        ("SELECT 1 -- the end;", False),
        ("SELECT 1 /* ;", False),
        ("SELECT 1; SELECT 2", False),
        ("SELECT 1; SELECT 2;", True),
        ("SELEC 1;", True),
    ],
)
def test_an_entry_ends_with_the_semicolon_of_a_statement(text: str, expected: bool) -> None:
    assert is_whole(text) is expected


def test_sql_and_commands_are_answered(prompt: QueryPrompt, capsys: pytest.CaptureFixture[str]) -> None:
    assert prompt.answer(".format json")
    assert prompt.answer("SELECT count(*) AS n, sum(mask_area(mask)) = sum(area) AS same FROM instances;")
    assert '{"n": 10, "same": true}' in capsys.readouterr().out
    assert prompt.answer(".format table")
    for command, expected in {
        ".tables": "current_instances",
        ".schema images": "image_id",
        ".schema": "mask",
        ".functions": "mask_intersection_area(a, b)",
        ".help": ".refresh",
        ".refresh": "",
    }.items():
        assert prompt.answer(command)
        assert expected in capsys.readouterr().out
    assert [prompt.answer(text) for text in (".quit", "exit;", "quit")] == [False] * 3


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("SELEC 1;", "Parser Error: syntax error at or near"),
        ("SELECT 1/0 FROM nothing;", "Table with name nothing does not exist"),
        (".table", "There is no command .table; .help lists them"),
        (".schema nothing", "There is no view nothing; there are images, instances"),
        (".format parquet", "There is no format parquet; there are table, csv"),
        ("SELECT mask_area({'size': [1, 1], 'counts': '9'});", "mask_area: a mask of 1 x 1 pixels is damaged"),
        ("COPY images TO 'x.csv';", "--allow-external permits it"),
    ],
)
def test_a_mistake_is_one_sentence_and_not_the_end(
    prompt: QueryPrompt, entry: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prompt.answer(entry)
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert prompt.answer("SELECT 7 AS seven;")
    assert "seven" in capsys.readouterr().out


def test_ctrl_c_ends_the_query_and_not_the_prompt(prompt: QueryPrompt, capsys: pytest.CaptureFixture[str]) -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    assert prompt.answer("SELECT count(*) FROM range(100000000) a, range(100000) b WHERE a.range * b.range = 7;")
    timer.join()
    assert capsys.readouterr().err == "Interrupted.\n"
    assert prompt.answer("SELECT count(*) FROM images;")
    assert "count_star()" in capsys.readouterr().out


def test_parts_that_move_are_found_again(
    prompt: QueryPrompt, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[int] = []
    answer_sql = prompt_module.answer_sql

    def fail_once(*arguments: object) -> None:
        answered.append(1)
        if len(answered) == 1:
            raise prompt_module.StorageError("a part is gone.")
        answer_sql(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(prompt_module, "answer_sql", fail_once)
    monkeypatch.setattr(prompt._results, "has_moved", lambda: True)
    assert prompt.answer("SELECT count(*) AS n FROM images;")
    assert "n" in capsys.readouterr().out
    assert len(answered) == 2


def test_typed_lines_reach_sql_and_are_kept_for_the_next_time(
    output: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with create_pipe_input() as typed, create_app_session(input=typed, output=DummyOutput()):
        typed.send_text("SELECT count(*) AS found\rFROM images;\r.quit\r")
        run_prompt(output.uri)
    assert "found" in capsys.readouterr().out
    kept = history_file()
    assert "FROM images;" in kept.read_text()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_history_that_cannot_be_written_is_no_obstacle(
    output: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with create_pipe_input() as typed, create_app_session(input=typed, output=DummyOutput()):
        typed.send_text("\x04")
        run_prompt(output.uri)
    assert "Entries are not kept" in capsys.readouterr().err


def test_completion_offers_views_columns_functions_and_commands(prompt: QueryPrompt) -> None:
    assert {"images", "score", "mask_polygons", ".schema", ".quit", "SELECT"} <= set(prompt.words)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        run_prompt(str(tmp_path))
