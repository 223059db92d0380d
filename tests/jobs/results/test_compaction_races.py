"""Every command that reads an output, while its parts are compacted between listing and reading."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pipeline.maintenance.doctor.examine
from pipeline.job_spec.job import load_spec
from pipeline.maintenance.compaction import compact_run
from pipeline.output.results import Results
from pipeline.output.run_record import list_records
from pipeline.planning.input_changes import compare_input
from pipeline.planning.manifest import Manifest
from pipeline.planning.repeated_failures import RepeatedFailures
from pipeline.storage.storage import Storage
from tests.support.builders.damaged_outputs import MODEL, Htc, htc_of, write_sound_output


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    write_sound_output(root)
    # Without it, the rows are read to find the run's state.
    (root / "out/runs/second/summary.json").unlink()
    return root


@pytest.fixture
def htc(capsys: pytest.CaptureFixture[str]) -> Htc:
    return htc_of(capsys)


@contextmanager
def compacted_after_listing(output: Path) -> Iterator[list[str]]:
    """Compact all runs once, right after the parts were listed; yields the listed runs."""
    listings: list[str] = []

    def compact(place: str) -> None:
        listings.append(place)
        if len(listings) == 1:
            for run in ("first", "second"):
                compact_run(Storage(), str(output), run, target_bytes=1 << 30, check=lambda: None)

    look, list_files = Results.__dict__["_committed"].func, pipeline.maintenance.doctor.examine._list_files

    def looking(results: Results) -> Any:
        found = look(results)
        compact("results")
        return found

    def listing(storage: Storage, output_uri: str, run: str | None) -> Any:
        found = list_files(storage, output_uri, run)
        if run is not None:
            compact("doctor")
        return found

    with pytest.MonkeyPatch.context() as patch:
        prop = type(Results.__dict__["_committed"])(looking)
        prop.__set_name__(Results, "_committed")
        patch.setattr(Results, "_committed", prop)
        patch.setattr(pipeline.maintenance.doctor.examine, "_list_files", listing)
        yield listings


def copy_of(sound: Path, folder: Path) -> Path:
    return Path(shutil.copytree(sound / "out", folder / "out"))


def command_lines(sound: Path, folder: Path, output: Path) -> dict[str, list[str]]:
    out, where = str(output), [str(sound / "in"), str(output), *MODEL]
    truth = folder / "truth.json"
    truth.write_text(
        '{"images": [{"id": 1, "file_name": "more-image-003.png", "width": 48, "height": 32}], "annotations": '
        '[{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0, "segmentation": '
        '[[0, 0, 9, 0, 9, 9, 0, 9]]}], "categories": [{"id": 1, "name": "person"}]}'
    )
    return {
        "query": ["query", out, "SELECT run, uri, score FROM instances JOIN images USING (run, uri) ORDER BY ALL"],
        "current": ["query", out, "SELECT count(*), count(uri) FROM current"],
        "evaluate": ["evaluate", out, str(truth), "--run", "second"],
        "status": ["status", out, "--run", "second"],
        "show": ["show", out, "--to", str(folder / "png"), "--run", "second", "--sample", "4"],
        "runs": ["runs", out],
        "prune": ["prune", out, "--keep-last", "1"],
        "doctor": ["doctor", out],
        "plan": ["plan", *where, "--incremental", "--run", "third", "--no-model"],
        "changes": ["plan", *where, "--run", "first", "--no-model"],
        "resumed": ["run", *where, "--run", "first"],
        "incremental": ["run", *where, "--incremental", "--run", "third"],
        "publish": ["publish", out, "--iceberg", f"sqlite:///{folder}/catalog.db", "--run", "first"],
    }


NAMES = (
    *("query", "current", "evaluate", "status", "show", "runs", "prune", "doctor", "plan", "changes", "resumed"),
    *("incremental", "publish"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_command_prints_the_same_when_parts_move_meanwhile(sound: Path, tmp_path: Path, htc: Htc, name: str) -> None:
    answers = []
    for folder in (tmp_path / "still", tmp_path / "moving"):
        output = copy_of(sound, folder)
        line = command_lines(sound, folder, output)[name]
        if folder.name == "still":
            answers.append(htc(*line))
            continue
        with compacted_after_listing(output) as listings:
            answers.append(htc(*line))
        assert listings, line
        assert list(output.glob("images/run=first/parts-*"))
    (code, still), (moving_code, moving) = answers
    assert moving_code == code, moving
    assert "damaged" not in moving
    if name in ("query", "current", "evaluate", "status"):
        assert moving.replace("moving", "still") == still
    if name == "doctor":
        assert "summary.json" in moving
        assert "1 finding" in moving


def test_what_earlier_runs_failed_is_found_when_parts_move(sound: Path, tmp_path: Path) -> None:
    output = copy_of(sound, tmp_path)
    second = list_records(Storage(), str(output))[-1]
    manifest = Manifest.from_dict(second.manifest)
    asked = RepeatedFailures(Storage(), str(output), "second")
    with compacted_after_listing(output) as listings:
        history = asked._history
    assert (len(history), len(listings) > 1, manifest.image_count) == (6, True, 4)


def test_an_input_is_compared_when_parts_move(sound: Path, tmp_path: Path) -> None:
    output = copy_of(sound, tmp_path)
    values: dict[str, object] = {"input.uri": str(sound / "in"), "output.uri": str(output)}
    spec = load_spec(None, {**values, "model.preset": "htc_lite0_fpn", "model.weights": "untrained"})
    with compacted_after_listing(output) as listings:
        assert not compare_input(spec.input, Storage(), spec.output.uri, "first").has_any
    assert len(listings) > 1
