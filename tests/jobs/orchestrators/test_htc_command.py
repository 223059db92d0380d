"""A run as a step of an orchestrator: exit codes, retries, jobs of a cluster, stopping; with a stand-in for `htc`."""

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from jobs.orchestrators import HtcCommand, HtcRunFailed
from jobs.orchestrators.htc_command import read_spec, run_name
from tests.support.paths import PROGRAMS
from tests.support.servers.real_cluster import wait_until

SPEC = {"input": {"uri": "/in"}, "output": {"uri": "/out"}}


class Step:
    """A step whose `htc` does what `plan` says."""

    def __init__(self, folder: Path, *, address: str | None = None, **plan: Any) -> None:
        self.calls_file = folder / "calls.jsonl"
        self.lines: list[str] = []
        self.command = HtcCommand(
            SPEC,
            "night 2026-11-20T00:00:00+00:00",
            address=address,
            command=[sys.executable, str(PROGRAMS / "fake_htc.py")],
            environment={"FAKE_HTC": json.dumps(plan), "FAKE_HTC_CALLS": str(self.calls_file)},
            on_line=self.lines.append,
        )

    def calls(self) -> list[list[str]]:
        return [json.loads(line)["words"] for line in self.calls_file.read_text().splitlines()]


def test_a_complete_run_gives_its_counts_and_is_named_after_its_time(tmp_path: Path) -> None:
    step = Step(tmp_path)
    result = step.command.execute()
    assert (result.run, result.output, result.images_done) == ("night-2026-11-20T00-00-00-00-00", "/out", 4)
    assert result.to_dict()["statuses"] == {"ok": 4}
    assert step.lines == ["Run r: 4 images in 1 shard."]
    (words,) = step.calls()
    assert words[0] == "run"
    assert words[words.index("--run") + 1] == result.run


@pytest.mark.parametrize(
    ("plan", "is_retriable"),
    [
        ({"exit": 1, "outcome": {"status": "incomplete"}, "says": "a shard is left"}, True),
        ({"exit": 1, "outcome": {"status": "over_error_budget"}, "says": "too many failed"}, False),
        ({"exit": 2, "says": "input.uri is missing."}, False),
        ({"exit": 137, "says": "killed"}, True),
    ],
)
@pytest.mark.parametrize("address", [None, "http://head:8265"])
def test_what_a_retry_cannot_help_is_not_retried(
    tmp_path: Path, plan: dict[str, Any], is_retriable: bool, address: str | None
) -> None:
    with pytest.raises(HtcRunFailed, match=plan["says"]) as caught:
        Step(tmp_path, address=address, **plan).command.execute()
    assert caught.value.is_retriable is is_retriable


def test_a_complete_run_whose_input_has_changed_succeeds_with_a_note(tmp_path: Path) -> None:
    result = Step(tmp_path, exit=3, says="3 images are new.").command.execute()
    assert (result.note, result.reason, result.images) == ("3 images are new.", "", 4)


def test_a_job_is_followed_to_its_end(tmp_path: Path) -> None:
    step = Step(tmp_path, address="http://head:8265")
    result = step.command.execute()
    assert (result.job, result.link, result.images) == ("job-1", "http://head:8265/#/jobs/job-1", 4)
    assert [words[0] for words in step.calls()] == ["submit", "logs", "status"]
    assert "2 of 4 images" in step.lines


def test_the_job_of_an_attempt_that_died_is_followed(tmp_path: Path) -> None:
    run = run_name("night 2026-11-20T00:00:00+00:00")
    step = Step(tmp_path, address="http://head:8265", running="job-0", run=run, output="/out/")
    assert step.command.execute().job == "job-0"
    other = Step(tmp_path, address="http://head:8265", running="job-0", run=run, output="/elsewhere/")
    with pytest.raises(HtcRunFailed, match="already working"):
        other.command.execute()


@pytest.mark.parametrize("address", [None, "http://head:8265"])
def test_a_step_that_is_killed_stops_its_run(tmp_path: Path, address: str | None) -> None:
    step = Step(tmp_path, address=address, hangs=True, exit=1)
    outcome: list[HtcRunFailed] = []

    def execute() -> None:
        with pytest.raises(HtcRunFailed) as caught:
            step.command.execute()
        outcome.append(caught.value)

    thread = threading.Thread(target=execute)
    thread.start()
    wait_until(lambda: step.calls_file.with_suffix(".hangs").exists(), 60)
    step.command.stop()
    thread.join(60)
    assert step.calls_file.with_suffix(".ended").exists()
    assert outcome[0].is_retriable
    assert (["stop", "job-1", "--address", "http://head:8265"] in step.calls()) is (address is not None)


def test_a_command_that_is_not_there_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(HtcRunFailed, match="name the htc to use with `command`") as caught:
        HtcCommand(SPEC, "r", command=[str(tmp_path / "htc")]).execute()
    assert not caught.value.is_retriable


def test_a_spec_file_is_a_template_and_one_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("output: {uri: '/out/DAY'}\n")
    assert read_spec(str(path), lambda text: text.replace("DAY", "20")) == "output: {uri: '/out/20'}\n"
    assert read_spec(SPEC, str.upper) is SPEC
    with pytest.raises(HtcRunFailed, match=r"absent\.yaml cannot be read"):
        read_spec(str(tmp_path / "absent.yaml"), str)


def test_long_names_stay_apart() -> None:
    first, second = run_name("a" * 120 + "1"), run_name("a" * 120 + "2")
    assert (len(first), first == second) == (100, False)
