"""What a report counts, which images it shows, and how it measures throughput; without a browser."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from htc_model.masks import decode_rle
from jobs.results.report import ReportRequest, charts, write_report
from jobs.results.report.counts import SIDE_EDGES, count_run
from jobs.results.report.drift import drift_section
from jobs.results.report.pictures import Bounds, encode_within, shrink_masks
from jobs.results.report.sample import choose_sample
from jobs.results.report.speed import Throughput, measure_throughput
from pipeline.errors import SpecError
from pipeline.output.parts import Part
from pipeline.output.results import open_results
from pipeline.output.views import open_database
from tests.support.builders.finished_runs import finish_run, write_inputs
from tests.support.builders.outputs import Output, encoded
from tests.support.builders.reported_runs import HOSTILE_CATEGORY, make_reported_run, square
from tests.support.htc import Htc
from tests.support.without_torch import run_without_torch

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_a_run_is_counted(tmp_path: Path) -> None:
    made = make_reported_run(tmp_path)
    with open_database(open_results(made.uri)) as database:
        counts = count_run(database, "night")
    assert counts.statuses == {"ok": 5, "unreadable": 1}
    assert (counts.images, counts.instances, counts.confident) == (6, 15, 10)
    assert [(each.name, each.instances, each.images) for each in counts.categories] == [
        ("dog", 9, 5),
        ("person", 5, 5),
        (HOSTILE_CATEGORY, 1, 1),
    ]
    assert [counts.scores[place] for place in (2, 12, 18, 19)] == [5, 5, 0, 5]
    by_side = dict(zip(SIDE_EDGES, counts.sides, strict=True))
    assert {edge: count for edge, count in by_side.items() if count} == {16: 5, 32: 5, 64: 5}
    (reason,) = counts.reasons
    assert (reason.status, reason.images, len(reason.examples)) == ("unreadable", 1, 1)


def test_reasons_that_differ_in_numbers_are_one(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", 6)
    finish_run(inputs, str(tmp_path / "out"), "night", is_ok=lambda uri: uri.endswith("5.jpg"))
    with open_database(open_results(str(tmp_path / "out"))) as database:
        counts = count_run(database, "night")
    assert [(each.reason, each.images, len(each.examples)) for each in counts.reasons] == [("it is empty", 5, 3)]


@pytest.mark.parametrize(("count", "failed"), [(20, 8), (10, 2), (1, 0)])
def test_a_sample_has_failures_and_is_the_same_every_time(tmp_path: Path, count: int, failed: int) -> None:
    inputs = write_inputs(tmp_path / "in", 20)
    finish_run(inputs, str(tmp_path / "out"), "night", is_ok=lambda uri: int(Path(uri).stem) >= 8)
    with open_database(open_results(str(tmp_path / "out"))) as database:
        statuses = count_run(database, "night").statuses
        one, two = (choose_sample(database, "night", statuses, count) for _ in range(2))
    assert one == two
    assert (len(one.rows), one.failed) == (count, failed)
    assert ("All 20 images" if count == 20 else f"{count} of 20 images") in one.sentence
    uris = [row["uri"] for row in one.rows]
    assert uris == sorted(set(uris))


def test_where_all_failed_the_sample_is_of_failures(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", 6)
    finish_run(inputs, str(tmp_path / "out"), "night", is_ok=lambda _: False)
    with open_database(open_results(str(tmp_path / "out"))) as database:
        assert len(choose_sample(database, "night", {"unreadable": 6}, 4).rows) == 4


def parts(count: int) -> list[Part]:
    return [Part(shard, shard) for shard in range(count)]


def test_throughput_by_the_commits() -> None:
    written = {part.name: NOON + timedelta(seconds=10 * (part.first + 1)) for part in parts(6)}
    found = measure_throughput(parts(6), written, dict.fromkeys(range(6), 30), began=NOON, ended=None)
    assert isinstance(found, Throughput)
    assert found.images == 180
    assert sum(rate * found.width_s for rate in found.rates) == pytest.approx(180)
    assert found.rates[0] == 0


@pytest.mark.parametrize("seconds", [0, 3, 700, 90_000, 40 * 86400])
def test_throughput_of_short_and_long_runs_has_few_steps(seconds: int) -> None:
    written = {Part(0, 0).name: NOON + timedelta(seconds=seconds)}
    found = measure_throughput(parts(1), written, {0: 7}, began=NOON, ended=None)
    assert isinstance(found, Throughput)
    assert 1 <= len(found.rates) <= 48
    assert all(np.isfinite(found.rates))


def test_throughput_that_is_not_known_says_why() -> None:
    at_noon = {part.name: NOON for part in parts(2)}
    images = {0: 3, 1: 3}

    def reason(used: list[Part], written: dict[str, datetime], shards: dict[int, int], began: datetime) -> str:
        found = measure_throughput(used, written, shards, began=began, ended=began + timedelta(hours=1))
        assert isinstance(found, str)
        return found

    assert "No shard" in reason([], {}, {}, NOON)
    assert "compacted" in reason([Part(0, 1, is_compacted=True)], {}, images, NOON)
    assert "store does not say" in reason(parts(2), {}, images, NOON)
    assert "copy" in reason(parts(2), at_noon, images, NOON - timedelta(days=3))


@pytest.mark.parametrize(("value", "ceiling"), [(0, 0), (0.3, 0.3), (7.1, 8), (102, 120), (1, 1), (9.9, 10)])
def test_charts_end_at_a_short_number(value: float, ceiling: float) -> None:
    assert charts.nice_ceiling(value) == pytest.approx(ceiling)


def test_charts_escape_what_they_say() -> None:
    picture = charts.columns([1, 0, 2], ["<a>", "b", "c", "d"], description='say "<b>"')
    assert "<a>" not in picture
    assert "&lt;b&gt;" in picture
    assert picture.count('class="mark"') == 3


def test_charts_of_nothing() -> None:
    assert "NaN" not in charts.columns([0, 0], ["0", "1", "2"], description="nothing")
    assert charts.columns([], ["0"], description="nothing")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.00439, "0.00439"), (1.482, "1.48"), (11.1, "11.1"), (1234.5, "1,234"), (2.5e7, "25 M")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert charts.number(value) == text


def test_pictures_keep_their_bounds() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (1500, 2000, 3), np.uint8)
    assert len(encode_within(noise, 60_000)) <= 60_000
    few, many = Bounds.of(16), Bounds.of(2000)
    assert few.view > many.view
    assert 2000 * (many.view + many.masks) <= 32 << 20


def test_masks_of_large_images_are_shrunk_in_place() -> None:
    size = (3000, 4000)
    masks = {7: encoded(square(size, 1000, 500, 800)), 9: encoded(np.zeros(size, bool))}
    small, empty = shrink_masks(masks).values()
    assert not decode_rle(empty).any()
    assert small["size"] == [480, 640]
    rows, columns = np.nonzero(decode_rle(small))
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (80, 208, 160, 288)


def test_a_run_in_progress_or_broken_off_is_reported_as_far_as_it_is(output: Output, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(output.uri, ReportRequest(path))
    page = path.read_text(encoding="utf-8")
    assert "incomplete" in page
    assert "run the same command again to resume" in page
    assert "All 6 images" in page


def test_a_run_without_a_row_is_reported(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", 3)
    finish_run(inputs, str(tmp_path / "out"), "night", only_shards=0)
    path = tmp_path / "report.html"
    write_report(str(tmp_path / "out"), ReportRequest(path))
    page = path.read_text(encoding="utf-8")
    assert "No image of this run has its row yet" in page
    assert "No instance was found" in page
    assert 'id="cards"' not in page


def test_the_page_asks_for_nothing(tmp_path: Path) -> None:
    made = make_reported_run(tmp_path)
    path = tmp_path / "report.HTML"
    write_report(made.uri, ReportRequest(path, images=2))
    page = path.read_text(encoding="utf-8")
    assert "default-src &#39;none&#39;" in page
    assert "A sample: 2 of 6 images" in page
    # Of what is the program's own: no address of another place.
    assert "http:" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https:" not in page


def test_bad_targets_and_runs_are_refused(output: Output, htc: Htc, tmp_path: Path) -> None:
    for target, reason in (
        (tmp_path, "is a folder"),
        (tmp_path / "report.pdf", "does not end in .html"),
        (tmp_path / "nowhere" / "report.html", "no folder"),
        ("s3://bucket/report.html", "not a local path"),
    ):
        code, _, said = htc("report", output.uri, "--to", str(target))
        assert (code, said.count("\n")) == (2, 1)
        assert reason in said
    code, _, said = htc("report", output.uri, "--to", str(tmp_path / "r.html"), "--run", "nihgt")
    assert code == 2
    assert "did you mean night?" in said


def test_a_full_disk_leaves_the_former_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_reported_run(tmp_path)
    path = tmp_path / "report.html"
    path.write_text("former")
    monkeypatch.setattr("os.fsync", _full)
    with pytest.raises(SpecError, match="No space left"):
        write_report(made.uri, ReportRequest(path))
    assert path.read_text() == "former"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "photos", "report.html"]


def _full(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_run_in_progress_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.results import status as status_module
    from jobs.results.report import command

    made = make_reported_run(tmp_path, with_summary=False)
    real = command.read_status

    def running(*arguments: object, **keywords: object) -> status_module.RunStatus:
        from dataclasses import replace

        found = real(*arguments, **keywords)  # type: ignore[arg-type]
        return replace(found, state="running", images=40, is_listing=True, images_per_s=3.0)

    monkeypatch.setattr(command, "read_status", running)
    write_report(made.uri, ReportRequest(tmp_path / "r.html"))
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "This run is in progress. The report shows the 6 of 40 images so far listed" in page
    assert "in the last minute" in page


def truth_of(photos: Path) -> dict[str, object]:
    """COCO annotations of the photos that are there: a person and a dog in each, where `make_reported_run` has them."""
    images, annotations = [], []
    for number, name in enumerate(["second.jpg", "third.jpg"]):
        with Image.open(photos / name) as image:
            width, height = image.size
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        boxes = {1: (width // 2 - 40, height // 2 - 40, 80), 2: (5, 5, 30)}
        for category, (left, top, side) in boxes.items():
            right, bottom = left + side, top + side
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [left, top, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                    "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                }
            )
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def test_with_annotations_the_page_has_an_evaluation(tmp_path: Path) -> None:
    made = make_reported_run(tmp_path, has_damage=False)
    truth = tmp_path / "truth <b>.json"
    truth.write_text(json.dumps(truth_of(made.photos)))
    write_report(made.uri, ReportRequest(tmp_path / "r.html", truth=str(truth)))
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "truth &lt;b&gt;.json" in page
    # Every object is found, and before anything else.
    assert '<th scope="row">AP50</th><td class="number">100.0</td><td class="number">100.0</td>' in page
    assert "2 images with 4 objects were scored." in page
    assert "Precision over recall of the mask predictions" in page


def test_annotations_that_cannot_be_read_leave_no_page(output: Output, htc: Htc, tmp_path: Path) -> None:
    code, _, said = htc("report", output.uri, "--to", str(tmp_path / "r.html"), "--truth", str(tmp_path / "no.json"))
    assert (code, said.count("\n")) == (2, 1)
    assert "no.json" in said
    assert not (tmp_path / "r.html").exists()


def test_with_several_runs_the_page_has_their_drift(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", 4)
    for day, run in enumerate(["monday", "tuesday"]):
        finish_run(inputs, str(tmp_path / "out"), run, day=day)
    write_report(str(tmp_path / "out"), ReportRequest(tmp_path / "r.html"))
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    drift = page[page.index('id="drift"') : page.index('id="gallery"')]
    assert "monday" in drift
    assert 'tuesday <span class="quiet">(this run)' in drift
    assert "Instances per image of 2 runs" in drift


def test_a_damaged_other_run_does_not_keep_the_page_from_being_written(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", 4)
    for day, run in enumerate(["monday", "tuesday"]):
        finish_run(inputs, str(tmp_path / "out"), run, day=day)
    (damaged, *_) = sorted((tmp_path / "out" / "instances" / "run=monday").iterdir())
    damaged.write_bytes(b"no table")
    drift = drift_section(open_results(str(tmp_path / "out")), "tuesday")
    assert drift is not None
    assert "could not be measured" in drift.notes[0]


@pytest.mark.slow
def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    made = make_reported_run(tmp_path, has_damage=False)
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(truth_of(made.photos)))
    done = run_without_torch("report", made.uri, "--to", str(tmp_path / "r.html"), "--truth", str(truth))
    assert done.returncode == 0, done.stderr
    assert "6 images in the gallery" in done.stdout
