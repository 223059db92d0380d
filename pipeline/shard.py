"""One shard's attempt inside a worker: through the stages, into rows, committed."""

import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from pipeline.borders import CommitError
from pipeline.config import JobSpec
from pipeline.errors import HtcError
from pipeline.plan import Shard
from pipeline.reports import ImageFailure, ShardReport
from pipeline.segmenter import Segmenter
from pipeline.stages import EncodedImage, ShardStages, WorkerTools
from pipeline.tables import ImageRow, InstanceRow, build_image_row, commit_shard


class ShardProcessor:
    """Turns shards into committed tables with one model; `process` may run on two threads at once."""

    def __init__(self, segmenter: Segmenter, spec: JobSpec, *, run: str, model_label: str, cpus: float) -> None:
        """`cpus`: cores this worker may use; that many images are decoded at once."""
        self._run = run
        self._tools = WorkerTools(segmenter, spec, model_label=model_label, cpus=cpus)

    @property
    def device_name(self) -> str:
        """The device's kind."""
        return self._tools.segmenter.device.type

    @property
    def batch_size(self) -> int:
        """The batch size in use now."""
        return self._tools.segmenter.batch_size.current

    def process(
        self, shard: Shard, *, attempt: int, is_last_attempt: bool, on_images: Callable[[int], None]
    ) -> ShardReport:
        """Segment the shard's images and commit them.

        Args:
            on_images: told the number of further images whose outcome is known.

        Raises:
            StorageError: images cannot be read for now; never raised by the last attempt.
            CommitError: the tables cannot be written.
        """
        start = time.perf_counter()
        work = ShardStages(self._tools, shard, is_last_attempt=is_last_attempt, on_images=on_images)
        outcomes = work.outcomes()
        with work.clock.time("write"):
            image_rows, instance_rows = self._rows(shard, outcomes, attempt)
            self._commit(shard, image_rows, instance_rows)
        return ShardReport(
            index=shard.index,
            statuses=dict(Counter(row.status for row in image_rows)),
            instances=len(instance_rows),
            stage_s=work.clock.seconds(),
            bytes_read=work.bytes_read.value,
            seconds=time.perf_counter() - start,
            failures=tuple(each for each in outcomes if isinstance(each, ImageFailure)),
            batch_size=self.batch_size,
        )

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
                model=self._tools.model_label,
                attempts=attempt,
                read=outcome.read,
            )
            if isinstance(outcome, ImageFailure):
                image_rows.append(build(status=outcome.status, error=outcome.reason))
            else:
                image_rows.append(build(size=outcome.size, instances=len(outcome.rows)))
                instance_rows.extend(outcome.rows)
        return image_rows, instance_rows

    def _commit(self, shard: Shard, image_rows: list[ImageRow], instance_rows: list[InstanceRow]) -> None:
        try:
            commit_shard(
                self._tools.storage,
                self._tools.spec.output.uri,
                self._run,
                shard.index,
                image_rows,
                instance_rows,
            )
        except HtcError as error:
            raise CommitError(str(error)) from error
