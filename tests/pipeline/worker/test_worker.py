"""One worker without Ray: shards go in, committed parts come out, also with bad images and errors."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import pipeline.worker.shard_pipeline
import pipeline.worker.shard_processor
import pipeline.worker.worker
from htc_model.structures import ImageBatch, RawDetections
from pipeline.driver.run_job import worker_settings
from pipeline.errors import StorageError, TransientStorageError
from pipeline.inputs.image_ref import ImageRef, ReadVersion
from pipeline.inputs.shard import Shard
from pipeline.messages import Assignment, ShardFailure, ShardResult, WorkerFailure, WorkerReady
from pipeline.output.commit import images_part
from pipeline.storage.storage import Storage
from pipeline.worker.batching import BatchSize
from pipeline.worker.error_boundaries import DeviceLostError
from pipeline.worker.segmenter import LoadModel
from pipeline.worker.worker import Worker
from tests.support.fakes.models import LoadFake, write_image, write_images
from tests.support.fakes.shard_bench import Bench, fake, refs_of, spec_for


def test_a_shard_becomes_one_row_per_image_and_one_per_instance(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{number}.png", (20 + number, 30)) for number in range(7)]
    bench = Bench(tmp_path)
    report = bench.process(paths)
    images, instances = bench.image_rows(), bench.instance_rows()
    assert [row["uri"] for row in images] == [str(path) for path in paths]
    assert [(row["height"], row["width"], row["status"]) for row in images] == [
        (20 + number, 30, "ok") for number in range(7)
    ]
    assert [row["uri"] for row in instances] == [row["uri"] for row in images]
    for number, row in enumerate(instances):
        assert row["area"] == (20 + number) * 30
    assert report.statuses == {"ok": 7}
    assert (report.instances, report.images, sum(bench.done)) == (7, 7, 7)
    assert report.bytes_read == sum(path.stat().st_size for path in paths)
    assert min(report.stage_s[stage] for stage in ("read", "decode", "infer", "encode", "write")) > 0


def test_images_of_one_padded_shape_share_full_batches(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{number}.png", [(64, 96), (96, 64)][number % 2]) for number in range(16)]
    bench = Bench(tmp_path, batch_size=8)
    bench.process(paths)
    assert bench.model.batch_sizes == [8, 8]


def test_bad_images_become_rows_and_their_neighbours_go_on(tmp_path: Path) -> None:
    good = write_image(tmp_path / "good.png", (20, 30))
    large = write_image(tmp_path / "large.png", (200, 300))
    text = tmp_path / "text.jpg"
    text.write_text("no image at all")
    empty = tmp_path / "empty.png"
    empty.touch()
    gone = tmp_path / "gone.png"
    bench = Bench(tmp_path, max_pixels=10_000)
    report = bench.process([good, large, text, empty, gone, good])
    assert [row["status"] for row in bench.image_rows()] == [
        "ok",
        "too_large",
        "unreadable",
        "unreadable",
        "missing",
        "ok",
    ]
    assert all(row["error"] for row in bench.image_rows() if row["status"] != "ok")
    assert report.statuses == {"ok": 2, "too_large": 1, "unreadable": 2, "missing": 1}
    assert {failure.uri for failure in report.failures} == {str(large), str(text), str(empty), str(gone)}


def test_weights_that_are_not_finite_end_the_worker_in_one_sentence(tmp_path: Path) -> None:
    """Without the traceback of a bug."""
    torch.save({"a": torch.tensor([float("nan")])}, tmp_path / "w.pth")
    spec = spec_for(tmp_path)
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"weights": str(tmp_path / "w.pth")})})
    failure = Worker(worker_settings(spec, "r")).start()
    assert isinstance(failure, WorkerFailure)
    assert (failure.is_permanent, failure.exit_code, failure.traceback) == (True, 2, None)
    assert "finite" in failure.reason


@pytest.mark.parametrize("deed", ["nan_scores", "nan_boxes", "infinite_masks", "overflow"])
def test_an_image_whose_numbers_are_not_finite_fails_alone(tmp_path: Path, deed: Any) -> None:
    """Neither an `ok` row without instances, nor NaN in the tables, nor its neighbours' failure."""
    paths = [write_image(tmp_path / f"{number}.png", (20 + number, 30)) for number in range(4)]
    bench = Bench(tmp_path, fake(deeds={(22, 30): deed}))
    report = bench.process(paths)
    assert [row["status"] for row in bench.image_rows()] == ["ok", "ok", "failed", "ok"]
    assert "finite" in str(bench.image_rows()[2]["error"])
    assert [row["uri"] for row in bench.instance_rows()] == [str(paths[number]) for number in (0, 1, 3)]
    assert report.statuses == {"ok": 3, "failed": 1}
    # A reason, not a bug with its traceback.
    assert not any(failure.traceback for failure in report.failures)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_more_results_than_images_fail_their_shard(tmp_path: Path, batch_size: int) -> None:
    """Rows of a model that loses count would be other images'; its shard fails instead."""
    paths = [write_image(tmp_path / f"{number}.png", (32, 47 if number == 1 else 48)) for number in range(4)]
    bench = Bench(tmp_path, fake(deeds={(32, 47): "miscount"}), batch_size=batch_size)
    with pytest.raises(ValueError, match=r"\d results for \d images"):
        bench.process(paths)
    assert not (tmp_path / "out").exists()


