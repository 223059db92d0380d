"""The survey of runs, for `htc runs` and `htc prune`."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.maintenance.publications import Publication, forget_publication, note_publication, read_publications
from pipeline.maintenance.survey import RunInfo, survey_runs
from pipeline.output.results import open_results
from pipeline.runs.lease import SHORT_WATCH_S, LeaseHolder, take_lease
from pipeline.storage.storage import Storage
from tests.support.builders.finished_runs import finish_run, write_inputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete run with two bad images of six, and one of which a shard of three is done."""
    images = write_inputs(tmp_path / "in", 6)
    finish_run(images, str(tmp_path / "out"), "whole", is_ok=lambda uri: uri[-5] not in "14")
    finish_run(images, str(tmp_path / "out"), "cut", day=1, only_shards=1)
    return tmp_path / "out"


def look(folder: Path, now: datetime | None = None, sleep: Callable[[float], None] | None = None) -> dict[str, RunInfo]:
    watch = sleep or (lambda seconds: pytest.fail(f"waited {seconds} s"))
    return {each.run: each for each in survey_runs(open_results(str(folder)), now=now, sleep=watch)}


def test_counts_and_sizes(folder: Path) -> None:
    found = look(folder)
    whole, cut = found["whole"], found["cut"]
    assert (whole.state, whole.images, whole.ok, whole.failed, whole.instances) == ("complete", 6, 4, 2, 8)
    assert (cut.state, cut.images, cut.images_done, cut.ok, cut.instances) == ("incomplete", 6, 2, 2, 4)
    on_disk = [
        path for path in folder.rglob("*") if path.is_file() and ("run=whole" in str(path) or "/whole/" in str(path))
    ]
    assert (whole.files, whole.bytes) == (len(on_disk), sum(path.stat().st_size for path in on_disk))


def test_a_complete_run_that_lost_its_summary_is_counted(folder: Path) -> None:
    (folder / "runs" / "whole" / "summary.json").unlink()
    whole = look(folder)["whole"]
    assert (whole.state, whole.ok, whole.failed, whole.instances) == ("complete", 4, 2, 8)


def test_a_running_run_has_its_holder(folder: Path) -> None:
    lease = take_lease(Storage(), str(folder), "cut")
    try:
        found = look(folder)
        assert found["cut"].state == "running"
        assert "process " in found["cut"].holder
        assert found["whole"].holder == ""
    finally:
        lease.release()


@pytest.mark.parametrize("off", [timedelta(days=365), timedelta(hours=1), timedelta(hours=-1), timedelta(days=-365)])
def test_a_lease_with_an_implausible_time_is_judged_by_whether_it_changes(folder: Path, off: timedelta) -> None:
    """Leases of several drivers are watched together, once."""
    now = datetime(2026, 6, 1, tzinfo=UTC)
    beat = (now + off).isoformat()
    holder = LeaseHolder("t", "far-away", 4711, "", beat, beat)
    for run in ("cut", "whole"):
        (folder / "runs" / run / "lease.json").write_bytes(holder.encode())
    waits: list[float] = []
    found = look(folder, now, waits.append)
    assert {run: each.holder for run, each in found.items()} == {"cut": "", "whole": ""}
    assert (found["cut"].state, waits) == ("incomplete", [SHORT_WATCH_S])

    def renew(seconds: float) -> None:
        (folder / "runs" / "cut" / "lease.json").write_bytes(replace(holder, beats=1).encode())

    found = look(folder, now, renew)
    assert (found["cut"].state, found["cut"].holder, found["whole"].holder) == (
        "running",
        "host far-away, process 4711",
        "",
    )


def test_an_unreadable_lease_counts_as_held(folder: Path) -> None:
    (folder / "runs" / "cut" / "lease.json").write_text('{"owner": "somebody"}')
    assert look(folder)["cut"].state == "running"


def test_publications_are_recorded_by_catalog_and_namespace(folder: Path) -> None:
    storage, output = Storage(), str(folder)
    first, second = Publication("sqlite:///a.db", "htc", "2026-03-01"), Publication("prod", "nights", "2026-03-02")
    note_publication(storage, output, "whole", first)
    note_publication(storage, output, "whole", second)
    note_publication(storage, output, "whole", Publication("prod", "nights", "2026-03-02", {"images": 7}))
    assert read_publications(storage, output, "whole")[1].snapshots == {"images": 7}
    assert [each.catalog for each in look(folder)["whole"].publications] == ["sqlite:///a.db", "prod"]
    forget_publication(storage, output, "whole", first.place)
    forget_publication(storage, output, "whole", second.place)
    assert read_publications(storage, output, "whole") == ()
    assert not (folder / "runs" / "whole" / "published.json").exists()


def test_publications_of_a_later_version_are_refused(folder: Path) -> None:
    note = folder / "runs" / "whole" / "published.json"
    note.write_text(json.dumps({"publications": [{"catalogue": "x"}]}))
    with pytest.raises(StorageError, match=r"published\.json is damaged, or of a later version"):
        look(folder)
