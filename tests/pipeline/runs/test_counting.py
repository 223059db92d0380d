"""A run's totals from recorded counts are those of its rows, whatever happened in between."""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings

from pipeline.errors import DamagedFileError, ImageStatus, StorageError
from pipeline.maintenance.compaction import compact_run
from pipeline.messages import ImageFailure, ShardResult
from pipeline.output.commit import commit_shard, images_part
from pipeline.output.parts import committed_shards
from pipeline.output.rows import ImageRow
from pipeline.runs import counting
from pipeline.runs.counting import CountsRecorder, count_recorded, count_run, count_shards
from pipeline.runs.row_counts import RowCounts
from pipeline.runs.shard_counts import (
    COUNTS_SCHEMA,
    counts_of_reports,
    counts_uri,
    encode_counts,
    list_counts,
    read_counts,
)
from pipeline.storage.storage import Storage
from tests.support.builders.finished_runs import HookedStorage, PowerCutError

RUN = "r"
SHARDS = 10
HISTORIES = 14 * settings.default.max_examples // 100
STATUSES = get_args(ImageStatus)
# Every third image was not ok before the run.
REPEATS = np.arange(0, 1000, 3)


def commit(storage: Storage, output: str, shard: int, dice: Random) -> ShardResult:
    """Commit a shard of a few random images, and return its worker's report."""
    rows = []
    for at in range(dice.randint(1, 4)):
        status = dice.choice(STATUSES) if dice.random() < 0.4 else "ok"
        error = None if status == "ok" else f"reason {dice.randint(0, 3)}"
        found = dice.randint(0, 5) if status == "ok" else 0
        number = 10 * shard + at
        rows.append(
            ImageRow(
                image_id=number,
                uri=f"in/{number}.jpg",
                etag=None,
                bytes=None,
                width=None,
                height=None,
                shard=shard,
                status=status,
                error=error,
                attempts=1,
                instances=found,
                model="m",
                changed=None,
            )
        )
    commit_shard(storage, output, RUN, shard, rows, [])
    failed = [row for row in rows if row.status != "ok"]
    return ShardResult(
        shard,
        {status: count for status in STATUSES if (count := sum(row.status == status for row in rows))},
        sum(row.instances for row in rows),
        {},
        0,
        0.0,
        tuple(ImageFailure(row.uri, row.status, row.error or "") for row in failed),
        sum(row.image_id in REPEATS for row in failed),
    )


def totals(rows: RowCounts) -> dict[str, object]:
    """Everything that a summary and the error budget take from the counts."""
    return {
        "statuses": rows.statuses,
        "errors": rows.errors,
        "new": rows.new_errors,
        "instances": rows.instances,
        "reasons": rows.reasons,
        "examples": sorted(str(each) for each in rows.examples),
    }


def from_rows(storage: Storage, output: str) -> dict[str, object]:
    """Count every committed row, without the recorded counts."""
    committed = committed_shards(storage, output, RUN)
    counted = RowCounts()
    for table in count_shards(
        storage, output, RUN, committed, is_wanted=committed.mask(SHARDS), find_repeats=lambda: REPEATS
    ):
        counted.add_counts(table)
    return totals(counted)


def from_counts(storage: Storage, output: str) -> dict[str, object]:
    return totals(count_run(storage, output, RUN, shard_count=SHARDS, find_repeats=lambda: REPEATS))


def session(storage: Storage, output: str, dice: Random) -> None:
    """Do what a driver does: read what is recorded, void and record, then commit what is left and record that."""
    committed = committed_shards(storage, output, RUN)
    is_committed = committed.mask(SHARDS)
    recorded = count_recorded(storage, output, RUN, is_committed)
    recorder = CountsRecorder(
        storage,
        output,
        RUN,
        check_lease=lambda: None,
        next_number=recorded.next_number,
        recorded=int(recorded.is_counted.sum()),
        least_shards=dice.randint(1, 4),
    )
    recorder.void(recorded.voided)
    left = is_committed & ~recorded.is_counted
    for counts in count_shards(storage, output, RUN, committed, is_wanted=left, find_repeats=lambda: REPEATS):
        recorder.add_counts(counts)
    shards = committed.missing(0, SHARDS)
    dice.shuffle(shards)
    for shard in shards[: dice.randint(1, SHARDS)]:
        report = commit(storage, output, shard, dice)
        # A worker may die between its commit and its report.
        if dice.random() < 0.8:
            recorder.add(report)
    recorder.flush()


