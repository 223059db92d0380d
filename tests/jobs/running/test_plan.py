"""`htc plan`: reports what a run would do, and writes nothing."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from jobs.running.plan import report_plan
from pipeline.errors import InputError, OutputOccupiedError, RunMismatchError
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.storage.storage import Storage
from pipeline.weights.fingerprint import compute_fingerprint
from tests.support.builders.finished_runs import FINGERPRINT as FINISHED
from tests.support.builders.finished_runs import finish_run, write_inputs
from tests.support.builders.outputs import FINGERPRINT, Output, commit


def spec_for(photos: Path, output: Path, **more: object) -> JobSpec:
    keys = {"input.uri": str(photos), "output.uri": str(output), "model.weights": "untrained", **more}
    return load_spec(None, keys)


def snapshot(folder: Path) -> dict[str, tuple[int, float]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime) for path in sorted(folder.rglob("*"))
    }


def report(capsys: pytest.CaptureFixture[str], spec: JobSpec, **more: object) -> tuple[int, str, str]:
    arguments = {"run": None, "fresh": False, "is_model_timed": False, **more}
    code = report_plan(spec, **arguments)  # type: ignore[arg-type]
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_new_run_is_counted_and_nothing_is_written(
    output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (output.photos / "notes.md").write_text("no image")
    (output.photos / "text.jpg").write_text("no image either")
    before = snapshot(tmp_path)
    spec = spec_for(output.photos, tmp_path / "new", **{"compute.shard_images": 3, "compute.workers": 2})
    code, out, err = report(capsys, spec)
    assert code == 0
    assert "8 images" in out
    assert "1 .md" in out
    assert "3 of up to 3 images" in out
    assert "6 of the first 8 images decode" in out
    assert "a new run" in out
    assert "untrained" in out
    assert "2 with 1 of" in out
    assert "broken.jpg: unreadable" in err
    assert "text.jpg: unreadable" in err
    assert snapshot(tmp_path) == before


def test_a_resumed_run_names_what_is_left(
    output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.running.plan.known_fingerprint", lambda *_: FINGERPRINT)
    before = snapshot(tmp_path)
    code, out, _ = report(capsys, output.spec)
    assert code == 0
    assert "resumes night: 1 of 3 shards to go" in out
    code, out, _ = report(capsys, output.spec, fresh=True)
    assert "a new run" in out
    code, out, _ = report(capsys, output.spec, run="second")
    assert "a new run, second" in out
    assert snapshot(tmp_path) == before


def test_a_complete_run_is_compared_with_its_input(
    output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.running.plan.known_fingerprint", lambda *_: FINGERPRINT)
    commit(output.run, 2, Storage(), (0.9,))
    code, out, _ = report(capsys, output.spec)
    assert code == 0
    assert "night is complete already; nothing to do" in out
    Image.new("RGB", (9, 9)).save(output.photos / "new.png")
    (output.photos / "broken.jpg").unlink()
    before = snapshot(tmp_path)
    code, out, _ = report(capsys, output.spec)
    assert code == 3
    assert "1 new (new.png), 1 gone (broken.jpg)" in out
    assert "--incremental" in out
    assert "nothing to do" not in out
    assert report(capsys, output.spec, run="night")[0] == 3
    assert snapshot(tmp_path) == before
    # All images are gone: that is a change of the input, not a missing input.
    for photo in output.photos.iterdir():
        photo.unlink()
    code, out, _ = report(capsys, output.spec)
    assert code == 3
    assert "7 gone" in out
    assert "--max-deleted-share 1" in out


def test_a_complete_run_stays_complete_when_its_input_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.running.plan.known_fingerprint", lambda *_: FINISHED)
    photos = write_inputs(tmp_path / "in", 4)
    finish_run(photos, str(tmp_path / "out"), "night")
    spec = spec_for(Path(photos), tmp_path / "out", **{"model.preset": "htc_r50_fpn", "compute.shard_images": 2})
    assert report(capsys, spec)[0] == 0
    (tmp_path / "in").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="run night is complete and stays as it is"):
        report(capsys, spec)


def test_another_spec_is_refused_as_run_would(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_for(output.photos, output.folder, **{"compute.shard_images": 5})
    with pytest.raises(RunMismatchError, match=r"compute\.shard_images: 3 then, 5 now"):
        report(capsys, spec)


def test_what_cannot_start_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="There are no images"):
        report(capsys, spec_for(tmp_path / "empty", tmp_path / "out"))
    with pytest.raises(InputError, match="does not exist"):
        report(capsys, spec_for(tmp_path / "nowhere", tmp_path / "out"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("")
    Image.new("RGB", (9, 9)).save(tmp_path / "empty" / "one.png")
    with pytest.raises(OutputOccupiedError, match=r"thesis\.tex"):
        report(capsys, spec_for(tmp_path / "empty", tmp_path / "taken"))


def test_weights_are_checked_without_a_network(
    output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTC_CACHE", str(tmp_path / "cache"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("plan must not fetch")

    monkeypatch.setattr("pipeline.weights.cache.download", refuse)
    new = tmp_path / "new"
    code, out, _ = report(capsys, spec_for(output.photos, new, **{"model.weights": "coco"}), is_model_timed=True)
    assert code == 0
    assert "not on this machine; the run fetches them" in out
    keys = {"model.weights": "coco", "model.preset": "htc_lite0_fpn"}
    code, _, err = report(capsys, spec_for(output.photos, new, **keys))
    assert code == 2
    assert "No weights of htc_lite0_fpn are published" in err
    missing = spec_for(output.photos, new, **{"model.weights": str(tmp_path / "mine.pth")})
    code, _, err = report(capsys, missing)
    assert code == 2
    assert "There is no weights file" in err
    assert not (tmp_path / "cache").exists()


def test_the_model_is_timed_on_one_image(
    make_output: Callable[..., Output], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = make_output()
    spec = spec_for(output.photos, tmp_path / "new", **{"model.preset": "htc_lite0_fpn", "input.limit": 1})
    code, out, _ = report(capsys, spec, is_model_timed=True)
    assert code == 0
    assert "for 1 image" in out
    assert "estimated from one 512x342 image" in out


def test_weights_of_another_network_are_named(
    output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    path = tmp_path / "other.pth"
    torch.save({"state_dict": {"fc.weight": torch.zeros(2, 2)}}, path)
    keys = {"model.preset": "htc_lite0_fpn", "model.weights": str(path)}
    code, _, err = report(capsys, spec_for(output.photos, tmp_path / "new", **keys), is_model_timed=True)
    assert code == 2
    assert "does not fit htc_lite0_fpn" in err
    assert "fc.weight" in err


def test_plan_takes_the_same_fingerprint_as_run(output: Output) -> None:
    from dataclasses import asdict

    from jobs.running.model_check import known_fingerprint

    spec = spec_for(output.photos, output.folder)
    assert known_fingerprint(spec, Storage(), None) == asdict(compute_fingerprint(spec.model))
    assert os.environ.get("HTC_CACHE") != ""


def test_the_plan_as_json(output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_for(output.photos, tmp_path / "new", **{"compute.shard_images": 3, "compute.workers": 2})
    code, out, err = report(capsys, spec, is_json=True)
    plan = json.loads(out)
    assert (code, err) == (plan["exit_code"], "") == (0, "")
    assert (plan["images"], plan["shards"], plan["shards_to_do"], plan["workers"]) == (7, 3, 3, 2)
    assert plan["sample"]["decoded"] + len(plan["sample"]["failed"]) == 7
    assert any("broken.jpg" in each["uri"] for each in plan["sample"]["failed"])
    assert (plan["run"], plan["seconds"]) == (None, None)


def test_the_members_of_an_ensemble_and_their_memory_are_shown(
    output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = ["demo", "htc_lite0_fpn=untrained*2"]
    spec = load_spec(
        None,
        {"input.uri": str(output.photos), "output.uri": str(tmp_path / "new"), "ensemble": members}
        | {"compute.gpus_per_worker": 0},
    )
    code, out, err = report(capsys, spec, is_model_timed=True)
    assert (code, "does not fit" in err) == (0, False)
    assert "an ensemble of 2, boxes fused by nms" in out
    assert "untrained weights: its detections mean nothing, weight 2" in out
    assert "memory" in out
    assert out.count("of parameters") == 2
    assert "estimated from one" in out
    missing = spec.model_copy(
        update={
            "model": load_spec(None, {"input.uri": "a", "output.uri": "b", "ensemble": ["demo", "/no/w.pth"]}).model
        }
    )
    code, out, err = report(capsys, missing)
    assert (code, "There is no weights file /no/w.pth." in err) == (2, True)
    absent = load_spec(
        None,
        {"input.uri": str(output.photos), "output.uri": str(tmp_path / "new"), "ensemble": ["demo", "htc_r50_fpn"]},
    )
    code, out, _ = report(capsys, absent)
    assert (code, "htc_r50_fpn, weights coco: not on this machine; the run fetches them" in out) == (0, True)


def test_images_that_are_cut_are_counted_in_tiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, size in enumerate([(150, 130), (150, 130), (60, 50)]):
        Image.new("RGB", size).save(photos / f"{number}.png")
    spec = spec_for(photos, tmp_path / "new", tiles="64:16")
    code, out, _ = report(capsys, spec)
    assert code == 0
    assert "2 of the first 3 images cut into tiles" in out
    assert "150x130 (2): 9 tiles of 64x64" in out
    assert "1 of the first 3 images decode: 60x50" in out
    # The time of the image that is not cut says nothing about the others'.
    assert "not known, as images are cut into tiles; --probe measures some" in out
    assert "estimated from one" not in out
    _, out, _ = report(capsys, spec, is_json=True)
    cut = json.loads(out)["sample"]["cut"]
    assert [(each["width"], each["height"], each["tiles"]) for each in cut] == [(150, 130, 9)] * 2
