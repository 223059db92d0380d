"""One shard's attempt inside a worker: stages, rows, commit."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from pipeline.errors import HtcError
from pipeline.inputs.shard import Shard
from pipeline.job_spec.map_tables import MapTable
from pipeline.messages import Assignment, Hang, ImageFailure, PartialResult, ShardResult, WorkerReport
from pipeline.output.commit import commit_shard
from pipeline.output.map_rows import MapRows, joined
from pipeline.output.rows import ImageRow, InstanceRow, build_image_row
from pipeline.telemetry import WorkerTotals, traced_stages
from pipeline.worker.commit_claim import CommitClaim
from pipeline.worker.device_use import DeviceUse
from pipeline.worker.error_boundaries import CommitError
from pipeline.worker.memory import resident_bytes
from pipeline.worker.model_time import ShardTime
from pipeline.worker.shard_pipeline import EncodedImage, ShardPipeline, WorkerResources
from pipeline.worker.totals import WorkCounter


class ShardProcessor:
    """Turns shards into committed tables with one model; `process` may run on two threads at once."""

    def __init__(
        self,
        resources: WorkerResources,
        *,
        output_uri: str,
        run: str,
        model_label: str,
        map_tables: Sequence[MapTable] = (),
    ) -> None:
        """`model_label`: what the tables' `model` column contains. `map_tables`: the tables of maps of the run."""
        self._resources = resources
        self._output_uri = output_uri
        self._run = run
        self._model_label = model_label
        self._map_tables = map_tables
        self._counter = WorkCounter()
        self._device_use = DeviceUse(resources.segmenter.device)

    @property
    def device_name(self) -> str:
        """The kind of the device that the model computes on."""
        return self._resources.segmenter.device_name

    @property
    def precision(self) -> str:
        """What the network computes in, and why."""
        return str(self._resources.segmenter.precision)

    @property
    def fast_path(self) -> str:
        """Whether the fast model is used, see `fast_path`."""
        return self._resources.segmenter.fast.note

    @property
    def batch_size(self) -> int:
        """The batch size in use now."""
        return self._resources.segmenter.batch_size.current

    def hang(self) -> Hang | None:
        """Return images that take longer than the spec allows, None without any."""
        return self._resources.watchdog.hang()

    def totals(self) -> WorkerTotals:
        """Return the work so far, for the metrics."""
        return self._counter.totals(batch_size=self.batch_size)

    def report(self) -> WorkerReport:
        """Return what the worker has done so far and does now."""
        seconds, cause, cause_s = self._resources.model_time.so_far()
        gpu_share, gpu_bytes = self._device_use.read()
        tiles_done, tiles_total = self._counter.tiles_in_work
        return WorkerReport(
            tuple(round(each, 3) for each in seconds),
            cause,
            round(cause_s, 3),
            images=self._counter.images,
            batch_images=self._resources.model.batch_images,
            batch_slots=self._resources.model.batch_slots,
            memory_bytes=resident_bytes(),
            gpu_share=gpu_share,
            gpu_bytes=gpu_bytes,
            tiles_done=tiles_done,
            tiles_total=tiles_total,
        )

    def process(
        self, shard: Shard, assignment: Assignment, *, claim: CommitClaim, on_images: Callable[[int], None]
    ) -> ShardResult | PartialResult:
        """Segment the shard's images, or the assigned ones, and commit them unless the driver does.

        Args:
            claim: the attempt's right to commit.
            on_images: called with the number of further images whose outcome is known.

        Raises:
            StorageError: images cannot be read for now; never raised by the last attempt.
            CommitError: the tables cannot be written.
            AbandonedError: another attempt commits.
            OrphanedError: the driver sent no heartbeat for too long.
        """
        with self._resources.model_time.shard() as shard_time:
            result = self._process(shard, assignment, shard_time, claim=claim, on_images=on_images)
        if isinstance(result, PartialResult):
            return result
        return replace(result, worker=self.report())

    def _process(
        self,
        shard: Shard,
        assignment: Assignment,
        shard_time: ShardTime,
        *,
        claim: CommitClaim,
        on_images: Callable[[int], None],
    ) -> ShardResult | PartialResult:
        start = time.perf_counter()
        self._resources.storage.signed.add(shard.signed)
        # Decoded here, before many threads look at them.
        shard = replace(shard, images=tuple(shard.images))
        positions = assignment.positions or tuple(range(len(shard.images)))
        stages = ShardPipeline(
            self._resources,
            shard,
            positions=positions,
            model_label=self._model_label,
            is_last_attempt=assignment.is_last,
            claim=claim,
            on_images=self._counter.counted(on_images),
            shard_time=shard_time,
            map_tables=self._map_tables,
        )
        with (
            self._counter.track(stages.clock, stages.bytes_read),
            self._counter.track_tiles(stages.tiles_in_work),
            traced_stages(stages.clock, assignment.traceparent),
        ):
            outcomes = stages.run()
            shard_time.writing()
            with stages.clock.time("write"):
                images = Shard(shard.index, tuple(shard.images[position] for position in positions))
                image_rows, instance_rows = self._rows(images, outcomes, assignment.attempt)
                encoded = [each for each in outcomes if isinstance(each, EncodedImage)]
                map_rows = joined((each.map_rows for each in encoded), self._map_tables)
                if assignment.is_committed_by_worker:
                    claim.take()
                    self._commit(shard, image_rows, instance_rows, map_rows, claim)
        report = ShardResult(
            index=shard.index,
            statuses=dict(Counter(row.status for row in image_rows)),
            instances=len(instance_rows),
            stage_s=stages.clock.seconds(),
            bytes_read=stages.bytes_read.value,
            seconds=time.perf_counter() - start,
            failures=tuple(each for each in outcomes if isinstance(each, ImageFailure)),
            repeats=sum(
                isinstance(each, ImageFailure) and bool(ref.failed_before)
                for ref, each in zip(images.images, outcomes, strict=True)
            ),
            batch_size=self.batch_size,
            memory_bytes=resident_bytes(),
        )
        if assignment.is_committed_by_worker:
            return report
        return PartialResult(shard.index, positions, report, tuple(image_rows), tuple(instance_rows), map_rows)

    def _rows(
        self, shard: Shard, outcomes: "list[EncodedImage | ImageFailure]", attempt: int
    ) -> tuple[list[ImageRow], list[InstanceRow]]:
        image_rows: list[ImageRow] = []
        instance_rows: list[InstanceRow] = []
        for ref, outcome in zip(shard.images, outcomes, strict=True):
            build = partial(
                build_image_row,
                ref,
                shard=shard.index,
                model=self._model_label,
                attempts=attempt,
                read=outcome.read,
            )
            if isinstance(outcome, ImageFailure):
                image_rows.append(build(status=outcome.status, error=outcome.reason))
            else:
                image_rows.append(build(size=outcome.size, instances=len(outcome.rows)))
                instance_rows.extend(outcome.rows)
        return image_rows, instance_rows

    def _commit(
        self,
        shard: Shard,
        image_rows: list[ImageRow],
        instance_rows: list[InstanceRow],
        map_rows: MapRows,
        claim: CommitClaim,
    ) -> None:
        try:
            commit_shard(
                self._resources.storage,
                self._output_uri,
                self._run,
                shard.index,
                image_rows,
                instance_rows,
                maps=map_rows,
                confirm=claim.confirm,
            )
        except HtcError as error:
            raise CommitError(str(error)) from error
