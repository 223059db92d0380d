"""`htc metrics`: printed, written and served; what it says of outputs and schedules."""

import threading
import urllib.request
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs.cli.program import main
from jobs.monitoring.exporter import Snapshot, export_metrics, parse_address, serving_metrics
from jobs.monitoring.metrics import METRICS
from jobs.monitoring.output_status import OutputReader
from jobs.monitoring.rules_check import check_rules, find_unknown_metrics
from jobs.scheduling.engine import plan_firing
from jobs.scheduling.firing import Ending
from jobs.scheduling.metrics import read_samples, registry_of
from jobs.scheduling.schedule import build_schedule
from jobs.scheduling.store import ScheduleStore
from pipeline.errors import SpecError
from pipeline.signals import StopRequest
from pipeline.storage.storage import Storage
from tests.jobs.monitoring.test_output_status import HOUR, Output


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """An output whose last run is over its error budget, after a complete one."""
    now = datetime.now(UTC)
    found = Output(tmp_path / "out")
    found.begin("a", now - 30 * HOUR)
    found.end("a", "complete", now - 30 * HOUR, now - 28 * HOUR)
    found.begin("b", now - 2 * HOUR, {"overdue_after_s": 3600.0})
    found.end("b", "over_error_budget", now - 2 * HOUR, now - HOUR, error_rate=0.1, max_error_rate=0.05, seconds=60.0)
    return found