def disturb(storage: Storage, output: str, dice: Random, seen: set[str]) -> None:
    """Do to the output what other commands, users and bad disks do between sessions."""
    files = list_counts(storage, output, RUN)
    what = dice.choice(["nothing", "set aside", "set aside", "damage", "older form", "compact"])
    if what == "set aside":
        # As `htc doctor --repair` does with damaged parts.
        for shard in committed_shards(storage, output, RUN):
            if dice.random() < 0.5:
                storage.delete(images_part(output, RUN, shard))
    elif what == "damage" and files:
        uri = dice.choice(files).uri
        payload = bytearray(storage.read(uri))
        payload[dice.randrange(len(payload))] ^= 0xFF
        storage.write(uri, bytes(payload))
    elif what == "older form" and files:
        uri = dice.choice(files).uri
        wrong = read_counts_quietly(storage, uri)
        storage.write(uri, encode_counts(wrong.replace_schema_metadata({"htc_counts_version": "0"})))
    elif what == "compact":
        compact_run(storage, output, RUN, target_bytes=dice.choice([3000, 10**6]), check=lambda: None)
    else:
        return
    seen.add(what)


def read_counts_quietly(storage: Storage, uri: str) -> pa.Table:
    """Read a file with counts, or an empty one where it is damaged."""
    with suppress(DamagedFileError):
        return read_counts(storage, uri) or COUNTS_SCHEMA.empty_table()
    return COUNTS_SCHEMA.empty_table()


def test_whatever_happens_the_recorded_counts_are_those_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing here cuts the power of the machine, and hundreds of waits for the disk take most of the time.
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    seen: set[str] = set()
    for seed in range(HISTORIES):
        dice = Random(seed)
        with tempfile.TemporaryDirectory() as output:
            for _ in range(dice.randint(2, 5)):
                storage = HookedStorage(dies_before=dice.randint(0, 40))
                try:
                    session(storage, output, dice)
                    seen.add("ended")
                except PowerCutError:
                    seen.add("killed")
                assert from_counts(Storage(), output) == from_rows(Storage(), output), seed
                seen.update("void" for file in list_counts(Storage(), output, RUN) if file.is_void)
                disturb(Storage(), output, dice, seen)
                assert from_counts(Storage(), output) == from_rows(Storage(), output), seed
            session(Storage(), output, Random(seed))
            assert from_counts(Storage(), output) == from_rows(Storage(), output), seed
    assert seen >= {"ended", "killed", "set aside", "damage", "older form", "compact", "void"}


def recorded_run(output: Path, shards: int = 4) -> list[ShardResult]:
    """Commit shards and record their counts in one file."""
    recorder = CountsRecorder(Storage(), str(output), RUN, check_lease=lambda: None)
    reports = [commit(Storage(), str(output), shard, Random(shard)) for shard in range(shards)]
    for report in reports:
        recorder.add(report)
    recorder.flush(least_shards=1)
    return reports


