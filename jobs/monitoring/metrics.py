"""The metrics of outputs and schedules, for Prometheus: how the last run ended, when the last one was complete.

They live as long as the output does, unlike the metrics that a run exports through Ray (`pipeline.telemetry`), and are
computed from its files. All are gauges: a count of runs by one exporter would begin anew with each of its restarts.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Final, NamedTuple, get_args

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from jobs.monitoring.output_status import STATES, LastRun, OutputStatus
from pipeline.errors import ImageStatus
from pipeline.redaction import redact


class Metric(NamedTuple):
    """A gauge: what it says, and its labels."""

    description: str
    labels: tuple[str, ...] = ("output", "run")


_OUTPUT: Final = ("output",)
OUTPUT_METRICS: Final[Mapping[str, Metric]] = {
    "htc_output_readable": Metric("1 when the output's runs could be read, 0 when not.", _OUTPUT),
    "htc_output_runs": Metric("Runs of the output.", _OUTPUT),
    "htc_output_last_success_timestamp_seconds": Metric("When the newest complete run ended.", _OUTPUT),
    "htc_output_last_end_timestamp_seconds": Metric("When the newest run ended, however it did.", _OUTPUT),
    "htc_output_first_start_timestamp_seconds": Metric("When the oldest run began.", _OUTPUT),
    "htc_output_expected_every_seconds": Metric("A complete run is expected this long after the last.", _OUTPUT),
    "htc_last_run_state": Metric("1 for the state of the newest run, 0 for the others.", ("output", "run", "state")),
    "htc_last_run_exit_code": Metric("Exit code of the newest run; absent while it has none."),
    "htc_last_run_start_timestamp_seconds": Metric("When the newest run's last session began."),
    "htc_last_run_end_timestamp_seconds": Metric("When the newest run ended; absent while it runs."),
    "htc_last_run_deadline_timestamp_seconds": Metric("By when it should end, by notify.overdue_after_s."),
    "htc_last_run_images": Metric("Rows of the newest run, by status.", ("output", "run", "status")),
    "htc_last_run_images_planned": Metric("Images of the newest run, as far as they are listed."),
    "htc_last_run_images_done": Metric("Images of the newest run that have their row."),
    "htc_last_run_error_ratio": Metric("Failed images that count against the error budget, by all images."),
    "htc_last_run_error_budget_ratio": Metric("Its error budget, retry.max_error_rate."),
    "htc_last_run_duration_seconds": Metric("Seconds of the newest run's last session."),
    "htc_last_run_images_per_second": Metric("Speed of its last session, or of the last minute while it runs."),
    "htc_last_run_heartbeats": Metric("How often the driver has renewed its lease; grows while it lives."),
}
REFRESHED = "htc_metrics_refreshed_timestamp_seconds"
EXPORTER_METRICS: Final[Mapping[str, Metric]] = {REFRESHED: Metric("When these metrics were read last.", ())}
SCHEDULE_METRICS: Final[Mapping[str, Metric]] = {
    "htc_scheduler_up": Metric("1 when a scheduler runs the schedules, 0 when not.", ()),
    "htc_schedule_next_timestamp_seconds": Metric("When it is due next; in the past, it was missed.", ("schedule",)),
    "htc_schedule_last_success_timestamp_seconds": Metric("When its newest complete run ended.", ("schedule",)),
    "htc_schedule_last_outcome": Metric("1 for the outcome of its newest ended run.", ("schedule", "run", "outcome")),
    "htc_schedule_late_runs": Metric("Its runs that have not ended by their deadline.", ("schedule",)),
    "htc_schedule_paused": Metric("1 while it is paused.", ("schedule",)),
}
METRICS: Final[Mapping[str, Metric]] = {**OUTPUT_METRICS, **EXPORTER_METRICS, **SCHEDULE_METRICS}


class Sample(NamedTuple):
    """The value of a metric for some labels, in the order of `Metric.labels`."""

    name: str
    labels: tuple[str, ...]
    value: float


def output_label(status: OutputStatus) -> str:
    """Return the label `output`: the URI without secrets and without a slash at its end."""
    return redact(status.output.rstrip("/"))


def output_samples(status: OutputStatus) -> Iterator[Sample]:
    """Yield the samples of an output."""
    output = output_label(status)

    def of_output(name: str, value: float | None) -> Iterator[Sample]:
        if value is not None:
            yield Sample(name, (output,), value)

    yield from of_output("htc_output_readable", float(not status.problem))
    yield from of_output("htc_output_expected_every_seconds", status.expect_every_s)
    if status.problem:
        return
    yield from of_output("htc_output_runs", status.runs)
    yield from of_output("htc_output_last_success_timestamp_seconds", _seconds(status.last_success))
    yield from of_output("htc_output_last_end_timestamp_seconds", _seconds(status.last_end))
    yield from of_output("htc_output_first_start_timestamp_seconds", _seconds(status.first_began))
    if status.last is not None:
        yield from _run_samples(output, status.last)


def _run_samples(output: str, last: LastRun) -> Iterator[Sample]:
    labels = (output, last.run)
    for state in STATES:
        yield Sample("htc_last_run_state", (*labels, state), float(state == last.state))
    for status in get_args(ImageStatus):
        yield Sample("htc_last_run_images", (*labels, status), last.statuses.get(status, 0))
    values: dict[str, float | None] = {
        "exit_code": last.exit_code,
        "start_timestamp_seconds": _seconds(last.began),
        "end_timestamp_seconds": _seconds(last.ended),
        "deadline_timestamp_seconds": _seconds(last.deadline),
        "images_planned": last.images,
        "images_done": last.images_done,
        "error_ratio": last.error_rate,
        "error_budget_ratio": last.max_error_rate,
        "duration_seconds": last.seconds,
        "images_per_second": last.images_per_s,
        "heartbeats": last.heartbeats,
    }
    for name, value in values.items():
        if value is not None:
            yield Sample(f"htc_last_run_{name}", labels, value)


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


class Gauges(Collector):
    """Hands samples to Prometheus' client, each time it asks."""

    def __init__(self, samples: Callable[[], Iterable[Sample]], names: Iterable[str] = METRICS) -> None:
        """`names`: of `METRICS`, whose descriptions are written; samples of other metrics are refused."""
        self._samples = samples
        self._names = tuple(names)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield every metric with its samples."""
        families = {
            name: GaugeMetricFamily(name, METRICS[name].description, labels=METRICS[name].labels)
            for name in self._names
        }
        for sample in self._samples():
            families[sample.name].add_metric(list(sample.labels), sample.value)
        yield from (family for family in families.values() if family.samples)