def test_a_file_beyond_the_byte_limit_is_not_decoded(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", (20, 30))
    bench = Bench(tmp_path, max_bytes=10)
    bench.process([path])
    assert bench.image_rows()[0]["status"] == "too_large"
    assert "images.max_bytes = 10" in str(bench.image_rows()[0]["error"])


def test_an_image_on_which_the_model_raises_fails_alone_with_its_traceback(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "in", 5)
    poison = write_image(tmp_path / "poison.png", (32, 47))
    bench = Bench(tmp_path, fake(deeds={(32, 47): "raise"}), batch_size=8)
    report = bench.process([*paths[:2], poison, *paths[2:]])
    assert [row["status"] for row in bench.image_rows()] == ["ok", "ok", "failed", "ok", "ok", "ok"]
    (failure,) = report.failures
    assert failure.reason == "ZeroDivisionError: on purpose"
    assert "fakes/models.py" in str(failure.traceback)


def test_memory_running_out_halves_the_batch_until_it_fits(tmp_path: Path) -> None:
    bench = Bench(tmp_path, fake(max_batch=3), batch_size=8)
    report = bench.process(write_images(tmp_path / "in", 16))
    assert report.statuses == {"ok": 16}
    assert bench.model.batch_sizes[:3] == [8, 4, 2]
    assert report.batch_size == 2
    assert sum(size for size in bench.model.batch_sizes if size <= 3) == 16


def test_the_batch_grows_again_when_memory_is_back(tmp_path: Path) -> None:
    model = fake(max_batch=3)
    bench = Bench(tmp_path, model, batch_size=4)
    bench.process(write_images(tmp_path / "in", 8))
    model.max_batch = 4
    bench.process(write_images(tmp_path / "in", 2 * BatchSize.QUIET_BATCHES + 8), index=1)
    assert model.batch_sizes[-1] == 4


def test_an_image_too_large_for_the_memory_alone_fails_alone(tmp_path: Path) -> None:
    paths = [*write_images(tmp_path / "in", 3), write_image(tmp_path / "big.png", (32, 47))]
    bench = Bench(tmp_path, fake(deeds={(32, 47): "oom"}))
    bench.process(paths)
    assert [row["status"] for row in bench.image_rows()] == ["ok", "ok", "ok", "failed"]
    assert "ran out of memory" in str(bench.image_rows()[3]["error"])


def test_a_lost_device_is_not_an_images_fault(tmp_path: Path) -> None:
    bench = Bench(tmp_path, fake(deeds={(32, 48): "device_lost"}))
    with pytest.raises(DeviceLostError):
        bench.process(write_images(tmp_path / "in", 3))
    assert not Path(images_part(bench.spec.output.uri, "r", 0)).exists()


def test_two_shards_at_once_never_infer_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, fake(delay_s=0.01), batch_size=2)
    shards = [write_images(tmp_path / f"in{index}", 12) for index in range(2)]
    threads = [
        threading.Thread(target=bench.process, args=(paths,), kwargs={"index": index})
        for index, paths in enumerate(shards)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bench.model.busiest == 1
    assert [len(bench.image_rows(index)) for index in range(2)] == [12, 12]


def test_the_next_shard_is_read_while_one_infers_and_infers_while_one_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each stage of the first shard waits for the second shard's earlier stage: without the overlap, neither goes on.
    first = write_images(tmp_path / "first", 3, (20, 30))
    second = write_images(tmp_path / "second", 3, (30, 20))
    began, second_read, second_inferred = threading.Event(), threading.Event(), threading.Event()
    was_overlapped: dict[str, bool] = {}
    bench = Bench(tmp_path, batch_size=2)
    infer, fetch_image, commit_shard = (
        bench.model.infer,
        pipeline.worker.shard_pipeline.fetch_image,
        pipeline.worker.shard_processor.commit_shard,
    )

    def waiting_infer(batch: ImageBatch) -> list[RawDetections]:
        if (30, 20) in batch.original_sizes:
            second_inferred.set()
        elif not began.is_set():
            began.set()
            was_overlapped["read"] = second_read.wait(60)
        return infer(batch)

    def signalling_read(ref: ImageRef, storage: Storage, *, max_bytes: int) -> tuple[bytes, ReadVersion]:
        if ref.uri == str(second[0]):
            second_read.set()
        return fetch_image(ref, storage, max_bytes=max_bytes)

    def waiting_commit(storage: Storage, output_uri: str, run: str, index: int, *rows: Any, **options: Any) -> None:
        if index == 0:
            was_overlapped["commit"] = second_inferred.wait(60)
        commit_shard(storage, output_uri, run, index, *rows, **options)

    monkeypatch.setattr(bench.model, "infer", waiting_infer)
    monkeypatch.setattr(pipeline.worker.shard_pipeline, "fetch_image", signalling_read)
    monkeypatch.setattr(pipeline.worker.shard_processor, "commit_shard", waiting_commit)
    threads = [
        threading.Thread(target=bench.process, args=(paths,), kwargs={"index": index})
        for index, paths in enumerate((first, second))
    ]
    threads[0].start()
    assert began.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert was_overlapped == {"read": True, "commit": True}
    assert [len(bench.image_rows(index)) for index in range(2)] == [3, 3]


def test_storage_errors_fail_the_shard_until_the_last_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_images(tmp_path / "in", 4)
    fetch_image = pipeline.worker.shard_pipeline.fetch_image

    def flaky(ref: ImageRef, storage: object, *, max_bytes: int) -> tuple[bytes, ReadVersion]:
        if ref.uri == str(paths[2]):
            raise TransientStorageError(f"{ref.uri}: 503 SlowDown")
        return fetch_image(ref, storage, max_bytes=max_bytes)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline.worker.shard_pipeline, "fetch_image", flaky)
    bench = Bench(tmp_path)
    with pytest.raises(TransientStorageError):
        bench.process(paths)
    assert not Path(images_part(bench.spec.output.uri, "r", 0)).exists()
    bench.process(paths, is_last_attempt=True)
    assert [row["status"] for row in bench.image_rows()] == ["ok", "ok", "failed", "ok"]
    assert "503" in str(bench.image_rows()[2]["error"])


