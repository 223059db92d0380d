"""`htc top`: a run's workers and shards from its progress.json alone, while it goes on and afterwards."""

import io
import json
import os
import pty
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster.job_state import JobState
from jobs.cluster.status_command import watch_status
from jobs.results import top
from jobs.results.live_run import SORTS
from jobs.results.live_text import Page, as_text, render
from jobs.results.top import Watch, report_top
from pipeline.driver.live_workers import ORDERS, WorkerRow
from pipeline.driver.progress import RunProgress
from pipeline.driver.shard_queue import InFlight
from pipeline.errors import InputError, StorageError
from pipeline.runs.bottleneck import find_bottleneck
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from tests.support.builders.outputs import Output
from tests.support.servers.fake_jobs import NOON, FakeJobs
from tests.support.without_torch import run_without_torch

TIMES = {"start_up": 20.0, "read": 60.0, "infer": 80.0}


def row(worker: int, cause: str = "infer", cause_s: float = 0.4, **changes: Any) -> WorkerRow:
    known: dict[str, Any] = {
        "worker": worker,
        "host": f"node-{worker}",
        "up_s": 80.0,
        "cause": cause,
        "cause_s": cause_s,
        "reported_s_ago": 0.6,
        "shards": (2 * worker, 2 * worker + 1),
        "images": 100,
        "images_per_s": 2.0 + worker,
        "shares": {"infer": 0.6, "read": 0.4},
        "batch_fill": 0.9,
        "memory_bytes": 2**30,
        "gpu_bytes": 0,
        "gpu_share": None,
    }
    return WorkerRow(**{**known, **changes})


def live_content(*rows: WorkerRow, **workers: Any) -> dict[str, Any]:
    known = {"alive": len(rows) + 1, "starting": 1, "started": 3, "lost": 1, "causes": {"infer": 1, "read": 1}}
    known |= {"images_per_s": 5.0, "batch_fill": 0.9, "memory_bytes": 2**31, "max_memory_bytes": 2**30}
    return {
        "time_s": TIMES,
        "recent_s": {"read": 30.0, "infer": 70.0},
        "busy_shares": {"read": 0.7, "infer": 0.3},
        "workers": {**known, **workers, "rows": [asdict(each) for each in rows]},
        "shards": {
            "left": 9,
            "in_flight": 3,
            "waiting": 6,
            "retrying": 1,
            "usual_s": 4.0,
            "oldest": [asdict(InFlight(7, 1, 3, 20.0, None, 2)), asdict(InFlight(8, 0, 1, 3.0, 1))],
            "slowest": [{"shard": 4, "worker": 0, "seconds": 130.0, "images": 256}],
        },
        "failed_attempts": {"storage": 2, "death": 1},
    }


LIVE = live_content(row(0), row(1, "read", 12.0, shares={"read": 0.9, "infer": 0.1}))


@pytest.fixture
def run_folder(output: Output) -> Path:
    return output.folder / "runs" / "night"


def write_lease(run_folder: Path, beat: datetime) -> None:
    lease = {"token": "t", "host": "head-1", "pid": 12, "process": "", "since": NOON.isoformat()}
    (run_folder / "lease.json").write_text(json.dumps(lease | {"beat": beat.isoformat()}))


def write_progress(run_folder: Path, written: datetime, live: dict[str, Any] | None = None, **changes: Any) -> None:
    progress = RunProgress(
        7,
        5,
        1,
        2.0,
        90.0,
        2,
        statuses={"ok": 4, "unreadable": 1},
        failure_reasons={"it is torn": 1},
        bottleneck=find_bottleneck(TIMES),
        live=LIVE if live is None else live,
    )
    content = {"version": 2, "written": written.isoformat(), "since": NOON.isoformat(), "job": None} | asdict(progress)
    (run_folder / "progress.json").write_text(json.dumps(content | changes))


