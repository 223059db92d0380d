"""The rate of a worker in an earlier run, from its summary.json: the last run of the same model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from pipeline.job_spec.map_tables import MAP_TABLES
from pipeline.output.run_record import RunRecord, began, list_records, load_record
from pipeline.planning.estimate import WorkerRate, mean_range
from pipeline.runs.summary import read_summary
from pipeline.storage.storage import Storage
from pipeline.text import count_of, format_duration

# Older runs say little about a present one.
RUNS_READ = 20
# The last run and those before it whose rates show how much runs differ.
RUNS_COMPARED = 5
# What multiplies the work for an image, beside the model. Not the score threshold and the number of detections, which
# hardly matter for the speed, nor the rules for segments.
_WORK = ("model.precision", "model.augment", "model.options", "images.jpeg_decoder", "tiles")
_MAPS = tuple(f"model.{table}" for table in MAP_TABLES)


@dataclass(frozen=True)
class RateOfRun:
    """A worker's rate in a run; record: the run's."""

    rate: WorkerRate
    record: RunRecord

    @property
    def bytes_per_image(self) -> float | None:
        """The mean encoded size of the run's images; None when the listing had no sizes."""
        listed, images = self.record.manifest.get("listed_bytes"), self.record.manifest.get("image_count")
        return listed / images if isinstance(listed, int) and isinstance(images, int) and listed and images else None


def last_rate(
    storage: Storage,
    output_uri: str,
    *,
    fingerprint: Mapping[str, Any],
    identity: Mapping[str, object],
    device: str = "",
    run: str | None = None,
    now: datetime | None = None,
) -> RateOfRun | None:
    """Return the rate of the newest run of an output with the same model that worked on an image; None without one.

    Args:
        fingerprint: of the model; a hash of weights that is None fits any.
        identity: the spec's, see `JobSpec.identity`; views, tiles and maps multiply the work.
        device: "cpu" or "cuda"; "" for either.
        run: only this one.
        now: for the age of the measurement.

    Raises:
        StorageError: the output cannot be read.
    """
    if run is not None:
        record = load_record(storage, output_uri, run)
        records = [] if record is None else [record]
    else:
        records = list_records(storage, output_uri, damaged_runs={})[::-1]
    matching = (each for each in records if is_same_work(each, fingerprint, identity))
    found: list[RateOfRun] = []
    for record in islice(matching, RUNS_READ):
        summary = read_summary(storage, output_uri, record.run) or {}
        if device and not str(summary.get("device", "")).startswith(device):
            continue
        rate = rate_of_summary(summary, record, now or datetime.now(UTC))
        if rate is not None and (not found or rate.machine == found[0].rate.machine):
            found.append(RateOfRun(rate, record))
        if len(found) == RUNS_COMPARED:
            break
    return RateOfRun(widened([each.rate for each in found]), found[0].record) if found else None


def widened(rates: Sequence[WorkerRate]) -> WorkerRate:
    """Return the first rate, its range widened by the others, which are of earlier runs on such machines."""
    first = rates[0]
    if len(rates) == 1:
        return first
    ends = [first.low, first.high, *(each.images_per_s for each in rates)]
    known = [end for end in ends if end is not None]
    description = f"{first.description}; its range includes {count_of(len(rates) - 1, 'run')} before it"
    return replace(first, low=min(known), high=max(known), description=description)


def is_same_work(record: RunRecord, fingerprint: Mapping[str, Any], identity: Mapping[str, object]) -> bool:
    """Return whether a run had this model, and did with it for each image what a spec of this identity asks for."""
    is_same_model = all(
        fingerprint.get(key) in (None, record.fingerprint.get(key)) for key in ("preset", "weights_sha256")
    )
    before = {"model.precision": "auto"} | record.identity
    return (
        is_same_model
        and all(before.get(key) == identity.get(key) for key in _WORK)
        and all(bool(before.get(key)) == bool(identity.get(key)) for key in _MAPS)
    )


def rate_of_summary(summary: Mapping[str, Any], record: RunRecord, now: datetime) -> WorkerRate | None:
    """Return a worker's rate in the last session of a run; None when it did nothing, or does not say how fast.

    A session of a release without `worker_use` counts from the moment when its first worker had the model.
    """
    images = _number(summary.get("session_images"))
    found = summary.get("worker_use")
    time: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    found = summary.get("start_up_s")
    start_up_s = _number(found.get("worker")) if isinstance(found, Mapping) else 0.0
    workers = _number(summary.get("workers_started")) - _number(summary.get("workers_lost"))
    busy_s = _number(time.get("busy_s"))
    if not busy_s:
        busy_s = _busy_s_before(summary, start_up_s) * max(1.0, workers)
    if images <= 0 or busy_s <= 0:
        return None
    rate = images / busy_s
    rounds = time.get("images_per_s")
    span = mean_range([_number(each) for each in rounds]) if isinstance(rounds, list) else None
    age = format_age((now - began(record)).total_seconds())
    counted = f"{count_of(round(images), 'image')} on {count_of(max(1, round(workers)), 'worker')}"
    machine = str(summary.get("machine") or summary.get("device") or "")
    return WorkerRate(
        rate,
        # The mean of the rounds may lie off the rate, which images in flight at the end are part of.
        low=None if span is None else min(span[0], rate),
        high=None if span is None else max(span[1], rate),
        source="run",
        description=f"run {record.run}, begun {age}: {counted}",
        machine=machine,
        start_up_s=start_up_s or None,
        write_s=_number(time.get("write_s_per_shard")),
    )


def _busy_s_before(summary: Mapping[str, Any], start_up_s: float) -> float:
    """Return the wall time of a session in which the model worked, for one without `worker_use`."""
    parts = summary.get("start_up_s")
    known = parts if isinstance(parts, Mapping) else {}
    opened_s = max(_number(known.get("weights")), _number(known.get("listing")))
    return max(0.0, _number(summary.get("seconds")) - max(0.0, start_up_s - opened_s))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def format_age(seconds: float) -> str:
    """Return how long ago something was, as text: "3 h 05 min ago", "12 days ago"."""
    if seconds < 2 * 86_400:
        return f"{format_duration(max(0.0, seconds))} ago"
    return f"{seconds / 86_400:.0f} days ago"