def worker_for(tmp_path: Path, load_model: LoadModel) -> Worker:
    return Worker(worker_settings(spec_for(tmp_path), "r", load_model))


def test_what_ends_an_attempt_is_returned_as_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = worker_for(tmp_path, LoadFake())
    assert isinstance(worker.start(), WorkerReady)
    shard = Shard(3, refs_of(write_images(tmp_path / "in", 2)))

    def full(*arguments: object, **keywords: object) -> None:
        raise StorageError("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.worker.shard_processor, "commit_shard", full)
        failure = worker.run_shard(shard, Assignment(3, 1, False))
    assert isinstance(failure, ShardFailure)
    assert (failure.index, failure.kind, failure.reason) == (3, "commit", "The disk is full.")

    def broken(*arguments: object, **keywords: object) -> None:
        raise KeyError("our bug")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.worker.shard_processor, "build_image_row", broken)
        failure = worker.run_shard(shard, Assignment(3, 1, False))
    assert isinstance(failure, ShardFailure)
    assert failure.kind == "bug"
    assert "our bug" in str(failure.traceback)

    report = worker.run_shard(shard, Assignment(3, 1, False))
    assert isinstance(report, ShardResult)
    assert report.statuses == {"ok": 2}
    assert worker.progress().images_done == {}


@pytest.mark.parametrize(("deed", "is_permanent"), [("value_error", True), ("runtime_error", False)])
def test_a_model_that_cannot_be_loaded_is_reported_not_raised(tmp_path: Path, deed: str, is_permanent: bool) -> None:
    failure = worker_for(tmp_path, LoadFake(start_deed=deed)).start()  # type: ignore[arg-type]
    assert isinstance(failure, WorkerFailure)
    assert failure.is_permanent == is_permanent
    assert ("These weights" in failure.reason) == is_permanent


def test_a_worker_without_a_model_refuses_shards(tmp_path: Path) -> None:
    failure = worker_for(tmp_path, LoadFake()).run_shard(Shard(0, ()), Assignment(0, 1, False))
    assert isinstance(failure, ShardFailure)
    assert failure.kind == "bug"


def test_a_worker_reports_that_its_raylet_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = worker_for(tmp_path, LoadFake())
    assert not worker.progress().has_lost_raylet
    # What the system says once the parent is dead and its children are another process's.
    monkeypatch.setattr(pipeline.worker.worker.os, "getppid", lambda: 1)
    assert worker.progress().has_lost_raylet


def test_a_queued_shard_is_given_back_and_one_with_images_done_only_when_another_attempt_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fake()
    worker = worker_for(tmp_path, lambda section: model)
    assert isinstance(worker.start(), WorkerReady)
    assert not worker.abandon(3, is_queued=True)
    answers: list[bool] = []
    # One image per batch on a CPU. Shard 3 is asked for at its second image, shard 4 at its first one.
    calls = iter(
        [
            lambda: None,
            lambda: answers.extend([worker.abandon(3, is_queued=True), worker.abandon(3)]),
            lambda: answers.append(worker.abandon(4, is_queued=True)),
        ]
    )
    infer = model.infer

    def infer_and_abandon(batch: ImageBatch) -> list[RawDetections]:
        next(calls)()
        return infer(batch)

    monkeypatch.setattr(model, "infer", infer_and_abandon)
    images = refs_of(write_images(tmp_path / "in", 2))
    for index in (3, 4):
        outcome = worker.run_shard(Shard(index, images), Assignment(index, 1, False))
        assert isinstance(outcome, ShardFailure)
        assert outcome.kind == "abandoned"
    assert answers == [False, True, True]