def text_of(output: Output, page: Page | None = None, *, now: datetime | None = None) -> str:
    now = now or datetime.now(UTC)
    seen = Watch(output.uri, Storage(), None, now=lambda: now, sleep=lambda seconds: None).look()
    return as_text(render(seen, page or Page(), now))


def running(run_folder: Path, live: dict[str, Any] | None = None, **changes: Any) -> None:
    now = datetime.now(UTC)
    write_lease(run_folder, now)
    write_progress(run_folder, now, live, **changes)


def line_with(text: str, word: str) -> str:
    return next(line for line in (" ".join(line.split()) for line in text.splitlines()) if word in line)


def test_a_running_run(output: Output, run_folder: Path) -> None:
    running(run_folder)
    text = text_of(output)
    assert "night (running)" in text
    assert "5 of 7 (71%): 4 ok, 1 unreadable committed; 2.00 images/s, ETA 1 min 30 s" in text
    assert "process 12 on head-1, wrote this 0 s ago" in text
    assert "The model waited 38% of the time for reads: raise storage.read_concurrency" in text
    assert "model busy 50%, waiting for reads 38%, starting 12%" in text
    assert "3 alive, 1 of them starting, 2.50 images/s each, batches 90% full" in text
    assert "9 left: 3 in flight, 6 waiting, 1 of them for their next attempt; usually 4.0 s each" in text
    assert "3 failed attempts (1 death, 2 storage), 1 worker lost" in text
    # By stage: workers now, the last minute, the session, and how the threads' busy time is divided.
    assert line_with(text, "start-up") == "start-up 1 12%"
    assert line_with(text, "read 1") == "read 1 30% 38% 70%"
    assert line_with(text, "model 1") == "model 1 70% 50% 30%"
    assert "upload" not in text
    # By worker, the one that waits most first.
    assert line_with(text, "node-1").startswith("1 node-1 read 12 s 3.00 read 90%, model 10% 90% 1.0 GiB 100 2, 3")
    assert text.index("node-1") < text.index("node-0")
    assert "GPU" not in text
    assert line_with(text, "2 images of it") == "7 1 3 (2 images of it) 20 s 5.0 x"
    assert "0, copy at 1" in text
    assert line_with(text, "2 min 10 s") == "4 0 2 min 10 s 256"
    assert line_with(text, "it is torn") == "1 it is torn"
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_gpus_are_shown_where_nvml_reports_them(output: Output, run_folder: Path) -> None:
    running(run_folder, live_content(row(0, gpu_share=0.83, gpu_bytes=9 * 2**30), gpu_share=0.83))
    text = text_of(output)
    assert "GPUs 83% busy" in text
    assert "83% 9.0 GiB 1.0 GiB" in line_with(text, "node-0")
    narrow = text_of(output, Page(is_wide=False))
    assert "83%" in line_with(narrow, "0.4 s")
    assert "node-0" not in narrow


@pytest.mark.parametrize(
    ("sort", "first"), [("speed", 0), ("wait", 3), ("stuck", 2), ("memory", 1), ("fill", 4), ("worker", 0)]
)
def test_orders(output: Output, run_folder: Path, sort: str, first: int) -> None:
    rows = (
        row(4, batch_fill=0.1),
        row(3, shares={"read": 1.0}),
        row(2, "write", 99.0),
        row(1, memory_bytes=2**33),
        row(0),
    )
    running(run_folder, live_content(*rows))
    text = text_of(output, Page(sort))
    names = [line.split()[1] for line in text.splitlines() if " node-" in line]
    assert names[0] == f"node-{first}"
    assert set(SORTS) == set(ORDERS)


