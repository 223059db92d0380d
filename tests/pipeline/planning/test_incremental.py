"""Which images an incremental run does: those that are new, changed, not ok before, or of another model."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError, SpecError, StorageError
from pipeline.output.results import open_results
from tests.support.builders.planned_runs import OTHER_MODEL, IncrementalRuns, counts_of, names_of, read_deletions


@pytest.fixture
def runs(tmp_path: Path) -> IncrementalRuns:
    """Five images, all ok after a first run."""
    runs = IncrementalRuns(tmp_path)
    runs.put("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "readme.txt")
    assert runs.run_again() == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]
    return runs


def deleted(runs: IncrementalRuns, run: str) -> list[tuple[str, str | None]]:
    rows = read_deletions(open_results(str(runs.folder / "out")), run)
    return [(Path(row["uri"]).name, row["last_ok_run"]) for row in rows]


def test_without_changes_the_run_is_complete_at_once(runs: IncrementalRuns) -> None:
    run = runs.open()
    assert (run.state, run.is_done, run.image_count, run.shard_count) == ("new", True, 0, 0)
    assert counts_of(run) == {"listed": 5, "unchanged": 5}


def test_new_and_changed_images_are_done_and_deleted_ones_recorded(runs: IncrementalRuns) -> None:
    first = open_results(str(runs.folder / "out")).runs()[0]
    runs.put("b.jpg", content="other")
    runs.put("0.jpg", "f.jpg")
    runs.remove("c.jpg")
    run = runs.open()
    assert names_of(run) == ["0.jpg", "b.jpg", "f.jpg"]
    assert counts_of(run) == {"listed": 6, "new": 2, "changed": 1, "unchanged": 3, "deleted": 1}
    assert deleted(runs, run.name) == [("c.jpg", first)]


def test_deleted_images_that_were_never_ok_have_records_too(runs: IncrementalRuns) -> None:
    runs.put("0.jpg", "1.jpg", "2.jpg")
    runs.run_again({"0.jpg": "unreadable"})
    second = open_results(str(runs.folder / "out")).runs()[-1]
    runs.remove("0.jpg", "2.jpg")
    run = runs.open()
    assert sorted(deleted(runs, run.name)) == [("0.jpg", None), ("2.jpg", second)]


def test_what_the_last_run_did_is_not_done_again(runs: IncrementalRuns) -> None:
    runs.put("b.jpg", content="other")
    assert runs.run_again() == ["b.jpg"]
    assert runs.run_again() == []
    # The newest row is of the other version now.
    runs.put("b.jpg")
    assert runs.run_again() == ["b.jpg"]


def test_an_image_that_comes_back_is_new(runs: IncrementalRuns) -> None:
    runs.remove("c.jpg")
    assert runs.run_again() == []
    # One deletion record, not one in every run.
    run = runs.open()
    assert (counts_of(run), deleted(runs, run.name)) == ({"listed": 4, "unchanged": 4}, [])
    runs.commit(run)
    runs.put("c.jpg")
    assert runs.run_again() == ["c.jpg"]
    assert runs.run_again() == []


@pytest.mark.parametrize(
    ("retry", "again"),
    [("transient", ["c.jpg", "d.jpg"]), ("none", []), ("failed", ["b.jpg", "c.jpg", "d.jpg"])],
)
def test_images_that_were_not_ok_are_retried_as_the_spec_says(
    runs: IncrementalRuns, retry: str, again: list[str]
) -> None:
    runs.put("b.jpg", "c.jpg", "d.jpg", content="bad")
    runs.run_again({"b.jpg": "unreadable", "c.jpg": "failed", "d.jpg": "missing"})
    if retry == "failed":
        # Only failures are selected.
        runs.put("a.jpg", "z.jpg", content="new")
    run = runs.open(select__retry=retry)
    assert names_of(run) == again
    counts = counts_of(run)
    assert counts.get("retried", 0) == len(again)
    assert (counts.get("not_ok", 0), counts.get("not_selected", 0)) == {
        "transient": (1, 0),
        "none": (3, 0),
        "failed": (0, 2),
    }[retry]


def test_a_failure_is_retried_until_it_is_ok(runs: IncrementalRuns) -> None:
    runs.put("b.jpg", content="bad")
    runs.run_again({"b.jpg": "failed"})
    assert runs.run_again({"b.jpg": "failed"}) == ["b.jpg"]
    assert runs.run_again() == ["b.jpg"]
    assert runs.run_again() == []


def test_images_over_a_limit_are_retried_under_other_limits(runs: IncrementalRuns) -> None:
    runs.put("b.jpg", content="large")
    runs.run_again({"b.jpg": "too_large"})
    assert runs.run_again() == []
    assert runs.run_again(images__max_pixels=10**9) == ["b.jpg"]


def test_another_model_does_everything_again_and_so_does_the_first_one_then(runs: IncrementalRuns) -> None:
    run = runs.open(fingerprint=OTHER_MODEL)
    assert counts_of(run) == {"listed": 5, "other_model": 5}
    runs.commit(run)
    assert runs.run_again(fingerprint=OTHER_MODEL) == []
    assert len(runs.run_again()) == 5
    assert len(runs.run_again(model__precision="bf16")) == 5


def test_images_without_a_table_that_is_asked_for_are_done_again(runs: IncrementalRuns) -> None:
    """And those that have more than what is asked for are not."""
    run = runs.open(model__semantic=True)
    assert counts_of(run) == {"listed": 5, "other_model": 5}
    runs.commit(run)
    assert runs.run_again(model__semantic=True) == []
    assert runs.run_again() == []
    assert len(runs.run_again(model__semantic=True, model__panoptic=True)) == 5
    assert runs.run_again(model__panoptic=True) == []


@pytest.mark.parametrize(
    "where",
    [
        "SELECT image_id FROM images WHERE parse_filename(uri) IN ('a.jpg', 'd.jpg')",
        "SELECT uri FROM current WHERE parse_filename(uri) IN ('a.jpg', 'd.jpg'); -- twice\n",
        "SELECT Uri, 1 AS n FROM images, range(3) WHERE uri LIKE '%/a.jpg' OR uri LIKE '%/d.jpg'",
    ],
)
def test_of_images_done_by_another_model_only_those_that_sql_selects_are_done(
    runs: IncrementalRuns, where: str
) -> None:
    options: dict[str, Any] = {"fingerprint": OTHER_MODEL, "select__where": where}
    runs.put("b.jpg", content="other")
    runs.put("f.jpg")
    run = runs.open(**options)
    assert names_of(run) == ["a.jpg", "b.jpg", "d.jpg", "f.jpg"]
    assert counts_of(run) == {"listed": 6, "new": 1, "changed": 1, "other_model": 2, "not_selected": 2}
    runs.commit(run)
    assert runs.run_again(**options) == []
    assert runs.run_again(fingerprint=OTHER_MODEL) == ["c.jpg", "e.jpg"]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT uri FROM imags", "imags"),
        ("SELECT category FROM instances", "image_id or uri, and returns category"),
        ("SELECT uri FROM read_csv('/etc/passwd')", "disabled"),
        ("SELECT 'x' AS image_id", "Could not convert"),
        ("CREATE TABLE t (a INT)", "SELECT"),
        ("-- nothing", "SELECT"),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_wrong_sql_is_refused_before_anything_is_written(
    runs: IncrementalRuns, tmp_path: Path, where: str, words: str, is_first: bool
) -> None:
    output = str(tmp_path / "new") if is_first else str(tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SpecError, match=words) as caught:
        runs.open(select__where=where, output__uri=output)
    assert str(caught.value).startswith("select.where cannot be used: ")
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_listing_that_lost_too_many_images_is_refused(runs: IncrementalRuns) -> None:
    runs.remove("a.jpg", "b.jpg", "c.jpg")
    with pytest.raises(InputError, match=r"3 of the 5 images .* are not listed any more, .*--max-deleted-share"):
        runs.open()
    assert len(open_results(str(runs.folder / "out")).runs()) == 1
    run = runs.open(select__max_deleted_share=0.6)
    assert counts_of(run) == {"listed": 2, "unchanged": 2, "deleted": 3}


def test_an_input_that_became_empty_is_refused_or_recorded_as_deleted(runs: IncrementalRuns) -> None:
    runs.remove("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")
    with pytest.raises(InputError, match="5 of the 5 images"):
        runs.open()
    run = runs.open(select__max_deleted_share=1.0)
    assert (run.is_done, counts_of(run)) == (True, {"deleted": 5})
    runs.commit(run)
    with pytest.raises(InputError, match="no images"):
        runs.open()


def test_a_missing_input_is_refused_before_the_tables_are_read(runs: IncrementalRuns) -> None:
    (runs.folder / "in").rename(runs.folder / "moved")
    for path in (runs.folder / "out/images").rglob("*.parquet"):
        path.write_text("no table")
    with pytest.raises(InputError, match="does not exist"):
        runs.open()


@pytest.mark.parametrize("content", [b"no table", b""])
def test_a_damaged_part_is_named(runs: IncrementalRuns, content: bytes) -> None:
    next((runs.folder / "out/images").rglob("*.parquet")).write_bytes(content)
    with pytest.raises(StorageError, match=r"part-0000.\.parquet is damaged"):
        runs.open()


def test_images_of_another_input_do_not_count_as_deleted(runs: IncrementalRuns) -> None:
    other = IncrementalRuns(runs.folder / "other")
    other.put("x.jpg")
    other.days = 10
    run = other.open(output__uri=str(runs.folder / "out"))
    assert counts_of(run) == {"listed": 1, "new": 1}
    runs.days = 20
    other.commit(run)
    assert runs.run_again() == []
    assert counts_of(runs.open(input__limit=2)) == {"listed": 2, "unchanged": 2}
    assert counts_of(runs.open(input__glob="[ab]*")) == {"listed": 2, "unchanged": 2}


def test_entries_of_a_text_listing_are_statted(runs: IncrementalRuns) -> None:
    listing = runs.folder / "in.txt"
    listing.write_text("in/a.jpg\nin/b.jpg\nin/gone.jpg\n")
    source = {"input__uri": str(listing)}
    assert runs.run_again({"gone.jpg": "missing"}, **source) == ["gone.jpg"]
    runs.put("b.jpg", content="other")
    # An entry that does not exist is retried in every run.
    assert runs.run_again({"gone.jpg": "missing"}, **source) == ["b.jpg", "gone.jpg"]
    listing.write_text("in/a.jpg\nin/b.jpg\n")
    assert counts_of(runs.open(**source)) == {"listed": 2, "unchanged": 2, "deleted": 1}
