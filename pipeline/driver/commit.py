"""Commits by the driver, of shards that no worker commits."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.driver.assemble import assemble_maps, assemble_rows, build_report
from pipeline.errors import HtcError, RunError
from pipeline.inputs.shard import Shard
from pipeline.job_spec.map_tables import MapTable
from pipeline.messages import ShardOutcome, ShardResult
from pipeline.output.commit import commit_shard, images_part
from pipeline.storage.storage import Storage


@dataclass(frozen=True)
class DriverCommit:
    """A shard whose rows are committed.

    was_committed: by a worker that died after its commit and before its report; the rows are that worker's, and may
        differ from `report`.
    """

    report: ShardResult
    was_committed: bool


class ShardCommitter:
    """Writes shards of one run into its tables."""

    def __init__(
        self, storage: Storage, output_uri: str, run: str, *, model: str, map_tables: Sequence[MapTable] = ()
    ) -> None:
        """`model`: its name, for the rows. `map_tables`: the tables of maps that the run has."""
        self._storage = storage
        self._output_uri = output_uri
        self._run = run
        self._model = model
        self._map_tables = map_tables

    def commit(self, shard: Shard, settled: ShardOutcome) -> DriverCommit:
        """Commit a shard whose images are all settled, unless a worker has committed it.

        Raises:
            RunError: the rows cannot be written.
        """
        rows = assemble_rows(shard, settled, model=self._model)
        try:
            was_committed = self._storage.exists(images_part(self._output_uri, self._run, shard.index))
            if not was_committed:
                maps = assemble_maps(shard, settled, self._map_tables)
                commit_shard(self._storage, self._output_uri, self._run, shard.index, *rows, maps=maps)
        except HtcError as error:
            raise RunError(
                f"The tables cannot be written: {error} What is committed stays. Run the same command again to resume."
            ) from error
        return DriverCommit(build_report(shard, settled, rows), was_committed)
