"""The `htc` command: help, usage, exit codes, messages instead of tracebacks."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import options
from jobs.cli import program as cli
from jobs.cli.app import ORDER
from pipeline.errors import RunError, RunMismatchError, WeightsUnavailableError
from tests.support.builders.outputs import Output
from tests.support.htc import Htc


def command_names(group: Any, words: str = "") -> Iterator[str]:
    """Yield every command's name, `schedule add` as two words."""
    for name, command in group.commands.items():
        yield f"{words}{name}"
        if hasattr(command, "commands"):
            yield from command_names(command, f"{words}{name} ")


COMMANDS = sorted(command_names(cli.load_program()))


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_exists_and_names_the_arguments(htc: Htc, command: str) -> None:
    code, out, err = htc(*command.split(), "--help")
    assert code == 0
    assert out.startswith(f"Usage: htc {command}".rstrip())
    assert err == ""


def test_every_command_has_its_place_in_the_list() -> None:
    assert {name for name in COMMANDS if " " not in name} == set(ORDER)
    assert len(COMMANDS) > len(ORDER)


def test_run_and_plan_take_the_same_flags_in_the_same_order() -> None:
    commands = cli.load_program().commands
    of_run, of_plan = ([flag.opts for flag in commands[name].params] for name in ("run", "plan"))
    fields = dataclasses.fields(options.EstimateFlags)
    of_plan_only = [["--no-model"], *([f"--{field.name.replace('_', '-')}"] for field in fields)]
    assert [flag for flag in of_plan if flag not in of_plan_only] == [flag for flag in of_run if flag != ["--verbose"]]