def values_in(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_outcome_is_there_when_no_run_is(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_metrics([str(output.folder)], Storage()) == 0
    found = values_in(capsys.readouterr().out)
    run = (("output", str(output.folder)), ("run", "b"))
    assert found["htc_last_run_state", (*run, ("state", "over_error_budget"))] == 1
    assert found["htc_last_run_state", (*run, ("state", "complete"))] == 0
    assert found["htc_last_run_exit_code", run] == 1
    assert found["htc_last_run_error_ratio", run] == 0.1
    assert (
        found["htc_last_run_deadline_timestamp_seconds", run]
        <= found["htc_last_run_end_timestamp_seconds", run]
        < datetime.now(UTC).timestamp()
    )


def test_several_outputs_and_one_that_is_not_there(
    output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    code = export_metrics([str(output.folder), str(tmp_path / "typo")], Storage())
    said = capsys.readouterr()
    found = values_in(said.out)
    assert code == 1
    assert found["htc_output_runs", (("output", str(tmp_path / "typo")),)] == 0
    assert found["htc_output_runs", (("output", str(output.folder)),)] == 2
    assert f"{tmp_path / 'typo'} holds no run of htc" in said.err


def test_an_unreachable_store_is_a_metric_too(
    tmp_path: Path, output: Output, capsys: pytest.CaptureFixture[str]
) -> None:
    code = export_metrics(["no-such-scheme://bucket/out", str(output.folder)], Storage())
    said = capsys.readouterr()
    assert code == 1
    assert values_in(said.out)["htc_output_readable", (("output", "no-such-scheme://bucket/out"),)] == 0
    assert "no-such-scheme://bucket/out cannot be read" in said.err


def test_a_text_file_for_node_exporter(output: Output, tmp_path: Path) -> None:
    file = tmp_path / "htc.prom"
    assert export_metrics([str(output.folder)], Storage(), textfile=file) == 0
    assert values_in(file.read_text())
    assert file.stat().st_mode & 0o444 == 0o444
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []
    with pytest.raises(SpecError, match=r"\.prom"):
        export_metrics([str(output.folder)], Storage(), textfile=tmp_path / "htc.txt")
    with pytest.raises(SpecError, match="cannot be written"):
        export_metrics([str(output.folder)], Storage(), textfile=tmp_path / "no" / "htc.prom")


def test_a_scrape_gets_what_was_read_last(output: Output) -> None:
    snapshot = Snapshot([OutputReader(str(output.folder), Storage())])
    snapshot.refresh()
    with serving_metrics(snapshot.registry(), "127.0.0.1:0") as address:
        first = urllib.request.urlopen(address).read().decode()
        now = datetime.now(UTC)
        output.begin("c", now)
        output.end("c", "complete", now, now)
        assert urllib.request.urlopen(address).read().decode() == first
        snapshot.refresh()
        second = urllib.request.urlopen(address).read().decode()
    run = (("output", str(output.folder)), ("run", "c"), ("state", "complete"))
    assert values_in(second)["htc_last_run_state", run] == 1
    assert not [labels for name, labels in values_in(second) if ("run", "b") in labels]


def test_serving_ends_with_a_signal(
    output: Output, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop_soon(self: StopRequest) -> None:
        self.signal_name = "SIGTERM"

    monkeypatch.setattr(StopRequest, "install", stop_soon)
    assert export_metrics([str(output.folder)], Storage(), listen="127.0.0.1:0") == 0
    assert "Metrics of 1 output are on http://127.0.0.1:" in capsys.readouterr().err
    assert not [thread for thread in threading.enumerate() if "serve_forever" in thread.name]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9877", ("127.0.0.1", 9877)),
        ("0.0.0.0:9877", ("0.0.0.0", 9877)),
        ("[::1]:1", ("::1", 1)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "host", ":9877", "host:port", "host:70000", "host:-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="HOST:PORT"):
        parse_address(text)


def test_a_port_in_use_is_named(output: Output) -> None:
    snapshot = Snapshot([])
    with serving_metrics(snapshot.registry(), "127.0.0.1:0") as address:
        port = address.rpartition(":")[2].removesuffix("/metrics")
        with (
            pytest.raises(SpecError, match=f"127.0.0.1:{port}.*in use"),
            serving_metrics(snapshot.registry(), f"127.0.0.1:{port}"),
        ):
            pass


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "Name the outputs"),
        (["out", "--listen", "1", "--textfile", "x.prom"], "exclude each other"),
        (["out", "--every", "0"], "longer than 0"),
        (["out", "--every", "soon"], "--every must be a time"),
        (["out", "--expect-every", "daily"], "--expect-every must be a time"),
        (["--check-rules", "/no/such/rules.yml"], "cannot be read"),
    ],
)
def test_bad_flags_get_a_sentence(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["metrics", *arguments])
    assert left.value.code == 2
    assert word in capsys.readouterr().err


def test_rules_for_a_metric_that_is_not_exported_are_refused(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(
        "groups: [{name: g, rules: [{alert: NightFailed, expr: htc_last_run_sate == 1},"
        " {record: r, expr: 'rate(ray_htc_images_total[5m])'}, {alert: Ours, expr: my_htc_thing > 1}]}]"
    )
    with pytest.raises(SpecError, match="the alert NightFailed asks for htc_last_run_sate; did you mean htc_last_run_"):
        check_rules(rules)
    rules.write_text("groups: [{name: g, rules: [{alert: A, expr: htc_last_run_state == 1}]}]")
    assert check_rules(rules) == 0


def test_panels_are_checked_by_their_titles() -> None:
    dashboard = {"title": "all", "panels": [{"title": "Runs", "targets": [{"expr": "htc_runs"}]}]}
    assert next(find_unknown_metrics(dashboard)).startswith("the panel Runs asks for htc_runs")


NOW = datetime(2026, 11, 26, 6, 0, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Schedules: nightly, whose last run is lost and one run is late; and one that is paused."""
    keys = {"spec": "job.yaml", "cron": "30 2 * * *"}
    nightly = build_schedule({"name": "nightly", "deadline_s": 3600.0, **keys})
    with closing(ScheduleStore(tmp_path)) as store:
        store.put(nightly, NOW - timedelta(days=2))
        store.put(build_schedule({"name": "old", "is_paused": True, **keys}), NOW - timedelta(days=9))
        for days, ending in ((3, Ending("complete")), (2, Ending("lost")), (1, Ending("skipped")), (0, None)):
            firing = plan_firing(nightly, NOW.replace(hour=2, minute=30) - timedelta(days=days), "cron")
            ended = None if ending is None else firing.scheduled + HOUR
            state = "running" if ending is None else "ended"
            store.insert(replace(firing, state=state, ended=ended, ending=ending))  # type: ignore[arg-type]
    return tmp_path


def test_schedules_are_metrics_too(home: Path) -> None:
    found = {(name, labels): value for name, labels, value in read_samples(home, clock=lambda: NOW)}
    assert found["htc_scheduler_up", ()] == 0
    assert found["htc_schedule_paused", ("old",)] == 1
    # Due on the day after the last decision, which was two days ago: it was missed.
    assert found["htc_schedule_next_timestamp_seconds", ("nightly",)] < NOW.timestamp()
    assert found["htc_schedule_next_timestamp_seconds", ("old",)] > NOW.timestamp()
    assert found["htc_schedule_late_runs", ("nightly",)] == 1
    assert found["htc_schedule_last_outcome", ("nightly", "nightly-20261124-023000", "lost")] == 1
    success = datetime(2026, 11, 23, 3, 30, tzinfo=UTC).timestamp()
    assert found["htc_schedule_last_success_timestamp_seconds", ("nightly",)] == success
    assert "htc_schedule_last_outcome" in {family.name for family in registry_of(home).collect()}


def exported(output: Output, home: Path) -> dict[str, set[str]]:
    """By metric, the labels that a real exporter writes: of a run that has ended, one that runs, and schedules."""
    running = Output(output.folder.with_name("running"))
    now = datetime.now(UTC)
    running.begin("r", now - HOUR)
    running.lease("r", now)
    running.progress("r")
    readers = [OutputReader(str(each.folder), Storage()) for each in (output, running)]
    snapshot = Snapshot(readers, lambda: read_samples(home, clock=lambda: NOW))
    snapshot.refresh()
    with serving_metrics(snapshot.registry(), "127.0.0.1:0") as address:
        text = urllib.request.urlopen(address).read().decode()
    labels: dict[str, set[str]] = {}
    for name, pairs in values_in(text):
        labels.setdefault(name, set()).update(key for key, _ in pairs)
    return labels


def test_every_metric_of_the_table_is_really_exported(output: Output, home: Path) -> None:
    assert exported(output, home) == {name: set(metric.labels) for name, metric in METRICS.items()}


def test_the_scheduler_serves_its_schedules(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="jobs.scheduling"), pytest.raises(SystemExit) as left:
        main(["scheduler", "--once", "--home", str(tmp_path), "--listen", "127.0.0.1:0"])
    assert left.value.code == 0
    assert "the schedules' metrics are on http://127.0.0.1:" in caplog.text


def test_a_scheduler_refuses_what_is_no_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["scheduler", "--once", "--home", str(tmp_path), "--listen", "everywhere"])
    assert left.value.code == 2
    assert "HOST:PORT" in capsys.readouterr().err
