"""Outputs of several runs, written by hand: the status of each image in each run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import ImageStatus
from pipeline.inputs.image_ref import ImageRef, image_id
from pipeline.output.commit import commit_shard
from pipeline.output.deletions import DELETIONS_SCHEMA, write_deletions
from pipeline.output.rows import InstanceRow, build_image_row
from pipeline.output.run_record import RunRecord, write_record
from pipeline.storage.storage import Storage

BOX = {"x": 0.0, "y": 0.0, "width": 1.0, "height": 1.0}


@dataclass(frozen=True)
class WrittenRun:
    """One run: the status by image, the deleted images, and what its record holds."""

    statuses: Mapping[str, ImageStatus]
    deleted: Sequence[str] = ()
    etags: Mapping[str, str] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)


def write_runs(output: Path, runs: Sequence[WrittenRun]) -> None:
    """Write runs 0, 1, ..., each ok image with one instance whose category is the run's name."""
    for number, written in enumerate(runs):
        run = str(number)
        rows = [
            build_image_row(ImageRef(uri, etag=written.etags.get(uri)), shard=0, model="m", status=status)
            for uri, status in written.statuses.items()
        ]
        found = [_instance(row.uri, run) for row in rows if row.status == "ok"]
        commit_shard(Storage(), str(output), run, 0, rows, found)
        deleted = [
            {"image_id": image_id(uri), "uri": uri, "last_run": "0", "last_ok_run": None} for uri in written.deleted
        ]
        table = DELETIONS_SCHEMA.empty_table().from_pylist(deleted, schema=DELETIONS_SCHEMA)
        write_deletions(Storage(), str(output), run, iter([table]))
        counts = {"image_count": len(rows), "shard_count": 1, "selection": {"deleted": len(deleted)}}
        content = {"spec": {}, "identity": {}, "fingerprint": {}, "manifest": counts, **written.record}
        record = RunRecord(run=run, created=f"2026-01-{number + 1:02d}", versions={}, **content)
        write_record(Storage(), str(output), record)


def _instance(uri: str, category: str) -> InstanceRow:
    return InstanceRow(image_id(uri), uri, 0, 1, category, 0.9, BOX, None, None, "m")
