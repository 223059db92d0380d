"""`diff_runs`: what became of instances and images, of full and of incremental runs."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.results.diff import Diff, DiffRules, diff_runs
from jobs.results.diff import tables as diff_tables
from pipeline.errors import InputError, SpecError
from pipeline.maintenance.compaction import compact_run
from pipeline.output.results import Results
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from tests.support.builders.compared_runs import ComparedRun, Found, Pictured, write_compared_runs
from tests.support.builders.finished_runs import finish_run, write_inputs
from tests.support.servers.s3_server import S3Server

DOG = Found("dog", 0.9, (0, 0, 10, 10))
CAT = Found("cat", 0.8, (20, 5, 10, 10))


def two_runs(folder: Path, before: dict[str, Pictured], after: dict[str, Pictured], **options: object) -> Diff:
    write_compared_runs(folder, [ComparedRun("monday", before), ComparedRun("tuesday", after)])
    return diff_runs(str(folder), "monday", None, "tuesday", **options)  # type: ignore[arg-type]


def changed(found: Diff) -> dict[str, int]:
    return {kind: count for kind, count in found.counts.items() if count}


def fates(found: Diff) -> dict[str, int]:
    return {fate: count for fate, count in found.images.items() if count}


@pytest.mark.parametrize(
    ("after", "kind"),
    [
        (DOG, "same"),
        (Found("dog", 0.85, (0, 0, 10, 10)), "same"),
        (Found("dog", 0.8, (0, 0, 10, 10)), "same"),
        (Found("dog", 0.79, (0, 0, 10, 10)), "score_changed"),
        (Found("dog", 0.3, (0, 0, 10, 10)), "score_changed"),
        (Found("dog", 0.9, (0, 0, 10, 9)), "same"),
        (Found("dog", 0.9, (0, 0, 10, 8)), "moved"),
        (Found("dog", 0.1, (0, 0, 10, 8)), "moved"),
        (Found("cat", 0.9, (0, 0, 10, 8)), "class_changed"),
    ],
)
def test_a_pair_has_one_kind(tmp_path: Path, after: Found, kind: str) -> None:
    found = two_runs(tmp_path, {"a": Pictured([DOG])}, {"a": Pictured([after])})
    assert changed(found) == {kind: 1}
    assert found.changed_share == (0.0 if kind == "same" else 1.0)


def test_without_a_partner_an_instance_has_vanished_or_appeared(tmp_path: Path) -> None:
    after = Found("dog", 0.9, (0, 0, 10, 4))
    found = two_runs(tmp_path, {"a": Pictured([DOG])}, {"a": Pictured([after])})
    assert changed(found) == {"appeared": 1, "vanished": 1}
    assert (found.total, found.changed) == (2, 2)


def test_instances_below_the_least_score_do_not_count(tmp_path: Path) -> None:
    low = Found("dog", 0.4, (0, 0, 10, 10))
    found = two_runs(tmp_path, {"a": Pictured([low])}, {"a": Pictured([])})
    assert (found.total, found.changed_share) == (0, 0.0)
    # A score is stored in single precision: 0.9 is at least 0.9.
    found = two_runs(tmp_path, {"a": Pictured([DOG])}, {"a": Pictured([])}, rules=DiffRules(min_score=0.9))
    assert changed(found) == {"vanished": 1}


def test_categories_and_what_changed_into_what(tmp_path: Path) -> None:
    before = {"a": Pictured([DOG, CAT]), "b": Pictured([DOG])}
    after = {"a": Pictured([Found("cat", 0.9, DOG.box), CAT]), "b": Pictured([Found("cat", 0.9, DOG.box)])}
    found = two_runs(tmp_path, before, after)
    assert found.class_changes == (("dog", "cat", 2),)
    table = {each.category: (each.in_a, each.in_b, each.changed, each.total) for each in found.categories}
    assert table == {"dog": (2, 0, 2, 2), "cat": (1, 3, 0, 1)}
    assert found.identical == 1
    assert [each.uri_a for each in found.largest] == ["a", "b"]
    change = found.largest[0].changes[0]
    assert (change.category_a, change.category_b, change.instance_a, change.instance_b) == ("dog", "cat", 0, 0)
    assert json.loads(json.dumps(found.to_dict()))["instances"]["class_changed"] == 2


def test_what_became_of_images(tmp_path: Path) -> None:
    one = [DOG]
    before = {
        "added.": Pictured(one),
        "fails": Pictured([DOG, CAT, Found("cat", 0.1, (0, 0, 2, 2))]),
        "mended": Pictured(status="failed"),
        "other content": Pictured(one),
        "other content, fails": Pictured(one),
        "other size": Pictured(one),
        "same": Pictured(one),
        "still bad": Pictured(status="unreadable"),
        "gone": Pictured(one),
    }
    after = {
        "fails": Pictured(status="failed"),
        "mended": Pictured(one),
        "new": Pictured(one),
        "other content": Pictured([], etag="v2"),
        "other content, fails": Pictured(status="unreadable", etag="v2"),
        "other size": Pictured(one, size=(80, 90)),
        "same": Pictured(one),
        "still bad": Pictured(status="unreadable"),
    }
    found = two_runs(tmp_path, before, after)
    assert fates(found) == {
        "compared": 1,
        "added": 1,
        "removed": 2,
        "outcome_changed": 2,
        "content_changed": 2,
        "size_changed": 1,
        "not_ok": 1,
    }
    assert [each.to_dict() for each in found.outcomes] == [
        {"status_a": "failed", "status_b": "ok", "images": 1, "examples": ["mended"]},
        {"status_a": "ok", "status_b": "failed", "images": 1, "examples": ["fails"]},
    ]
    # Those of the image that fails now count as changed, those of the mended one do not count.
    assert (found.lost, found.total, found.changed) == (2, 3, 2)
    assert found.examples["removed"] == ("added.", "gone")
    assert any("other content" in note for note in found.notes)


def test_changed_content_is_compared_where_it_is_asked_for(tmp_path: Path) -> None:
    before, after = {"a": Pictured([DOG])}, {"a": Pictured([CAT], etag="v2")}
    assert fates(two_runs(tmp_path, before, after)) == {"content_changed": 1}
    found = diff_runs(str(tmp_path), "monday", None, "tuesday", rules=DiffRules(is_changed_content_compared=True))
    assert fates(found) == {"compared": 1}
    assert changed(found) == {"appeared": 1, "vanished": 1}


def test_images_without_a_version_are_compared_and_it_is_said(tmp_path: Path) -> None:
    found = two_runs(tmp_path, {"a": Pictured([DOG], etag=None)}, {"a": Pictured([DOG], etag=None)})
    assert fates(found) == {"compared": 1}
    assert any("without a version" in note for note in found.notes)


def incremental_output(folder: Path) -> str:
    """Three runs: all of a, b, c; then b anew with other instances and d; then a changed, c deleted, b failed."""
    write_compared_runs(
        folder,
        [
            ComparedRun("1", {name: Pictured([DOG]) for name in "abc"}),
            ComparedRun("2", {"b": Pictured([CAT]), "d": Pictured([DOG])}, mode="incremental"),
            ComparedRun(
                "3",
                {"a": Pictured([CAT], etag="v2"), "b": Pictured(status="failed")},
                mode="incremental",
                deleted=["c"],
            ),
        ],
    )
    return str(folder)


def test_an_incremental_run_is_compared_by_the_state_that_it_left(tmp_path: Path) -> None:
    output = incremental_output(tmp_path)
    found = diff_runs(output, "1", None, "2")
    assert fates(found) == {"compared": 1, "carried_over": 2, "added": 1}
    assert changed(found) == {"appeared": 1, "vanished": 1}
    assert (found.a.images, found.b.images) == (3, 4)
    # From the second to the third: c was deleted, a has other content, b fails, d was not done again.
    found = diff_runs(output, "2", None, "3")
    assert fates(found) == {"carried_over": 1, "removed": 1, "outcome_changed": 1, "content_changed": 1}
    assert found.lost == 1
    assert [(each.run_a, each.run_b) for each in diff_runs(output, "1", None, "2").largest] == [("1", "2")]
    # The newest state, by its name; against the first run c is removed, and d is new.
    assert fates(diff_runs(output, "2", None, "current")) == fates(found)
    found = diff_runs(output, "1", None, "current")
    assert fates(found) == {"added": 1, "removed": 1, "outcome_changed": 1, "content_changed": 1}


def test_by_default_the_newest_run_is_compared_with_the_one_before(tmp_path: Path) -> None:
    output = incremental_output(tmp_path)
    found = diff_runs(output)
    assert (found.a.run, found.b.run) == ("2", "3")
    with pytest.raises(InputError, match="no run with images before 1"):
        diff_runs(output, None, None, "1")


def test_a_run_has_no_difference_to_itself(tmp_path: Path) -> None:
    output = incremental_output(tmp_path)
    for pair in (("1", "1"), ("3", "current"), ("current", "current")):
        with pytest.raises(InputError, match="does not differ from itself"):
            diff_runs(output, pair[0], None, pair[1])


def test_two_outputs(tmp_path: Path) -> None:
    write_compared_runs(tmp_path / "a", [ComparedRun("run", {"x": Pictured([DOG])})])
    write_compared_runs(tmp_path / "b", [ComparedRun("run", {"x": Pictured([CAT])})])
    found = diff_runs(str(tmp_path / "a"), None, str(tmp_path / "b"))
    assert fates(found) == {"compared": 1}
    assert changed(found) == {"appeared": 1, "vanished": 1}
    assert diff_runs(str(tmp_path / "a"), "run", str(tmp_path / "b"), "run").counts == found.counts


def test_images_of_two_inputs_are_matched_by_their_names_below_them(tmp_path: Path) -> None:
    one = {"/old/x/1.jpg": Pictured([DOG]), "/old/y/1.jpg": Pictured([CAT])}
    other = {"s3://new/x/1.jpg": Pictured([DOG]), "s3://new/z.jpg": Pictured([CAT])}
    write_compared_runs(tmp_path / "a", [ComparedRun("run", one, input_uri="/old/")])
    write_compared_runs(tmp_path / "b", [ComparedRun("run", other, input_uri="s3://new")])
    found = diff_runs(str(tmp_path / "a"), None, str(tmp_path / "b"))
    assert fates(found) == {"compared": 1, "added": 1, "removed": 1}
    assert changed(found) == {"same": 1}
    assert any("by name below" in note for note in found.notes)


def test_runs_without_a_common_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no image in common.*one has a, the other b"):
        two_runs(tmp_path, {"a": Pictured()}, {"b": Pictured()})
    with pytest.raises(InputError, match="has no images"):
        two_runs(tmp_path / "empty", {"a": Pictured()}, {})


def test_a_run_in_progress_has_images_that_are_not_done_yet(tmp_path: Path) -> None:
    images = {"a": Pictured([DOG]), "b": Pictured([DOG])}
    rest = ComparedRun("tuesday", {"a": Pictured([DOG])}, planned_shards=2)
    write_compared_runs(tmp_path, [ComparedRun("monday", images), rest])
    found = diff_runs(str(tmp_path), "monday", None, "tuesday")
    assert fates(found) == {"compared": 1, "pending": 1}
    assert not found.b.is_complete
    assert any("not complete" in note for note in found.notes)


def test_other_models_and_their_classes_are_said(tmp_path: Path) -> None:
    after = ComparedRun("tuesday", {"a": Pictured([Found("wolf", 0.9, DOG.box)])}, weights_sha256="b" * 64)
    write_compared_runs(tmp_path, [ComparedRun("monday", {"a": Pictured([DOG])}), after])
    found = diff_runs(str(tmp_path), "monday", None, "tuesday")
    assert any("different models" in note for note in found.notes)
    assert any("Only A has instances of dog" in note for note in found.notes)
    assert any("Only B has instances of wolf" in note for note in found.notes)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model.precision": ("fp32", "bf16")}, "model.precision (fp32, bf16)"),
        ({"tiles": (None, {"side": 256})}, "tiles (default, {'side': 256})"),
        ({"input.bands": ([4, 3, 2], [3, 2, 1])}, "input.bands ([4, 3, 2], [3, 2, 1])"),
        ({"input.value_range": ([0.0, 9.0], None)}, "input.value_range ([0.0, 9.0], default)"),
        ({"input.uri": ("one", "other"), "compute.shard_images": (1, 2)}, ""),
    ],
)
def test_other_settings_are_said(tmp_path: Path, settings: dict[str, tuple[object, object]], said: str) -> None:
    images = {"a": Pictured([DOG])}
    identities = [{key: pair[side] for key, pair in settings.items() if pair[side] is not None} for side in (0, 1)]
    runs = [
        ComparedRun(name, images, record={"identity": identity})
        for name, identity in zip(("monday", "tuesday"), identities, strict=True)
    ]
    write_compared_runs(tmp_path, runs)
    assert diff_runs(str(tmp_path)).notes == ((f"The runs differ in {said}.",) if said else ())


@pytest.mark.parametrize(("has_masks", "pairs"), [((True, False), 1), ((False, False), 0), ((True, True), 0)])
def test_boxes_in_the_place_of_masks_are_said(tmp_path: Path, has_masks: tuple[bool, bool], pairs: int) -> None:
    sides = [{"a": Pictured([Found("dog", 0.9, (0, 0, 10, 10), has_mask=has_mask)])} for has_mask in has_masks]
    found = two_runs(tmp_path, *sides)
    assert changed(found) == {"same": 1}
    said = ("1 pair compared by boxes, as only one of the two instances has a mask.",)
    assert found.notes == (said if pairs else ())


def test_a_damaged_mask_is_named(tmp_path: Path) -> None:
    moved = Found("dog", 0.9, (0, 0, 10, 9), counts="52")
    with pytest.raises(InputError, match=r"instance 1 of b is damaged .*run tuesday"):
        two_runs(
            tmp_path, {"a": Pictured([DOG]), "b": Pictured([DOG])}, {"a": Pictured([DOG]), "b": Pictured([CAT, moved])}
        )


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    output = incremental_output(tmp_path)
    with pytest.raises(InputError, match="no run 4"):
        diff_runs(output, "4", None, "1")
    with pytest.raises(InputError, match="--other"):
        diff_runs(output, output)


def test_only_some_images(tmp_path: Path) -> None:
    output = incremental_output(tmp_path)
    found = diff_runs(output, "1", None, "2", uris=["b", "nowhere"])
    assert fates(found) == {"compared": 1}
    assert [each.uri_a for each in found.largest] == ["b"]
    assert diff_runs(output, "1", None, "2", uris=[]).total == 0


def test_tables_of_all_images_and_instances(tmp_path: Path) -> None:
    before = {"a": Pictured([DOG, CAT]), "b": Pictured([DOG]), "c": Pictured()}
    after = {"a": Pictured([DOG]), "b": Pictured(status="failed"), "d": Pictured()}
    found = two_runs(tmp_path / "out", before, after, tables=tmp_path / "tables")
    images = pq.read_table(tmp_path / "tables" / "images.parquet").to_pylist()
    assert [(row["uri_a"], row["uri_b"], row["what"], row["instances"], row["changed"]) for row in images] == [
        ("a", "a", "compared", 2, 1),
        ("b", "b", "outcome_changed", 1, 1),
        ("c", None, "removed", 0, 0),
        (None, "d", "added", 0, 0),
    ]
    assert all(row["image_id"] is not None for row in images)
    instances = pq.read_table(tmp_path / "tables" / "instances.parquet").to_pylist()
    assert [(row["uri"], row["kind"], row["instance_a"], row["instance_b"]) for row in instances] == [
        ("a", "same", 0, 0),
        ("a", "vanished", 1, None),
    ]
    assert sum(row["changed"] for row in images) == found.changed
    with pytest.raises(SpecError, match="cannot be created"):
        diff_runs(str(tmp_path / "out"), "monday", None, "tuesday", tables=tmp_path / "tables" / "images.parquet")


def test_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number:02d}é" for number in range(40)]
    before = {name: Pictured([DOG, CAT][: place % 3]) for place, name in enumerate(names) if place % 7}
    after = {name: Pictured([CAT, DOG][: place % 4]) for place, name in enumerate(names) if place % 5}
    whole = two_runs(tmp_path, before, after).to_dict()
    monkeypatch.setattr(diff_tables, "BATCH_IMAGES", 3)
    monkeypatch.setattr(diff_tables, "BATCH_INSTANCES", 2)
    assert diff_runs(str(tmp_path), "monday", None, "tuesday").to_dict() == whole


@pytest.mark.parametrize(
    "wrong", [{"min_score": 1.5}, {"same_iou": 0.4}, {"match_iou": 0.0}, {"score_change": float("nan")}]
)
def test_limits_outside_their_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SpecError):
        DiffRules(**wrong)


def test_runs_that_are_compacted_meanwhile_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, output = write_inputs(tmp_path / "photos", 8), str(tmp_path / "out")
    for day, (name, instances) in enumerate((("monday", 2), ("tuesday", 1))):
        finish_run(photos, output, name, day=day, instances=instances)
    expected = diff_runs(output)
    assert changed(expected) == {"same": 8, "vanished": 8}
    read_sides = diff_tables.read_sides

    def compact_first(outputs: list[Results], read: Callable[[], Diff]) -> Diff:
        # The parts are listed, and gone before they are read.
        assert len(outputs[0].image_parts()) == 8
        for name in ("monday", "tuesday"):
            compact_run(Storage(), output, name, target_bytes=1 << 20, check=lambda: None)
        return read_sides(outputs, read)

    monkeypatch.setattr("jobs.results.diff.compare.read_sides", compact_first)
    assert diff_runs(output).to_dict() == expected.to_dict()


@pytest.mark.xdist_group("s3")
def test_outputs_in_a_store(tmp_path: Path, s3_server: S3Server, s3_bucket: str) -> None:
    storage = Storage(StorageSection(endpoint_url=s3_server.endpoint_url))
    runs = [ComparedRun("1", {"a": Pictured([DOG])}), ComparedRun("2", {"a": Pictured([CAT])}, mode="incremental")]
    write_compared_runs(f"{s3_bucket}/out", runs, storage)
    write_compared_runs(tmp_path / "out", runs[:1])
    assert changed(diff_runs(f"{s3_bucket}/out", storage=storage)) == {"appeared": 1, "vanished": 1}
    found = diff_runs(str(tmp_path / "out"), None, f"{s3_bucket}/out", "1", storage=storage)
    assert changed(found) == {"same": 1}
