"""The runs of an output, and one of them: what ran, on what, how it ended, from its small files and the tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.results.browse.tables import Tables
from jobs.results.browse.work import Job
from pipeline.driver.progress_file import load_progress
from pipeline.output.run_record import RunRecord, began
from pipeline.runs.state import has_all_rows_in
from pipeline.runs.summary import load_summary
from pipeline.text import format_duration


@dataclass(frozen=True)
class RunRow:
    """A run in the list.

    state: "complete", "in progress", or as its summary says. images: of its input, as far as it is listed;
    statuses: its committed rows by status. instances: their sum.
    """

    run: str
    created: str
    model: str
    mode: str
    state: str
    images: int
    statuses: Mapping[str, int]
    instances: int

    @property
    def rows(self) -> int:
        """Images that have their row."""
        return sum(self.statuses.values())


@dataclass(frozen=True)
class RunFacts:
    """One run.

    facts: names with values, as text. reason: why it is not complete. reasons: failed images by reason.
    bottleneck: a sentence. spec: the job spec's values that differ from none, by dotted key. versions: of packages.
    """

    row: RunRow
    facts: Sequence[tuple[str, str]]
    reason: str = ""
    bottleneck: str = ""
    reasons: Mapping[str, int] = field(default_factory=dict)
    spec: Sequence[tuple[str, str]] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


def list_runs(tables: Tables, job: Job) -> list[RunRow]:
    """Return the runs, the newest first."""
    sql = "SELECT run, status, count(*), sum(instances) FROM images GROUP BY ALL ORDER BY 3 DESC"
    counted: dict[str, dict[str, int]] = {}
    instances: dict[str, int] = {}
    for run, status, count, found in tables.ask(sql, job=job, rows=1_000_000).rows:
        counted.setdefault(run, {})[status] = int(count)
        instances[run] = instances.get(run, 0) + int(found or 0)
    return [
        _row(record, tables, counted.get(record.run, {}), instances.get(record.run, 0))
        for record in reversed(tables.results.records)
    ]


def describe_run(tables: Tables, run: str) -> RunFacts:
    """Return the facts of a run."""
    record = next(each for each in tables.results.records if each.run == run)
    row = next(each for each in list_runs(tables, Job()) if each.run == run)
    summary = load_summary(tables.storage, tables.output_uri, run) or {}
    facts = [
        ("Began", f"{began(record):%Y-%m-%d %H:%M} UTC"),
        ("Input", str(record.spec.get("input", {}).get("uri") or "unknown")),
        ("Model", record.model_name or "unknown"),
        ("Weights", _weights(record)),
        ("Images", f"{row.rows:,} of {row.images:,} have their row"),
        ("Shards", f"{tables.results.committed_shards(run):,} of {record.shard_count:,} committed"),
        ("Instances", f"{row.instances:,}"),
    ]
    if summary.get("seconds"):
        took = f"{format_duration(summary['seconds'])}, {summary.get('images_per_s') or 0:,.2f} images a second"
        facts.append(("Last session", took))
    facts += [(name, str(summary[key])) for name, key in (("Machine", "machine"), ("Precision", "precision"))
              if summary.get(key)]  # fmt: skip
    bottleneck = summary.get("bottleneck") or {}
    return RunFacts(
        row,
        facts,
        reason=str(summary.get("reason") or "") if row.state != "complete" else "",
        bottleneck=str(bottleneck.get("sentence") or "") if isinstance(bottleneck, Mapping) else "",
        reasons=summary.get("failure_reasons") or {},
        spec=list(_flat(record.spec)),
        versions=record.versions,
    )


def _row(record: RunRecord, tables: Tables, statuses: Mapping[str, int], instances: int) -> RunRow:
    return RunRow(
        record.run,
        f"{began(record):%Y-%m-%d %H:%M}",
        record.model_name or "unknown",
        str(record.spec.get("select", {}).get("mode", "full")),
        _state(record, tables),
        record.image_count,
        statuses,
        instances,
    )


def _state(record: RunRecord, tables: Tables) -> str:
    if has_all_rows_in(tables.results, record):
        return "complete"
    if load_progress(tables.storage, tables.output_uri, record.run) is not None:
        return "in progress"
    summary = load_summary(tables.storage, tables.output_uri, record.run)
    return str(summary["status"]) if summary and summary.get("status") not in {None, "complete"} else "incomplete"


def _weights(record: RunRecord) -> str:
    digest = str(record.fingerprint.get("weights_sha256") or "")
    trained = "" if record.fingerprint.get("trained", True) else ", untrained: scores mean nothing"
    return f"SHA-256 {digest[:16]}…{trained}" if digest else f"unknown{trained}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{name}.")
        elif value not in (None, "", [], False):
            pairs.append((name, str(value)))
    return pairs