def test_every_flag_of_run_is_documented(htc: Htc) -> None:
    _, out, _ = htc("run", "--help")
    flags = (
        "--spec --model --weights --workers --batch-size --score-threshold --max-detections --shard-images "
        "--precision --limit --run --fresh --max-error-rate"
    )
    for flag in flags.split():
        assert f"  {flag}" in out


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command: str) -> None:
    # This keeps help under a second; measured times would depend on the machine's other work.
    script = (
        "import sys\n"
        "from jobs import cli\n"
        "try:\n"
        f"    cli.main({[*command.split(), '--help']!r})\n"
        "except SystemExit as left:\n"
        "    assert not left.code, left.code\n"
        "heavy = {'torch', 'torchvision', 'ray', 'pyarrow', 'duckdb', 'numpy', 'PIL', 'fsspec'}\n"
        "sys.exit(sorted(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--lmit", "3"], "--limit"),
        (["rnu"], "No such command 'rnu'"),
        (["run", "a", "b", "c"], "unexpected extra argument"),
        (["query", "a", "SELECT 1", "--format", "xml"], "'--format': 'xml' is not one of"),
        (["show", "a"], "--to"),
        (["run"], "input.uri is missing"),
        (["run", "a"], "output.uri is missing"),
        (["run", "a", "b", "--model", "htc_r50_fnp"], "htc_r50_fpn"),
        (["run", "a", "b", "--workers", "many"], "compute.workers"),
        (["run", "a", "b", "--max-error-rate", "2"], "retry.max_error_rate"),
        (["run", "a", "b", "--limit", "0"], "input.limit"),
        (["run", "--spec", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["query", "nowhere", "SELECT 1"], "holds no run"),
        (["show", "nowhere", "--to", "x"], "holds no run"),
        (["weights", "fetch", "htc_r50_fnp"], "htc_r50_fpn"),
        (["weights", "verify", "nowhere.pth"], "no weights file nowhere.pth; give the path of"),
    ],
)
def test_wrong_usage_is_exit_2_with_a_reason(
    htc: Htc, arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = htc(*arguments)
    assert code == 2
    assert sentence in err
    assert "Traceback" not in out + err


def test_a_misspelt_key_of_the_spec_names_the_right_one(htc: Htc, tmp_path: Path) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text("input: {uri: a}\noutput: {uri: b}\nmodel: {preste: htc_r50_fpn}\n")
    code, _, err = htc("run", "--spec", str(spec))
    assert code == 2
    assert "preste" in err
    assert "preset" in err.replace("preste", "")


def test_flags_win_over_the_spec_and_zero_is_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec_file = tmp_path / "job.yaml"
    spec_file.write_text(
        "input: {uri: a}\noutput: {uri: b}\nmodel: {preset: htc_r101_fpn, score_threshold: 0.4}\n"
        "retry: {max_error_rate: 0.5}\n"
    )
    seen = {}

    def take(spec: object, **arguments: object) -> int:
        seen.update(spec=spec, **arguments)
        return 0

    monkeypatch.setattr("jobs.running.run.run_and_report", take)
    monkeypatch.chdir(tmp_path)
    flags = ["--max-error-rate", "0", "--score-threshold", "0.7", "--workers", "3", "--run", "r1", "--fresh"]
    with pytest.raises(SystemExit) as left:
        cli.main(["run", "elsewhere", "--spec", str(spec_file), *flags])
    assert left.value.code == 0
    spec = seen["spec"]
    assert spec.input.uri == str(tmp_path / "elsewhere")
    assert spec.output.uri == str(tmp_path / "b")
    assert spec.model.preset == "htc_r101_fpn"
    assert spec.model.score_threshold == 0.7
    assert spec.retry.max_error_rate == 0
    assert spec.retry.max_errors == 0
    assert spec.compute.workers == 3
    assert (seen["run"], seen["fresh"]) == ("r1", True)


def test_every_flag_of_a_job_sets_its_key_of_the_spec() -> None:
    flags = options.JobFlags(max_error_rate=0, limit=3, where="TRUE", retry_failed=True, run_name="r1", anonymous=True)
    assert dict(flags.spec_values()) == {
        "retry.max_error_rate": 0,
        "input.limit": 3,
        "select.where": "TRUE",
        "select.mode": "incremental",
        "select.retry": "failed",
        "storage.anonymous": True,
    }
    assert dict(options.JobFlags().spec_values()) == {}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RunMismatchError("The run was started with another model."), 2),
        (WeightsUnavailableError("The weights are not available."), 2),
        (RunError("The disk is full."), 1),
    ],
)
def test_expected_errors_are_one_sentence(
    htc: Htc, error: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr("jobs.running.run.run_and_report", fail)
    assert htc("run", "a", "b") == (code, "", f"{error}\n")


def test_unexpected_errors_leave_their_traceback_in_a_file(
    htc: Htc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise KeyError("lost")

    monkeypatch.setattr("jobs.running.run.run_and_report", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = htc("run", "a", "b")
    (report,) = tmp_path.glob("htc-failure-*.log")
    assert (code, out) == (1, "")
    assert err == f"Unexpected failure: KeyError: 'lost' (the full report is in {report}).\n"
    assert "Traceback" in report.read_text()
    assert 'raise KeyError("lost")' in report.read_text()


@pytest.fixture
def receives_ctrl_c() -> Iterator[None]:
    """Make child processes receive SIGINT also if the tests run in the background, where shells ignore it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def wait_for_import(pid: int, module: str, timeout_s: float = 60.0) -> None:
    """Wait until a process has loaded a compiled module."""
    deadline = time.monotonic() + timeout_s
    while module not in Path(f"/proc/{pid}/maps").read_text():
        assert time.monotonic() < deadline, f"{module} was not loaded in {timeout_s} s"
        time.sleep(0.05)


@pytest.mark.usefixtures("receives_ctrl_c")
def test_ctrl_c_leaves_no_traceback(output: Output) -> None:
    # Without a stop, this would take hours.
    sql = "SELECT count(*) FROM range(9999999) a, range(9999999) b WHERE a.range % 7 = b.range % 5"
    command = [sys.executable, "-m", "jobs", "query", output.uri, sql, "--format", "csv"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            # Not before Python has started: until then, a traceback is printed.
            wait_for_import(process.pid, "duckdb")
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert out == ""
    assert err == "Stopped.\n"


def test_a_reader_that_stops_early_causes_no_message(output: Output) -> None:
    command = f'{sys.executable} -m jobs query "{output.uri}" "SELECT * FROM range(200000)" --format csv | head -n 2'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["range", "0"]
    assert done.stderr == ""


def test_text_that_the_terminal_cannot_show_is_escaped(output: Output) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "query", output.uri, "SELECT uri FROM images ORDER BY uri", "--format", "csv"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert "a#b%20 \\xfc.jpg" in done.stdout


THREAD_THAT_OUTLIVES_THE_INTERPRETER = """
import atexit, io, sys, threading, time
import pyarrow as pa, pyarrow.parquet as pq
from jobs.cli import program as cli

table = io.BytesIO()
pq.write_table(pa.table({"a": [1]}), table)
has_begun = threading.Event()

class Slow(io.BytesIO):
    def read(self, *size):
        if threading.current_thread() is not threading.main_thread():
            has_begun.set()
            time.sleep(0.5)
        return super().read(*size)

class Program:
    def main(self, **options):
        part = pq.ParquetFile(Slow(table.getvalue()), pre_buffer=True)
        threading.Thread(target=part.read, daemon=True).start()
        has_begun.wait(30)
        atexit.register(print, "put away")
        print("done")
        sys.exit(3)

cli.load_program = Program
cli.main()
"""


def test_a_librarys_thread_does_not_abort_a_command_that_is_done() -> None:
    left = subprocess.run(
        [sys.executable, "-c", THREAD_THAT_OUTLIVES_THE_INTERPRETER], capture_output=True, text=True, check=False
    )
    assert (left.returncode, left.stdout, left.stderr) == (3, "done\nput away\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("word", ["x", "x" * 100_000])
def test_a_full_disk_behind_the_output_is_a_sentence(word: str) -> None:
    program = f"""
from jobs.cli import program as cli
cli.load_program = lambda: type("Program", (), {{"main": lambda self, **options: print({word!r})}})()
cli.main()
"""
    with Path("/dev/full").open("w") as full:
        left = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert left.returncode == 1
    assert left.stderr.count("cannot be written") == 1
    assert left.stderr.count("\n") == 1


def test_the_version_names_what_an_error_report_needs() -> None:
    done = subprocess.run([sys.executable, "-m", "jobs", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"htc-batch \d+\.\d+\.\d+ \(Python 3\.\d+\.\d+, torch \S+, ray \S+\)\n", done.stdout)
