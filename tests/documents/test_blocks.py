"""Every command of the documents is run, or marked as not run with the reason; then it is at least a command."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
import yaml

from jobs.cli import program
from pipeline.job_spec import JobSpec
from tests.support.documents import (
    HARMLESS,
    RUNNABLE,
    SHELL,
    SHOWN,
    Block,
    blocks_of,
    commands_in,
    fault_of,
    mentions_of,
    pages,
    simple_commands,
    words_of,
)
from tests.support.paths import ROOT

# Decisions are records; few have a block.
PAGES = [page for page in pages() if page.parent.name != "adr" or blocks_of(page)]
RUN_HERE = [page for page in PAGES if any(block.is_run_here for block in blocks_of(page))]
# They start Ray, serve, end other processes, or set the log of this one: not here.
IN_A_PROCESS = {"run", "train", "top", "scheduler", "browse", "--log-format", "--log-level"}
# Records of what was so when they were written.
RECORDS = {*(ROOT / "docs" / "adr").glob("0*.md"), ROOT / "CHANGELOG.md"}


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_block_has_a_language(page: Path) -> None:
    assert [str(block) for block in blocks_of(page) if block.language not in {*RUNNABLE, *SHOWN}] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    blocks = [block for block in blocks_of(page) if block.language in RUNNABLE]
    assert [str(block) for block in blocks if block.reason_not_run is not None and len(block.reason_not_run) < 12] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_a_reason_names_tests_that_exist(page: Path) -> None:
    named = {test for block in blocks_of(page) for test in re.findall(r"tests/[\w/.]*\w", block.reason_not_run or "")}
    assert [test for test in named if not (ROOT / test).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_a_test_that_runs_blocks_names_their_page(page: Path) -> None:
    tests = {block.test for block in blocks_of(page) if block.language in RUNNABLE and block.test is not None}
    assert [test for test in tests if page.name not in (ROOT / test).read_text()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_are_commands(page: Path) -> None:
    """Also those that are not run: the command exists, takes these flags, and their values are of their kind."""
    faults = []
    for block in blocks_of(page):
        for command in commands_in(block.text, block.language) if block.language in SHELL else []:
            for words in simple_commands(command):
                if words[0].rpartition("/")[2] == "htc" and (fault := fault_of(["htc", *words[1:]])):
                    faults.append(f"{block}: {' '.join(words)}: {fault}")
    assert faults == []


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RECORDS], ids=page_id)
def test_commands_in_sentences_are_commands(page: Path) -> None:
    spans = [span.replace("'", "") for span in mentions_of(page)]
    said = [words for span in spans for words in simple_commands(span) if words[0] == "htc"]
    faults = [(" ".join(words), fault_of(words, is_whole=False)) for words in said]
    assert [f"{words}: {fault}" for words, fault in faults if fault] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_yaml_and_json_are_such(page: Path) -> None:
    """And a job spec is one: its keys exist, and their values are possible."""
    for block in blocks_of(page):
        if block.language == "yaml":
            (document,) = yaml.safe_load_all(block.text)
            if {"input", "output"} <= document.keys():
                JobSpec.model_validate(document)
        elif block.language == "json":
            json.loads(block.text)


@pytest.mark.slow
@pytest.mark.xdist_group("documents")
@pytest.mark.parametrize("page", RUN_HERE, ids=page_id)
def test_the_pages_blocks_run(
    page: Path,
    fresh_folder: Callable[[], Path],
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(fresh_folder())
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks_of(page):
        for command in commands_in(block.setup):
            assert run_command(command, block, capsys) == 0, f"{block}: setup: {command}"
        if block.is_run_here:
            run_block(block, names, capsys)


def run_block(block: Block, names: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    if block.language == "python":
        exec(compile(block.text, str(block), "exec"), names)
    elif block.language == "sql":
        from pipeline.output import connect

        with connect("masks/") as connection:
            assert isinstance(connection, duckdb.DuckDBPyConnection)
            connection.execute(block.text).fetchall()
    else:
        commands = commands_in(block.text, block.language)
        codes = [run_command(command, block, capsys) for command in commands]
        wanted = [0] * (len(codes) - 1) + [block.exit_code]
        assert codes == wanted, f"{block}: {list(zip(commands, codes, strict=True))}"


def run_command(command: str, block: Block, capsys: pytest.CaptureFixture[str]) -> int:
    """Run a line, one of htc alone in this process; returns its exit code. Shows what it printed where that fails."""
    programs = simple_commands(command)
    others = {words[0] for words in programs} - {"htc"} - HARMLESS
    assert not others, f"{block}: {', '.join(others)} is not run here; mark the block as not run, with the reason"
    words = words_of(command)
    outside = [word for word in words if re.match(r"/(?!dev/null)|~|\.\./", word) or "/../" in word]
    assert not outside or words[0] == "htc", f"{block}: {', '.join(outside)} leads out of the tests' folder"
    if len(programs) == 1 and words == programs[0] and words[0] == "htc" and not {*words} & IN_A_PROCESS:
        with pytest.raises(SystemExit) as left:
            program.main(words[1:])
        code, output = int(left.value.code or 0), "".join(capsys.readouterr())
    else:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            env=os.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        code, output = done.returncode, done.stdout + done.stderr
    if code:
        print(f"{block}: {command}: exit code {code}\n{output}")  # pytest shows it with the failure
    return code


# The reader of blocks itself


def read(text: str) -> list[Block]:
    return blocks_of(ROOT / "docs" / "page.md", text)


def test_a_mark_above_a_block_is_its_own_and_one_below_the_title_is_everyones() -> None:
    page = "# T\n\n<!-- page: not run: a cluster -->\n\n```sh\nhtc list\n```\n\n"
    first, second = read(page + "<!-- run by a.py -->\n```sh\n```\n")
    assert (first.reason_not_run, first.test, first.is_run_here) == ("a cluster", None, False)
    assert (second.reason_not_run, second.test) == (None, "a.py")


def test_a_block_without_a_mark_is_run() -> None:
    first, second = read("```sh\nhtc list\n```\ntext\n<!-- exit code: 1 -->\n\n```sh\n```\n")
    assert first.is_run_here
    assert (second.is_run_here, second.exit_code) == (True, 1)


def test_commands_end_where_a_shell_ends_them() -> None:
    text = "$ htc run a \\\n    b  # note\nprinted\n$ cat > job.yaml <<'EOF'\nname: x\nEOF\n$ echo $?\n3\n"
    first, second, third = commands_in(text, "console")
    assert words_of(first) == ["htc", "run", "a", "b"]
    assert second.endswith("EOF")
    assert third == "echo $?"
    assert commands_in("htc query a 'SELECT\n 1'\n# note\n\nhtc list") == ["htc query a 'SELECT\n 1'", "htc list"]


def test_programs_of_a_line() -> None:
    line = "A=1 htc run x 2>&1 > y | tail -2 && cat < z # c"
    assert simple_commands(line) == [["htc", "run", "x"], ["tail", "-2"], ["cat"]]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("htc runn a b", "no command"),
        ("htc run a b --worker 4", "--worker"),
        ("htc show masks/", "--to"),
        ("htc evaluate a b c", "too many"),
        ("htc plan a b --limit many", "--limit"),
        ("htc run a b --column x", "new name"),
    ],
)
def test_a_line_that_is_no_command_is_found(line: str, word: str) -> None:
    assert word in fault_of(words_of(line))
    assert fault_of(words_of("htc status JOB --watch")) == ""
    assert fault_of(words_of("htc run s3://b/ out/ --workers 2:8")) == ""


def test_a_program_that_could_do_harm_is_not_started(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = read("```sh\nkubectl delete -f k8s\n```\n")
    with pytest.raises(AssertionError, match=re.escape("kubectl is not run here")):
        run_command("kubectl delete -f k8s", block, capsys)
    with pytest.raises(AssertionError, match="leads out of the tests' folder"):
        run_command("rm -r ~/masks", block, capsys)
    with pytest.raises(AssertionError, match="leads out of the tests' folder"):
        run_command("echo a > ../b", block, capsys)
