"""Which images a night does: exactly those that are new, changed, not ok before, or of another model."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError, SpecError, StorageError
from pipeline.output.results import open_results
from tests.support.builders.planned_runs import OTHER_MODEL, IncrementalRuns, counts_of, names_of, read_deletions


@pytest.fixture
def nights(tmp_path: Path) -> IncrementalRuns:
    """Five images, all ok after a first night."""
    nights = IncrementalRuns(tmp_path)
    nights.put("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "readme.txt")
    assert nights.night() == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]
    return nights


def deleted(nights: IncrementalRuns, run: str) -> list[tuple[str, str | None]]:
    rows = read_deletions(open_results(str(nights.folder / "out")), run)
    return [(Path(row["uri"]).name, row["last_ok_run"]) for row in rows]


def test_nothing_has_changed_and_the_night_is_complete(nights: IncrementalRuns) -> None:
    run = nights.open()
    assert (run.state, run.is_done, run.image_count, run.shard_count) == ("new", True, 0, 0)
    assert counts_of(run) == {"listed": 5, "unchanged": 5}


def test_new_and_changed_images_are_done_and_deleted_ones_marked(nights: IncrementalRuns) -> None:
    first = open_results(str(nights.folder / "out")).runs()[0]
    nights.put("b.jpg", content="other")
    nights.put("0.jpg", "f.jpg")
    nights.remove("c.jpg")
    run = nights.open()
    assert names_of(run) == ["0.jpg", "b.jpg", "f.jpg"]
    assert counts_of(run) == {"listed": 6, "new": 2, "changed": 1, "unchanged": 3, "deleted": 1}
    assert deleted(nights, run.name) == [("c.jpg", first)]


def test_deleted_images_that_were_never_ok_are_marked_beside_others(nights: IncrementalRuns) -> None:
    nights.put("0.jpg", "1.jpg", "2.jpg")
    nights.night({"0.jpg": "unreadable"})
    second = open_results(str(nights.folder / "out")).runs()[-1]
    nights.remove("0.jpg", "2.jpg")
    run = nights.open()
    assert sorted(deleted(nights, run.name)) == [("0.jpg", None), ("2.jpg", second)]


def test_what_was_done_last_night_is_not_done_again(nights: IncrementalRuns) -> None:
    nights.put("b.jpg", content="other")
    assert nights.night() == ["b.jpg"]
    assert nights.night() == []
    # The newest row is of the other version now.
    nights.put("b.jpg")
    assert nights.night() == ["b.jpg"]


def test_an_image_that_comes_back_is_new(nights: IncrementalRuns) -> None:
    nights.remove("c.jpg")
    assert nights.night() == []
    # Marked once, not every night.
    run = nights.open()
    assert (counts_of(run), deleted(nights, run.name)) == ({"listed": 4, "unchanged": 4}, [])
    nights.commit(run)
    nights.put("c.jpg")
    assert nights.night() == ["c.jpg"]
    assert nights.night() == []


@pytest.mark.parametrize(
    ("retry", "again"),
    [("transient", ["c.jpg", "d.jpg"]), ("none", []), ("failed", ["b.jpg", "c.jpg", "d.jpg"])],
)
def test_what_was_not_ok_is_done_again_as_the_spec_says(nights: IncrementalRuns, retry: str, again: list[str]) -> None:
    nights.put("b.jpg", "c.jpg", "d.jpg", content="bad")
    nights.night({"b.jpg": "unreadable", "c.jpg": "failed", "d.jpg": "missing"})
    if retry == "failed":
        # Only failures are asked for.
        nights.put("a.jpg", "z.jpg", content="new")
    run = nights.open(select__retry=retry)
    assert names_of(run) == again
    counts = counts_of(run)
    assert counts.get("retried", 0) == len(again)
    assert (counts.get("not_ok", 0), counts.get("not_selected", 0)) == {
        "transient": (1, 0),
        "none": (3, 0),
        "failed": (0, 2),
    }[retry]


def test_a_failure_is_ok_once_it_is_ok(nights: IncrementalRuns) -> None:
    nights.put("b.jpg", content="bad")
    nights.night({"b.jpg": "failed"})
    assert nights.night({"b.jpg": "failed"}) == ["b.jpg"]
    assert nights.night() == ["b.jpg"]
    assert nights.night() == []


def test_other_limits_give_bad_images_another_chance(nights: IncrementalRuns) -> None:
    nights.put("b.jpg", content="large")
    nights.night({"b.jpg": "too_large"})
    assert nights.night() == []
    assert nights.night(images__max_pixels=10**9) == ["b.jpg"]


def test_another_model_does_everything_again_and_so_does_going_back(nights: IncrementalRuns) -> None:
    run = nights.open(fingerprint=OTHER_MODEL)
    assert counts_of(run) == {"listed": 5, "other_model": 5}
    nights.commit(run)
    assert nights.night(fingerprint=OTHER_MODEL) == []
    assert len(nights.night()) == 5
    assert len(nights.night(model__precision="bf16")) == 5


@pytest.mark.parametrize(
    "where",
    [
        "SELECT image_id FROM images WHERE parse_filename(uri) IN ('a.jpg', 'd.jpg')",
        "SELECT uri FROM current WHERE parse_filename(uri) IN ('a.jpg', 'd.jpg'); -- twice\n",
        "SELECT Uri, 1 AS n FROM images, range(3) WHERE uri LIKE '%/a.jpg' OR uri LIKE '%/d.jpg'",
    ],
)
def test_of_another_models_images_only_those_that_sql_selects(nights: IncrementalRuns, where: str) -> None:
    options: dict[str, Any] = {"fingerprint": OTHER_MODEL, "select__where": where}
    nights.put("b.jpg", content="other")
    nights.put("f.jpg")
    run = nights.open(**options)
    assert names_of(run) == ["a.jpg", "b.jpg", "d.jpg", "f.jpg"]
    assert counts_of(run) == {"listed": 6, "new": 1, "changed": 1, "other_model": 2, "not_selected": 2}
    nights.commit(run)
    assert nights.night(**options) == []
    assert nights.night(fingerprint=OTHER_MODEL) == ["c.jpg", "e.jpg"]


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
def test_wrong_sql_is_a_sentence_before_anything_is_written(
    nights: IncrementalRuns, tmp_path: Path, where: str, words: str, is_first: bool
) -> None:
    output = str(tmp_path / "new") if is_first else str(tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SpecError, match=words) as caught:
        nights.open(select__where=where, output__uri=output)
    assert str(caught.value).startswith("select.where cannot be used: ")
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_listing_that_lost_too_much_is_refused_with_the_way_out(nights: IncrementalRuns) -> None:
    nights.remove("a.jpg", "b.jpg", "c.jpg")
    with pytest.raises(InputError, match=r"3 of the 5 images .* are not listed any more, .*--max-deleted-share"):
        nights.open()
    assert len(open_results(str(nights.folder / "out")).runs()) == 1
    run = nights.open(select__max_deleted_share=0.6)
    assert counts_of(run) == {"listed": 2, "unchanged": 2, "deleted": 3}


def test_an_input_that_is_empty_by_now_is_refused_or_marked(nights: IncrementalRuns) -> None:
    nights.remove("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")
    with pytest.raises(InputError, match="5 of the 5 images"):
        nights.open()
    run = nights.open(select__max_deleted_share=1.0)
    assert (run.is_done, counts_of(run)) == (True, {"deleted": 5})
    nights.commit(run)
    with pytest.raises(InputError, match="no images"):
        nights.open()


def test_an_input_that_is_not_there_is_told_before_the_tables_are_read(nights: IncrementalRuns) -> None:
    (nights.folder / "in").rename(nights.folder / "moved")
    for path in (nights.folder / "out/images").rglob("*.parquet"):
        path.write_text("no table")
    with pytest.raises(InputError, match="does not exist"):
        nights.open()


@pytest.mark.parametrize("content", [b"no table", b""])
def test_a_damaged_part_is_named(nights: IncrementalRuns, content: bytes) -> None:
    next((nights.folder / "out/images").rglob("*.parquet")).write_bytes(content)
    with pytest.raises(StorageError, match=r"part-0000.\.parquet is damaged"):
        nights.open()


def test_images_of_another_input_are_not_taken_for_deleted(nights: IncrementalRuns) -> None:
    other = IncrementalRuns(nights.folder / "other")
    other.put("x.jpg")
    other.nights = 10
    run = other.open(output__uri=str(nights.folder / "out"))
    assert counts_of(run) == {"listed": 1, "new": 1}
    nights.nights = 20
    other.commit(run)
    assert nights.night() == []
    assert counts_of(nights.open(input__limit=2)) == {"listed": 2, "unchanged": 2}
    assert counts_of(nights.open(input__glob="[ab]*")) == {"listed": 2, "unchanged": 2}


def test_a_text_listing_is_asked_for_versions(nights: IncrementalRuns) -> None:
    listing = nights.folder / "in.txt"
    listing.write_text("in/a.jpg\nin/b.jpg\nin/gone.jpg\n")
    source = {"input__uri": str(listing)}
    assert nights.night({"gone.jpg": "missing"}, **source) == ["gone.jpg"]
    nights.put("b.jpg", content="other")
    # What a listing names and nobody has is tried again each night.
    assert nights.night({"gone.jpg": "missing"}, **source) == ["b.jpg", "gone.jpg"]
    listing.write_text("in/a.jpg\nin/b.jpg\n")
    assert counts_of(nights.open(**source)) == {"listed": 2, "unchanged": 2, "deleted": 1}
