"""`htc drift`: levels by measure, references, small and unfinished runs, what is printed."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.results.drift import Drift, measure_drift
from jobs.results.drift.result import Level
from pipeline.errors import InputError, SpecError
from tests.support.builders.compared_runs import ComparedRun, Found, Pictured, write_compared_runs
from tests.support.builders.finished_runs import finish_run
from tests.support.htc import Htc

DOG = Found("dog", 0.93, (0, 0, 10, 10))
CAT = Found("cat", 0.73, (0, 0, 20, 20))
IMAGES = 120


def usual(number: int) -> Pictured:
    """A dog in each, a cat in every other, each tenth unreadable."""
    if number % 10 == 9:
        return Pictured(status="unreadable")
    return Pictured([DOG, CAT] if number % 2 else [DOG])


def run_of(name: str, made: Callable[[int], Pictured] = usual, images: int = IMAGES, **more: object) -> ComparedRun:
    return ComparedRun(name, {f"{name}/{number:04d}": made(number) for number in range(images)}, **more)  # type: ignore[arg-type]


def drift_of(folder: Path, *runs: ComparedRun, **options: object) -> Drift:
    write_compared_runs(folder, runs)
    return measure_drift(str(folder), **options)  # type: ignore[arg-type]


def levels(found: Drift) -> dict[str, str]:
    assert found.newest is not None
    return {each.measure: each.level.value for each in found.newest.measures}


def test_runs_that_are_alike_are_stable(tmp_path: Path) -> None:
    found = drift_of(tmp_path, *(run_of(name) for name in "1234"))
    assert [run.level for run in found.runs] == [Level.NONE, *[Level.STABLE] * 3]
    assert found.runs[-1].reference == ("1", "2", "3")
    newest = found.newest
    assert newest is not None
    assert (newest.images, newest.ok, newest.instances) == (120, 108, 156)
    assert newest.per_image == pytest.approx(156 / 108)
    assert newest.mean_score == pytest.approx((108 * 0.93 + 48 * 0.73) / 156)
    assert newest.mean_area == pytest.approx((108 * 100 + 48 * 400) / 156)
    assert found.to_dict() == measure_drift(str(tmp_path)).to_dict()
    assert json.loads(json.dumps(found.to_dict()))["runs"][3]["level"] == "stable"


@pytest.mark.parametrize(
    ("measure", "made"),
    [
        ("outcomes", lambda number: Pictured(status="failed") if number % 2 else usual(number)),
        ("instances", lambda number: Pictured([DOG] * 2 + [CAT]) if number % 10 != 9 else usual(number)),
        ("scores", lambda number: Pictured([Found("dog", 0.55, DOG.box)] * (1 + number % 2))),
        ("areas", lambda number: Pictured([Found("dog", 0.93, (0, 0, 60, 40))])),
        ("categories", lambda number: Pictured([Found("wolf", 0.93, DOG.box)])),
    ],
)
def test_each_measure_raises_its_alarm(tmp_path: Path, measure: str, made: Callable[[int], Pictured]) -> None:
    found = drift_of(tmp_path, run_of("1"), run_of("2"), run_of("3", made))
    assert levels(found)[measure] == "alarm"
    assert found.newest is not None
    assert found.newest.level is Level.ALARM
    assert measure in {each.measure for each in found.newest.exceeding(0.25)}


def test_few_images_raise_no_alarm_and_it_is_said(tmp_path: Path) -> None:
    wolf = Pictured([Found("wolf", 0.93, (0, 0, 60, 40))])
    found = drift_of(tmp_path, run_of("1"), run_of("2", lambda _: wolf, images=29))
    assert found.newest is not None
    assert found.newest.level is Level.NONE
    assert found.newest.note == "29 ok images, not compared; 30 are needed"
    assert {each.measure for each in found.newest.measures if each.psi is not None} == set()


def test_one_crowded_image_raises_no_alarm(tmp_path: Path) -> None:
    crowd = Pictured([Found("sheep", 0.93, (number % 40, number % 30, 9, 9)) for number in range(100)])
    found = drift_of(tmp_path, run_of("1"), run_of("2", lambda number: crowd if number == 5 else usual(number)))
    assert levels(found)["categories"] == "unclear"
    assert found.newest is not None
    assert found.newest.exceeding(0.0) == []


def test_an_incremental_run_is_measured_by_what_it_processed(tmp_path: Path) -> None:
    newer = ComparedRun("2", {f"2/{number}": Pictured([CAT]) for number in range(60)}, mode="incremental")
    found = drift_of(tmp_path, run_of("1"), newer)
    assert found.newest is not None
    assert (found.newest.images, found.newest.mode) == (60, "incremental")
    assert levels(found)["categories"] == "alarm"


def test_what_is_not_complete_is_shown_and_not_compared(tmp_path: Path) -> None:
    wolf = Pictured([Found("wolf", 0.93, DOG.box)])
    found = drift_of(tmp_path, run_of("1"), run_of("2", lambda _: wolf, planned_shards=2), run_of("3"))
    assert [run.note for run in found.runs] == ["first run", "not complete, not compared", ""]
    assert found.runs[-1].reference == ("1",)


def test_another_model_has_no_reference_but_a_baseline(tmp_path: Path) -> None:
    wolf = Pictured([Found("wolf", 0.93, DOG.box)])
    runs = [run_of("1"), run_of("2"), run_of("3", lambda _: wolf, weights_sha256="b" * 64)]
    found = drift_of(tmp_path, *runs)
    assert [run.note for run in found.runs] == ["first run", "", "first run of this model"]
    assert any("htc diff" in note for note in found.notes)
    found = measure_drift(str(tmp_path), baseline="1")
    assert [run.note for run in found.runs] == ["the baseline", "", "another model than the baseline"]
    assert [run.level.value for run in found.runs] == ["none", "stable", "alarm"]


def test_other_settings_are_said(tmp_path: Path) -> None:
    lower = run_of("2", record={"identity": {"model.score_threshold": 0.01}})
    found = drift_of(tmp_path, run_of("1"), lower)
    assert found.runs[1].note == "other settings than the reference: model.score_threshold (default, 0.01)"


FAINT = Found("dog", 0.13, (20, 20, 10, 10))


@pytest.mark.parametrize("is_lowered", [True, False])
def test_another_threshold_alone_is_no_drift(tmp_path: Path, htc: Htc, is_lowered: bool) -> None:
    """Instances below the highest threshold are left out of every run, in whichever order they come."""
    low = run_of("low", lambda number: Pictured([DOG, FAINT, FAINT]))
    high = run_of("high", lambda number: Pictured([DOG]), record={"identity": {"model.score_threshold": 0.3}})
    runs = [high, low] if is_lowered else [low, high]
    found = drift_of(tmp_path, *runs, min_score=0.1)
    assert (found.min_score, found.score_threshold) == (0.3, 0.3)
    assert set(levels(found).values()) == {"stable"}
    assert {each.psi for each in found.runs[1].measures} == {0.0}
    assert [run.mean_score for run in found.runs] == pytest.approx([0.93, 0.93])
    assert [note.partition(";")[0] for note in found.notes] == [
        "The runs' score thresholds are from 0.05 to 0.3",
        "Instances count from 0.3, not from 0.1: below, a run has none.",
    ]
    assert htc("drift", str(tmp_path), "--fail-over", "0.01")[0] == 0


def test_the_threshold_of_a_run_that_is_not_compared_cuts_nothing(tmp_path: Path) -> None:
    strict = run_of("1", record={"identity": {"model.score_threshold": 0.9}})
    faint = [run_of(name, lambda number: Pictured([DOG, FAINT])) for name in "234"]
    found = drift_of(tmp_path, strict, *faint, last=1, window=2, min_score=0.1)
    assert (found.min_score, found.score_threshold) == (0.1, 0.05)
    assert found.runs[0].instances == 2 * IMAGES
    assert found.runs[0].mean_score == pytest.approx(0.53)


def test_the_sentence_on_drift_names_other_settings(tmp_path: Path, htc: Htc) -> None:
    wolf = run_of("2", lambda _: Pictured([Found("wolf", 0.93, DOG.box)]), record={"identity": {"model.x": 1}})
    write_compared_runs(tmp_path, [run_of("1"), wolf])
    code, _, err = htc("drift", str(tmp_path), "--fail-over", "0.25")
    assert code == 1
    assert "(other settings than the reference: model.x (default, 1))." in err


def test_how_many_runs_are_shown_and_taken_together(tmp_path: Path) -> None:
    runs = [run_of(str(number)) for number in range(5)]
    empty = ComparedRun("5", {}, mode="incremental")
    found = drift_of(tmp_path, *runs, empty, last=2, window=1)
    assert [(run.run, run.reference) for run in found.runs] == [("3", ("2",)), ("4", ("3",))]
    assert found.notes == ("1 run without images, not shown.", "3 older runs not shown.")
    with pytest.raises(SpecError):
        measure_drift(str(tmp_path), last=0)
    with pytest.raises(SpecError):
        measure_drift(str(tmp_path), min_score=2)


def test_one_run_only(tmp_path: Path, htc: Htc) -> None:
    write_compared_runs(tmp_path, [run_of("1")])
    code, out, err = htc("drift", str(tmp_path), "--fail-over", "0.1")
    assert code == 0
    assert "first run" in out
    assert "One run only" in err
    assert "compared with nothing (first run)" in err


def test_without_any_rows(tmp_path: Path, htc: Htc) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "1.jpg").write_bytes(b"x")
    output = str(tmp_path / "out")
    finish_run(str(photos), output, "monday", only_shards=0)
    code, _, err = htc("drift", output)
    assert code == 0
    assert "1 run without images, not shown." in err
    with pytest.raises(InputError, match="no run x"):
        measure_drift(output, baseline="x")
    assert measure_drift(output, baseline="monday").runs == ()
    code, _, err = htc("drift", str(photos))
    assert code == 2
    assert "holds no run" in err


def test_the_table_and_the_exit_code(tmp_path: Path, htc: Htc) -> None:
    wolf = Pictured([Found("wolf", 0.93, DOG.box)])
    write_compared_runs(tmp_path, [run_of("monday"), run_of("tuesday"), run_of("wednesday", lambda _: wolf)])
    code, out, _ = htc("drift", str(tmp_path))
    assert code == 0
    assert "Instances are those that score 0.5 or more, in all columns but the index of scores" in out
    _, row = (line for line in out.splitlines() if line.startswith(" wednesday"))
    assert "!!" in row
    assert row.endswith("alarm")
    assert "wednesday: categories: wolf 0.0% -> 100.0%" in out
    code, _, err = htc("drift", str(tmp_path), "--fail-over", "0.25")
    assert code == 1
    assert "wednesday has drifted by more than the 0.25 of --fail-over" in err
    assert "categories" in err
    assert htc("drift", str(tmp_path), "--fail-over", "50")[0] == 0
    # Only the newest run decides.
    write_compared_runs(tmp_path, [run_of(f"{day}") for day in ("monday", "tuesday", "wednesday")])
    assert htc("drift", str(tmp_path), "--fail-over", "0.25")[0] == 0


def test_csv_has_a_row_for_each_run_and_measure(tmp_path: Path, htc: Htc) -> None:
    write_compared_runs(tmp_path, [run_of("1"), run_of("2")])
    _, out, _ = htc("drift", str(tmp_path), "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["run"], row["measure"]) for row in rows] == [
        (run, measure) for run in "12" for measure in ("outcomes", "instances", "scores", "areas", "categories")
    ]
    assert {row["psi"] for row in rows if row["run"] == "1"} == {""}
    assert htc("drift", str(tmp_path), "--format", "json")[1].startswith("{")


def test_boxes_alone_have_the_area_of_the_box(tmp_path: Path) -> None:
    box = Found("dog", 0.9, (0, 0, 10, 10), has_mask=False)
    found = drift_of(tmp_path, run_of("1", lambda _: Pictured([box])))
    assert found.runs[0].mean_area == 100


@pytest.mark.parametrize("words", [["--fail-over", "-1"], ["--window", "0"], ["--baseline", "nowhere"]])
def test_wrong_input_is_one_sentence(tmp_path: Path, htc: Htc, words: list[str]) -> None:
    write_compared_runs(tmp_path, [run_of("1", images=1)])
    code, out, err = htc("drift", str(tmp_path), *words)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
