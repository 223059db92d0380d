"""Rows of a shard that the driver commits: from partial results, verdicts, and the reason to give up."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter

from pipeline.inputs.image_ref import image_id
from pipeline.inputs.shard import Shard
from pipeline.job_spec.map_tables import MapTable
from pipeline.messages import ImageFailure, ShardOutcome, ShardResult
from pipeline.output.map_rows import MapRows, joined
from pipeline.output.rows import ImageRow, InstanceRow, build_image_row
from pipeline.telemetry import StageClock

Rows = tuple[list[ImageRow], list[InstanceRow]]


def assemble_rows(shard: Shard, settled: ShardOutcome, *, model: str) -> Rows:
    """Assemble a shard's rows in the order of its images, one per image whatever its status.

    Args:
        model: the model column of images that no worker finished.

    Returns:
        The rows of `images` and of `instances`.
    """
    reasons = dict.fromkeys(range(len(shard.images)), settled.rest.reason if settled.rest else "")
    reasons.update(settled.verdicts)
    images = {
        position: build_image_row(
            shard.images[position],
            shard=shard.index,
            model=model,
            status="failed",
            error=reason,
            attempts=settled.attempts,
        )
        for position, reason in reasons.items()
    }
    instances: dict[int, list[InstanceRow]] = {}
    for piece in settled.pieces:
        images.update(zip(piece.positions, piece.image_rows, strict=True))
        for number, rows in groupby(piece.instance_rows, attrgetter("image_id")):
            instances[number] = list(rows)
    ordered = [images[position] for position in sorted(images)]
    return ordered, [row for image in ordered for row in instances.get(image.image_id, [])]


def assemble_maps(shard: Shard, settled: ShardOutcome, tables: Sequence[MapTable]) -> MapRows:
    """Assemble a shard's rows of the tables of maps in the order of its images; those that failed have none."""
    places = {image_id(ref.uri): place for place, ref in enumerate(shard.images)}
    found = joined((piece.map_rows for piece in settled.pieces), tables)
    return {table: sorted(rows, key=lambda row: places[row.image_id]) for table, rows in found.items()}


def build_report(shard: Shard, settled: ShardOutcome, rows: Rows) -> ShardResult:
    """Return the report that a worker would have sent for the assembled shard."""
    images, instances = rows
    clock = StageClock()
    for piece in settled.pieces:
        clock.add(piece.report.stage_s)
    done = {position for piece in settled.pieces for position in piece.positions}
    failures = [failure for piece in settled.pieces for failure in piece.report.failures]
    failures += [ImageFailure(row.uri, row.status, row.error or "") for at, row in enumerate(images) if at not in done]
    return ShardResult(
        index=shard.index,
        statuses=dict(Counter(row.status for row in images)),
        instances=len(instances),
        stage_s=clock.seconds(),
        bytes_read=sum(piece.report.bytes_read for piece in settled.pieces),
        seconds=sum(piece.report.seconds for piece in settled.pieces),
        failures=tuple(failures),
        repeats=sum(
            row.status != "ok" and bool(ref.failed_before) for ref, row in zip(shard.images, images, strict=True)
        ),
    )