def test_pages_of_many_workers(output: Output, run_folder: Path) -> None:
    running(run_folder, live_content(*(row(number) for number in range(50)), alive=10_000, starting=0))
    text = text_of(output, Page("worker", workers=20, page=3))
    names = [line.split()[1] for line in text.splitlines() if " node-" in line]
    assert names == [f"node-{number}" for number in range(40, 50)]
    assert "Workers by worker, page 3 of 3, of 10,000 workers the 50 that come first" in text
    # A page too far is the last one.
    assert text_of(output, Page("worker", workers=20, page=9)) == text


def test_a_driver_that_has_just_begun(output: Output, run_folder: Path) -> None:
    write_lease(run_folder, datetime.now(UTC))
    assert "process 12 on head-1, has just begun: it has written no progress yet" in text_of(output)


def test_a_driver_of_an_earlier_version(output: Output, run_folder: Path) -> None:
    running(run_folder, {})
    content = json.loads((run_folder / "progress.json").read_text())
    for key in ("version", "bottleneck", "live"):
        del content[key]
    (run_folder / "progress.json").write_text(json.dumps(content))
    text = text_of(output)
    assert "5 of 7 (71%)" in text
    assert "2 ready; a driver of an earlier version reports no more" in text


def test_a_driver_that_stopped_writing(output: Output, run_folder: Path) -> None:
    """It may hang, or its store refuses the file: its lease still has a heartbeat."""
    now = datetime.now(UTC)
    write_lease(run_folder, now)
    write_progress(run_folder, now - timedelta(minutes=4))
    assert "has written nothing for 4 min 00 s: what follows is as old as that" in text_of(output)


def test_a_driver_that_is_gone(output: Output, run_folder: Path) -> None:
    then = datetime.now(UTC) - timedelta(hours=2)
    write_lease(run_folder, then)
    write_progress(run_folder, then)
    text = text_of(output)
    assert "night (incomplete)" in text
    assert "process 12 on head-1 is dead; it last wrote 2 h 00 min ago. Run the same command again to resume." in text
    # Its workers are gone with it.
    assert "node-0" not in text