class Reads(Storage):
    """Counts the files that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def fetch(self, uri: str, *arguments: Any, **options: Any) -> Any:
        self.names.append(uri.rpartition("/")[2].split("-")[0])
        return super().fetch(uri, *arguments, **options)

    def open(self, uri: str) -> Any:
        self.names.append("opened")
        return super().open(uri)


def test_recorded_shards_are_counted_without_reading_a_part(tmp_path: Path) -> None:
    recorded_run(tmp_path)
    storage = Reads()
    assert from_counts(storage, str(tmp_path)) == from_rows(Storage(), str(tmp_path))
    assert storage.names == ["counts"]
    commit(Storage(), str(tmp_path), 9, Random(9))
    storage = Reads()
    assert from_counts(storage, str(tmp_path)) == from_rows(Storage(), str(tmp_path))
    assert storage.names == ["counts", "part"]


def test_a_shard_is_counted_once_when_two_files_have_it(tmp_path: Path) -> None:
    (report, *_) = recorded_run(tmp_path)
    old = ShardResult(report.index, {"ok": 99}, 99, {}, 0, 0.0)
    # A number below that of the file with the right counts.
    assert [file.number for file in list_counts(Storage(), str(tmp_path), RUN)] == [0]
    Storage().write(counts_uri(str(tmp_path), RUN, 1), encode_counts(counts_of_reports([report])))
    Storage().write(
        str(tmp_path / f"runs/{RUN}/counts/counts-00000-00000000.parquet"), encode_counts(counts_of_reports([old]))
    )
    assert from_counts(Storage(), str(tmp_path)) == from_rows(Storage(), str(tmp_path))


@pytest.mark.parametrize("is_damaged", [False, True])
def test_counts_of_a_shard_that_is_done_again_are_void(tmp_path: Path, *, is_damaged: bool) -> None:
    output = str(tmp_path)
    recorded_run(tmp_path)
    Storage().delete(images_part(output, RUN, 2))
    found = count_recorded(Storage(), output, RUN, committed_shards(Storage(), output, RUN).mask(SHARDS))
    assert found.voided == [2]
    recorder = CountsRecorder(Storage(), output, RUN, check_lease=lambda: None, next_number=found.next_number)
    recorder.void(found.voided)
    # The driver is killed before it records the shard again.
    commit(Storage(), output, 2, Random(99))
    if is_damaged:
        (void,) = [file for file in list_counts(Storage(), output, RUN) if file.is_void]
        Storage().write(void.uri, b"x")
    assert from_counts(Storage(), output) == from_rows(Storage(), output)


def test_counts_of_shards_that_were_never_planned_do_not_count(tmp_path: Path) -> None:
    recorded_run(tmp_path)
    later = ShardResult(10**6, {"ok": 1}, 1, {}, 0, 0.0)
    Storage().write(counts_uri(str(tmp_path), RUN, 5), encode_counts(counts_of_reports([later])))
    assert from_counts(Storage(), str(tmp_path)) == from_rows(Storage(), str(tmp_path))


@pytest.mark.parametrize(
    "break_it",
    [
        lambda table: table.set_column(1, "images", pa.array([99] * len(table), pa.int32())),
        lambda table: pa.concat_tables([table, table]),
        lambda table: table.drop_columns(["repeats"]),
        lambda table: table.set_column(
            5, COUNTS_SCHEMA.field("failures"), pa.array([[]] * len(table), COUNTS_SCHEMA.field("failures").type)
        ),
    ],
    ids=["images", "twice", "columns", "failures"],
)
def test_a_file_that_contradicts_itself_is_damaged(tmp_path: Path, break_it: Callable[[pa.Table], pa.Table]) -> None:
    recorded_run(tmp_path, shards=8)
    (file,) = list_counts(Storage(), str(tmp_path), RUN)
    counts = read_counts(Storage(), file.uri)
    Storage().write(file.uri, encode_counts(break_it(counts)))
    with pytest.raises(DamagedFileError, match="counts-00000"):
        read_counts(Storage(), file.uri)
    assert from_counts(Storage(), str(tmp_path)) == from_rows(Storage(), str(tmp_path))


class ReadOnly(Storage):
    """Refuses every write."""

    def write(self, uri: str, payload: bytes) -> None:
        raise StorageError(f"{uri} cannot be written")


def test_counts_that_cannot_be_written_do_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = CountsRecorder(ReadOnly(), str(tmp_path), RUN, check_lease=lambda: None, least_shards=1)
    recorder.add(commit(Storage(), str(tmp_path), 0, Random(0)))
    assert "makes a resume slower" in caplog.text
    assert from_counts(Storage(), str(tmp_path)) == from_rows(Storage(), str(tmp_path))
    # But a shard may not be done again while the counts of its former rows stand.
    with pytest.raises(StorageError):
        recorder.void([0])


def test_a_file_holds_more_shards_the_more_there_are(tmp_path: Path) -> None:
    recorder = CountsRecorder(Storage(), str(tmp_path), RUN, check_lease=lambda: None)
    for shard in range(18_000):
        recorder.add(ShardResult(shard, {"ok": 1}, 0, {}, 0, 0.0))
    files = list_counts(Storage(), str(tmp_path), RUN)
    sizes = [len(read_counts(Storage(), file.uri)) for file in reversed(files)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (counting.LEAST_SHARDS, counting.MOST_SHARDS)
    assert len(sizes) < 70