def test_a_run_that_has_ended(output: Output, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = find_bottleneck(TIMES)
    assert found is not None
    summary: dict[str, Any] = {"status": "interrupted", "images": 7, "images_done": 6, "statuses": {"ok": 6}}
    summary |= {"images_per_s": 3.5, "reason": "Stopped with 1 of 7 images to go."}
    summary |= {"bottleneck": asdict(found), "worker_time_s": TIMES}
    (run_folder / "summary.json").write_text(json.dumps(summary))
    assert report_top(output.uri, Storage(), run=None, page=Page()) == 0
    out = capsys.readouterr().out
    assert "night (interrupted)" in out
    assert "6 of 7 (86%): 6 ok; 3.50 images/s" in out
    assert "Stopped with 1 of 7 images to go." in out
    assert "The model waited 38% of the time for reads" in out
    assert "model busy 50%, waiting for reads 38%" in out


def test_no_run(tmp_path: Path, output: Output) -> None:
    with pytest.raises(InputError, match="holds no run of htc"):
        report_top(str(tmp_path / "empty"), Storage(), run=None, page=Page())
    with pytest.raises(InputError, match="There is no run day"):
        report_top(output.uri, Storage(), run="day", page=Page())


@pytest.mark.parametrize(
    "live", [{"workers": {"rows": [{"worker": "x"}]}}, {"shards": {"oldest": 3}}, ["no", "mapping"]]
)
def test_a_damaged_description_of_the_workers_is_reported_and_left_out(
    output: Output, run_folder: Path, live: Any, caplog: pytest.LogCaptureFixture
) -> None:
    running(run_folder, live=live)
    text = text_of(output)
    assert "5 of 7 (71%)" in text
    assert "progress.json" in caplog.text


def test_json(output: Output, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running(run_folder)
    assert report_top(output.uri, Storage(), run=None, page=Page("speed", workers=1), is_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["run"]["bottleneck"]["name"] == "read"
    assert (found["is_stale"], found["live"]["pages"]) == (False, 2)
    assert [each["worker"] for each in found["live"]["workers"]["rows"]] == [0]
    assert found["live"]["shards"]["oldest"][0]["attempt"] == 3


def followed(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], None]) -> None:
    """Have each wait of the view do the next step."""
    left = list(steps)

    def wait(seconds: float) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    monkeypatch.setattr(top.time, "sleep", wait)


def test_in_a_pipe_each_change_is_a_block_until_the_run_ends(
    output: Output, run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running(run_folder)

    def end() -> None:
        (run_folder / "progress.json").unlink()
        (run_folder / "lease.json").unlink()
        summary = {"status": "interrupted", "images": 7, "images_done": 6, "statuses": {"ok": 6}}
        (run_folder / "summary.json").write_text(json.dumps(summary))

    followed(monkeypatch, lambda: None, lambda: running(run_folder, images_done=6), end)
    assert report_top(output.uri, Storage(), run=None, page=Page()) == 0
    out = capsys.readouterr().out
    assert [word in out for word in ("5 of 7", "6 of 7", "night (interrupted)")] == [True] * 3
    assert out.count("(running)") == 2


def test_a_store_that_fails_for_a_moment_does_not_end_the_view(
    output: Output, run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running(run_folder)
    reads = top.read_live

    def refuse(*arguments: Any) -> Any:
        raise StorageError("the store does not answer")

    followed(monkeypatch, lambda: monkeypatch.setattr(top, "read_live", refuse))
    assert report_top(output.uri, Storage(), run=None, page=Page()) == 130
    assert "the store does not answer" in capsys.readouterr().err
    assert reads is not refuse


def test_status_watch_follows_a_job_to_its_output(
    output: Output, run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running(run_folder)
    followed(monkeypatch)
    jobs = {
        "photos-1": JobState("photos-1", "running", output_uri=output.uri, started=NOON),
        "photos-2": JobState("photos-2", "running", output_uri="", started=NOON),
    }
    monkeypatch.setattr("jobs.cluster.client.connect", lambda address: FakeJobs(jobs=jobs))
    assert watch_status("photos-1", run=None, address=None, storage_section=StorageSection()) == 130
    assert watch_status(output.uri, run=None, address=None, storage_section=StorageSection()) == 130
    assert capsys.readouterr().out.count("node-1") == 2
    with pytest.raises(InputError, match="does not know the output of job photos-2"):
        watch_status("photos-2", run=None, address=None, storage_section=StorageSection())


def test_the_command_needs_neither_cluster_nor_ray_nor_torch(output: Output, run_folder: Path) -> None:
    running(run_folder)
    done = run_without_torch("top", output.uri, "--once", "--sort", "speed", "--workers", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "page 1 of 2" in done.stdout
    assert "\x1b" not in done.stdout
    refused = run_without_torch("top", output.uri, "--sort", "colour")
    assert refused.returncode == 2
    assert "colour" in refused.stderr


def test_ctrl_c_on_a_terminal_is_quiet(output: Output, run_folder: Path) -> None:
    running(run_folder)
    child, terminal = pty.fork()
    if child == 0:
        os.environ["TERM"] = "xterm"
        program = "import sys; from jobs.cli import main; main(sys.argv[1:])"
        os.execv(sys.executable, [sys.executable, "-c", program, "top", output.uri])
    shown = io.BytesIO()

    def read_until(word: bytes) -> None:
        deadline = time.monotonic() + 30
        while word not in shown.getvalue():
            assert time.monotonic() < deadline
            if select.select([terminal], [], [], 1.0)[0]:
                shown.write(os.read(terminal, 65536))

    try:
        read_until(b"it is torn")
        os.write(terminal, b"\x03")
        # Leaves the second screen (xterm's rmcup).
        read_until(b"\x1b[?1049l")
        _, status = os.waitpid(child, 0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130
    assert b"Stopped" not in shown.getvalue()
    assert b"Traceback" not in shown.getvalue()
